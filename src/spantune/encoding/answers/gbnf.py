"""The grammar of an answer as GBNF, the grammar language of llama.cpp's server.

GBNF has no rule for substrings, so the suffix automaton of the text is written out, with one rule for each state and at
most two states for each character. Every substring of the text is a path in it; a path may end where its last character
is not white space. Only the formats with one JSON object for each entity are supported. The grammar does not restrict
the order of entities; repeated and overlapping entities are found when the answer is parsed.

If the tokenizer's spelling of text is given, text that the grammar forces is written as token ids. A model that was
trained on choices has not learnt forced text, and would otherwise spell it in other tokens than those of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spantune.core import TaskSpec
from spantune.encoding.answers import jsonl, jsonl_seed

WRITINGS = {"jsonl": jsonl.JSON, "jsonl_seed": jsonl_seed.PLAIN}
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


Spell = Callable[[str], Sequence[tuple[int, str]]]
"""Returns the tokens that spell a text, as pairs of the token's id and its text."""


def gbnf(text: str, task: TaskSpec, spell: Spell | None = None) -> str:
    """Return the grammar of the answers for `text`, in GBNF.

    `task.answer` must be a key of `WRITINGS`. With `spell`, forced text is written as token ids, which servers of
    llama.cpp from 2026 accept.
    """
    writing = WRITINGS[task.answer]
    empty = _literal(task.empty_answer + writing.terminator if task.empty_answer else "")
    text = text.strip()
    if not text:
        return f"root ::= {empty}\n"
    entities = f"entity+ | {empty}" if task.empty_answer else "entity*"
    opening, middle = '{"entity_text": "', '", "entity_label": '
    endings = [writing.label(code) + "}" + writing.terminator for code in task.codes]
    if spell is None:
        labels, entity = [_literal(ending) for ending in endings], f"{_literal(opening)} s0 {_literal(middle)} label"
    else:  # the token next to a mention may be merged with it, so it is written as characters
        labels = [_spelled(spell, middle + ending, first_free=True) for ending in endings]
        entity = f"{_spelled(spell, opening, first_free=False)} s0 label"
    rules = [f"root ::= {entities}", f"entity ::= {entity}", f"label ::= {' | '.join(labels)}"]
    blanks = {writing.character(character) for character in text if character.isspace()}
    automaton = _suffix_automaton([writing.character(character) for character in text])
    # All transitions into a state have the same symbol. The text does not end with white space, so every path can end.
    behind_blank = {target for moves in automaton for symbol, target in moves.items() if symbol in blanks}
    for state, moves in enumerate(automaton):
        usable = {symbol: target for symbol, target in moves.items() if state or symbol not in blanks}
        alternatives = [f"{_literal(symbol)} s{target}" for symbol, target in usable.items()]
        ending = [] if state == 0 or state in behind_blank else [_literal("")]
        rules.append(f"s{state} ::= {' | '.join(alternatives + ending)}")
    return "\n".join(rules) + "\n"


def _suffix_automaton(symbols: Sequence[str]) -> list[dict[str, int]]:
    """Return the smallest automaton of all substrings of `symbols`; it starts in state 0 and accepts in every state.

    The result is a list of the transitions of each state. It is built symbol by symbol (Blumer et al. 1985).
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


def _spelled(spell: Spell, text: str, *, first_free: bool) -> str:
    """Return `text` as token ids, except for its first or its last token, which is written as characters."""
    tokens = list(spell(text))
    if "".join(token for _, token in tokens) != text:  # a token is only a part of a character
        return _literal(text)
    free = 0 if first_free else len(tokens) - 1
    parts = [_literal(token) if place == free else f"<[{index}]>" for place, (index, token) in enumerate(tokens)]
    return " ".join(parts)


def _literal(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character < " " or character == "\x7f":
        return _ESCAPES.get(character, f"\\x{ord(character):02X}")
    return _ESCAPES.get(character, character)
