"""The grammar of an answer as GBNF, which is what llama.cpp's server takes.

GBNF has no substrings, so the text's suffix automaton is written out, a rule a state: at most two for each character,
and every one of the text's substrings is a way through it. It knows the answer formats that are JSON objects, one for
each entity, and not what may follow an entity: what is stated twice is found when the answer is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from spantune.core import TaskSpec
from spantune.encoding.answers import jsonl, jsonl_seed

WRITINGS = {"jsonl": jsonl.JSON, "jsonl_seed": jsonl_seed.PLAIN}
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def gbnf(text: str, task: TaskSpec) -> str:
    """The grammar for the answers for `text`, in a format that is one of `WRITINGS`."""
    writing = WRITINGS[task.answer]
    empty = _literal(task.empty_answer + writing.terminator if task.empty_answer else "")
    if not text:
        return f"root ::= {empty}\n"
    labels = " | ".join(_literal(writing.label(code) + "}" + writing.terminator) for code in task.codes)
    entities = f"entity+ | {empty}" if task.empty_answer else "entity*"
    opening, middle = _literal('{"entity_text": "'), _literal('", "entity_label": ')
    rules = [f"root ::= {entities}", f"entity ::= {opening} s0 {middle} label", f"label ::= {labels}"]
    for state, ways in enumerate(_suffix_automaton([writing.character(character) for character in text])):
        alternatives = [f"{_literal(symbol)} s{target}" for symbol, target in ways.items()]
        ending = [] if state == 0 else [_literal("")]  # a mention is not empty
        rules.append(f"s{state} ::= {' | '.join(alternatives + ending)}")
    return "\n".join(rules) + "\n"


def _suffix_automaton(symbols: Sequence[str]) -> list[dict[str, int]]:
    """The smallest automaton of all substrings of `symbols`, from state 0, in which every state accepts.

    For each state, the ways out of it; built symbol by symbol (Blumer et al. 1985).
    """
    ways: list[dict[str, int]] = [{}]
    link, length = [-1], [0]
    last = 0
    for symbol in symbols:
        state, at = len(ways), last
        ways.append({})
        link.append(0)
        length.append(length[last] + 1)
        while at >= 0 and symbol not in ways[at]:
            ways[at][symbol] = state
            at = link[at]
        if at >= 0:
            target = ways[at][symbol]
            if length[target] == length[at] + 1:
                link[state] = target
            else:
                copy = len(ways)
                ways.append(dict(ways[target]))
                link.append(link[target])
                length.append(length[at] + 1)
                while at >= 0 and ways[at].get(symbol) == target:
                    ways[at][symbol] = copy
                    at = link[at]
                link[target] = link[state] = copy
        last = state
    return ways


def _literal(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character < " " or character == "\x7f":
        return _ESCAPES.get(character, f"\\x{ord(character):02X}")
    return _ESCAPES.get(character, character)
