"""The grammar of an answer as GBNF, the grammar language of llama.cpp's server.

GBNF has no substring rule, so the suffix automaton of the text is written out with a rule per state, at most two per
character; every substring of the text is a path in it, and may end where it ends with no white space. Only the formats
with one JSON object per entity are supported. The grammar does not restrict the order of entities: repeated and
overlapping ones are found when the answer is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from spantune.core import TaskSpec
from spantune.encoding.answers import jsonl, jsonl_seed

WRITINGS = {"jsonl": jsonl.JSON, "jsonl_seed": jsonl_seed.PLAIN}
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def gbnf(text: str, task: TaskSpec) -> str:
    """Return the grammar for the answers for `text`; `task.answer` must be one of `WRITINGS`."""
    writing = WRITINGS[task.answer]
    empty = _literal(task.empty_answer + writing.terminator if task.empty_answer else "")
    text = text.strip()
    if not text:
        return f"root ::= {empty}\n"
    labels = " | ".join(_literal(writing.label(code) + "}" + writing.terminator) for code in task.codes)
    entities = f"entity+ | {empty}" if task.empty_answer else "entity*"
    opening, middle = _literal('{"entity_text": "'), _literal('", "entity_label": ')
    rules = [f"root ::= {entities}", f"entity ::= {opening} s0 {middle} label", f"label ::= {labels}"]
    blanks = {writing.character(character) for character in text if character.isspace()}
    automaton = _suffix_automaton([writing.character(character) for character in text])
    # all transitions into a state have one symbol; the text ends with no blank, so that every path can end
    behind_blank = {target for moves in automaton for symbol, target in moves.items() if symbol in blanks}
    for state, moves in enumerate(automaton):
        usable = {symbol: target for symbol, target in moves.items() if state or symbol not in blanks}
        alternatives = [f"{_literal(symbol)} s{target}" for symbol, target in usable.items()]
        ending = [] if state == 0 or state in behind_blank else [_literal("")]
        rules.append(f"s{state} ::= {' | '.join(alternatives + ending)}")
    return "\n".join(rules) + "\n"


def _suffix_automaton(symbols: Sequence[str]) -> list[dict[str, int]]:
    """Return the smallest automaton of all substrings of `symbols`, which starts in state 0 and accepts in every state.

    It is a list of the transitions of each state, built symbol by symbol (Blumer et al. 1985).
    """
    transitions: list[dict[str, int]] = [{}]
    link, length = [-1], [0]
    last = 0
    for symbol in symbols:
        state, at = len(transitions), last
        transitions.append({})
        link.append(0)
        length.append(length[last] + 1)
        while at >= 0 and symbol not in transitions[at]:
            transitions[at][symbol] = state
            at = link[at]
        if at >= 0:
            target = transitions[at][symbol]
            if length[target] == length[at] + 1:
                link[state] = target
            else:
                copy = len(transitions)
                transitions.append(dict(transitions[target]))
                link.append(link[target])
                length.append(length[at] + 1)
                while at >= 0 and transitions[at].get(symbol) == target:
                    transitions[at][symbol] = copy
                    at = link[at]
                link[target] = link[state] = copy
        last = state
    return transitions


def _literal(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character < " " or character == "\x7f":
        return _ESCAPES.get(character, f"\\x{ord(character):02X}")
    return _ESCAPES.get(character, character)
