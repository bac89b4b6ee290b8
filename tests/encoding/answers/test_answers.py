"""The answer format `jsonl`: written, read back as spans, and constrained to the text by a grammar.

Reading uses a cursor, and `skips` states when this is exact: no mention may also occur, unannotated, between the start
of the previous entity and its own start. How often this happens in CMeEE limits the F1 that can be reached there.
"""

from __future__ import annotations

import llguidance.hf
import pytest
from hypothesis import given, settings
from llguidance import LLMatcher

from helpers.answers import TASK, documents, f1
from helpers.fakes import byte_tokenizer
from helpers.real import SHARED
from spantune.core import Document, Entity, Label, Problem, ProblemKind, TaskSpec
from spantune.data import formats
from spantune.encoding import answer_format
from spantune.encoding.answers import jsonl, jsonl_seed
from spantune.encoding.answers.anchoring import Mention, Parsed, resolve

SEED = TASK.model_copy(update={"answer": "jsonl_seed"})
WITH_EMPTY = TASK.model_copy(update={"empty_answer": "没有"})
TOKENIZER = byte_tokenizer()
GUIDE = llguidance.hf.from_tokenizer(TOKENIZER, n_vocab=len(TOKENIZER), eos_token=TOKENIZER.eos_token_id)


def skips(document: Document) -> bool:
    """Whether some mention also occurs before its own place, at a place that follows the previous entity in order."""
    last = Entity(0, 0, "")
    for entity in document.entities:
        size = entity.end - entity.start
        for place in range(last.start, entity.start):
            if document.text[place : place + size] == document.surface(entity) and (
                Entity(place, place + size, entity.label) > last
            ):
                return True
        last = entity
    return False


def read(answer: str, text: str, task: TaskSpec = TASK) -> Parsed:
    return answer_format(task).parse(answer, text, task)


def spans(parsed: Parsed) -> list[tuple[int, int, str]]:
    return [(entity.start, entity.end, entity.label) for entity in parsed.entities]


def line(text: str, label: str = "sym") -> str:
    return f'{{"entity_text": "{text}", "entity_label": "{label}"}}\n'


def accepts(grammar: str | None, answer: str) -> bool:
    """Whether the grammar allows the whole of `answer` and its end."""
    assert grammar is not None
    matcher = LLMatcher(GUIDE, LLMatcher.grammar_from_lark(grammar))
    assert not matcher.get_error(), matcher.get_error()
    ids = TOKENIZER(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


def test_render_sorts_escapes_and_ends_every_line() -> None:
    document = Document("1", '肺"炎\n', (Entity(1, 4, "疾病"), Entity(0, 1, "sym")))
    assert jsonl.render(document, TASK) == line("肺") + line('\\"炎\\n', "疾病")
    assert jsonl.render(Document("1", "x"), TASK) == ""
    assert jsonl.render(Document("1", "x"), WITH_EMPTY) == "没有\n"
    seed = jsonl_seed.render(document, SEED)
    assert seed == line("肺").rstrip() + '{"entity_text": ""炎", "entity_label": "疾病"}'.replace("炎", "炎\n")
    assert jsonl_seed.render(Document("1", "x"), WITH_EMPTY) == "没有"


@settings(max_examples=300, deadline=None)
@given(documents())
def test_a_gold_answer_comes_back_exactly_unless_a_mention_is_skipped(document: Document) -> None:
    answer = jsonl.render(document, TASK)
    parsed = read(answer, document.text)
    assert not parsed.problems
    assert [document.text[start:end] for start, end, _ in spans(parsed)] == [*map(document.surface, document.entities)]
    assert [label for *_, label in spans(parsed)] == [entity.label for entity in document.entities]
    assert (parsed.entities == document.entities) is not skips(document)
    assert "".join(answer[slice(*item.span)] for item in parsed.resolved) == answer


@settings(max_examples=200, deadline=None)
@given(documents())
def test_mentions_that_are_unique_in_their_text_come_back_exactly(document: Document) -> None:
    text = document.text
    unique = [e for e in document.entities if text.find(document.surface(e), text.find(document.surface(e)) + 1) < 0]
    document = document.with_entities(unique)
    parsed = read(jsonl.render(document, TASK), document.text)
    assert parsed == Parsed(parsed.resolved, ()) and parsed.entities == document.entities


@settings(max_examples=200, deadline=None)
@given(documents())
def test_the_seeds_answers_agree_where_no_mention_holds_a_quote(document: Document) -> None:
    plain = document.with_entities(
        entity for entity in document.entities if '"' not in document.surface(entity) + entity.label
    )
    answer = jsonl_seed.render(plain, SEED)
    parsed = read(answer, plain.text, SEED)
    assert not parsed.problems
    assert parsed.entities == read(jsonl.render(plain, TASK), plain.text).entities
    assert "".join(answer[slice(*item.span)] for item in parsed.resolved) == answer


def test_what_the_seeds_format_cannot_read_back_is_a_problem() -> None:
    text = 'x", "entity_label": "sym"}y'
    document = Document("1", text, (Entity(0, len(text), "sym"),))
    seed, lines = read(jsonl_seed.render(document, SEED), text, SEED), read(jsonl.render(document, TASK), text)
    assert [problem.kind for problem in seed.problems] == ["invalid"] and seed.entities != document.entities
    assert lines.entities == document.entities


@settings(max_examples=60, deadline=None)
@given(documents())
def test_the_grammars_accept_every_gold_answer(document: Document) -> None:
    for task in (TASK, SEED, WITH_EMPTY):
        if task is SEED:  # not escaped, so a quote in the text would seem to be a part of the mention
            document = Document("1", document.text.replace('"', "”"), document.entities)
        form = answer_format(task)
        assert accepts(form.grammar(document.text, task, None), form.render(document, task))


@pytest.mark.parametrize("code", ["a", 'd"x', "b\\y", "😀", "a\x7fb", "t\tb\n", "\0", "/i", "\u2028", "a|b", "%", "'"])
def test_the_grammars_know_every_label_as_it_is_written(code: str) -> None:
    document = Document("1", "肺炎", (Entity(0, 2, code),))
    for answer in ("jsonl", "jsonl_seed", "grouped"):
        task = TaskSpec.model_validate({"labels": [{"code": code}], "instruction": "x", "answer": answer})
        form = answer_format(task)
        assert accepts(form.grammar("肺炎", task, None), form.render(document, task))


@pytest.mark.parametrize(
    "wrong",
    [
        line("肺痛"),  # all characters are in the text, but not this string
        line("炎肺"),
        line("肺炎肺"),
        line("肺炎", "bod"),
        line("肺炎", "疾"),
        line("肺炎", ""),
        line(""),
        line("肺炎").rstrip(),
        line("肺炎") + "\n",
        " " + line("肺炎"),
        line("肺炎").replace(": ", ":"),
        line("肺炎")[:-3],
        line("\n"),
        line("痛\\n"),  # white space at the end
        line("\\n"),
        line('"'),
        line("\\u80ba"),
        "没有\n",
        "x",
    ],
)
def test_the_grammar_refuses(wrong: str) -> None:
    text = '肺炎伴"痛\n'
    grammar = jsonl.grammar(text, TASK)
    assert accepts(grammar, "") and accepts(grammar, line("肺炎", "疾病") + line('\\"痛') + line("肺"))
    assert not accepts(grammar, wrong)


def test_the_grammar_of_an_empty_answer_and_of_an_empty_text() -> None:
    grammar = jsonl.grammar("肺炎", WITH_EMPTY)
    assert accepts(grammar, "没有\n") and accepts(grammar, line("肺") * 2)
    for wrong in ("", "没有", "没有\n没有\n", line("肺") + "没有\n"):
        assert not accepts(grammar, wrong)
    assert accepts(jsonl.grammar("", TASK), "") and not accepts(jsonl.grammar("", TASK), line("x"))
    assert accepts(jsonl.grammar("", WITH_EMPTY), "没有\n") and not accepts(jsonl.grammar("", WITH_EMPTY), "")
    assert accepts(jsonl_seed.grammar("", WITH_EMPTY), "没有")


@pytest.mark.parametrize(
    ("mentions", "expected", "problems"),
    [
        # the cursor stays at the start of the last entity, so the second 痛 is another occurrence
        ([("痛", "sym"), ("痛", "sym")], [(1, 2, "sym"), (4, 5, "sym")], []),
        ([("腹", "bod"), ("腹痛", "sym")], [(3, 4, "bod"), (3, 5, "sym")], []),
        # one span may have two labels
        ([("头痛", "sym"), ("头痛", "dis")], [(0, 2, "sym"), (0, 2, "dis")], []),
        # after 腹, the next 痛 is taken
        ([("腹", "bod"), ("痛", "sym")], [(3, 4, "bod"), (4, 5, "sym")], []),
        # out of order: 头 is searched for from the beginning, and the cursor moves there
        ([("腹", "bod"), ("头", "bod"), ("痛", "sym")], [(3, 4, "bod"), (0, 1, "bod"), (1, 2, "sym")], []),
        # after going back, an entity that was stated still cannot be stated again
        ([("腹", "bod"), ("头", "bod"), ("腹", "bod")], [(3, 4, "bod"), (0, 1, "bod")], [("repeated", "腹")]),
        # the text has two, and this is the third
        ([("痛", "sym")] * 3, [(1, 2, "sym"), (4, 5, "sym")], [("repeated", "痛")]),
        # a problem does not move the cursor
        ([("痛", "bad"), ("痛", "sym")], [(1, 2, "sym")], [("label", "bad")]),
        ([("发热", "sym"), ("", "sym"), ("痛", "sym")], [(1, 2, "sym")], [("ungrounded", "发热"), ("ungrounded", "")]),
        # the label is checked first
        ([("发热", "bad")], [], [("label", "bad")]),
    ],
)
def test_resolver(
    mentions: list[tuple[str, str]], expected: list[tuple[int, int, str]], problems: list[tuple[str, str]]
) -> None:
    task = TaskSpec.model_validate({"labels": [{"code": c} for c in ("sym", "bod", "dis")], "instruction": "x"})
    found = [Mention(text, label, (i, i + 1), (i, i)) for i, (text, label) in enumerate(mentions)]
    parsed = resolve(found, "头痛、腹痛", task)
    assert spans(parsed) == expected
    assert [(problem.kind, problem.found) for problem in parsed.problems] == problems


def test_overlapping_occurrences_are_different_ones_and_problems_pass_through() -> None:
    found: list[Mention | Problem] = [
        Mention("aa", "sym", (0, 1), (0, 1)),
        Problem(ProblemKind.INVALID, "?"),
        Mention("aa", "sym", (1, 2), (1, 2)),
        Mention("aa", "sym", (2, 3), (2, 3)),
    ]
    parsed = resolve(found, "aaa", TASK)
    assert spans(parsed) == [(0, 2, "sym"), (1, 3, "sym")]
    assert parsed.problems == (Problem(ProblemKind.INVALID, "?"), Problem(ProblemKind.REPEATED, "aa"))
    assert [item.span for item in parsed.resolved] == [(0, 1), (1, 2)]


BAD_LINES = [
    "Here are the entities:",
    '{"entity_text": "肺炎", "entity_label": "sym"',
    '{"entity_text": "肺炎"}',
    '{"entity_text": 3, "entity_label": "sym"}',
    '{"entity_text": null, "entity_label": "sym"}',
    '["肺炎", "sym"]',
    "null",
    '{"entity_text": "\\ud83d", "entity_label": "sym"}',  # half of a surrogate pair cannot be written to a file
    "1" * 5000,
    "[" * 100_000 + "1",
    "{" * 2000 + "1",
]


def test_every_bad_line_is_reported_and_the_good_ones_are_kept() -> None:
    answer = "".join(bad + "\n" + line("肺") for bad in BAD_LINES[:1]) + "\n".join(BAD_LINES[1:]) + "\r\n\n"
    parsed = read(answer + " " + line("炎").rstrip() + " \r\n" + line("肺炎").rstrip(), "肺炎")
    assert [problem.found for problem in parsed.problems] == BAD_LINES
    assert {problem.kind for problem in parsed.problems} == {"invalid"}
    assert spans(parsed) == [(0, 1, "sym"), (1, 2, "sym"), (0, 2, "sym")]
    for problem in parsed.problems:
        problem.found.encode()


LUNG, FIRE = '{"entity_text": "肺", "entity_label": "sym"}', '{"entity_text": "炎", "entity_label": "疾病"}'


@pytest.mark.parametrize(
    ("answer", "repaired", "invalid"),
    [
        (LUNG + FIRE, [LUNG, FIRE], []),
        (f"Entities: {LUNG}, and {FIRE}.", [LUNG, FIRE], ["Entities:", ", and", "."]),
        (f"```json\n[\n  {LUNG},\n  {FIRE}\n]\n```", ["```json", "[", LUNG, ",", "]", "```"], []),
        (f'{{"entities": [{LUNG}, {FIRE}]}}', [LUNG, ",", FIRE, "]}"], ['{"entities": [']),
        (LUNG.replace('"', "'") + "\n" + FIRE, [LUNG.replace('"', "'")], []),
        (LUNG.replace("}", ", }") + "\n" + FIRE, [LUNG.replace("}", ", }")], []),
        (LUNG.replace(", ", ",\n  ") + "\n" + FIRE, [LUNG.replace(", ", ",\n  ")], []),
        (LUNG + "\n" + FIRE, [], []),
    ],
)
def test_an_answer_that_is_plain_but_not_of_the_format_is_read_and_every_repair_reported(
    answer: str, repaired: list[str], invalid: list[str]
) -> None:
    parsed = read(answer, "肺炎")
    assert spans(parsed) == [(0, 1, "sym"), (1, 2, "疾病")]
    assert [problem.found for problem in parsed.problems if problem.kind == "repaired"] == repaired
    assert [problem.found for problem in parsed.problems if problem.kind == "invalid"] == invalid
    assert len(parsed.problems) == len(repaired) + len(invalid)
    for item in parsed.resolved:
        stated = answer[slice(*item.span)]
        assert stated.strip() in {*repaired, LUNG, FIRE} and item.entity.label in answer[slice(*item.label_span)]


def test_the_empty_answer_is_no_problem_and_another_is() -> None:
    for answer in ("没有\n", "没有", "", "\n\n"):
        assert read(answer, "x", WITH_EMPTY) == Parsed((), ())
    assert [problem.found for problem in read("没有\n", "x").problems] == ["没有"]
    seed = SEED.model_copy(update={"empty_answer": "没有"})
    assert read("没有", "x", seed) == Parsed((), ())
    first, second = line("肺").rstrip(), line("炎").rstrip()
    parsed = read(f"好：{first}\n{second}，完", "肺炎", seed)
    assert [problem.found for problem in parsed.problems] == ["好：", "，完"] and spans(parsed) == [
        (0, 1, "sym"),
        (1, 2, "sym"),
    ]


@pytest.mark.parametrize(
    ("file", "first_occurrence", "cursor"),
    [("cmeee_v1/dev.jsonl", 92.8, 98.98), ("cmeee_v2_few_shot/cmeee.jsonl", 93.2, 99.15)],
)
def test_ceilings_on_cmeee(file: str, first_occurrence: float, cursor: float) -> None:
    if not (SHARED / file).is_file():
        pytest.skip(f"{SHARED / file} is not here")
    gold = formats.read(SHARED / file).documents
    codes = sorted({entity.label for document in gold for entity in document.entities})
    task = TaskSpec.model_validate({"labels": [{"code": code} for code in codes], "instruction": "x"})
    assert len(gold) == 2500 and len(codes) == 9
    by_cursor, by_first = [], []
    for document in gold:
        parsed = read(jsonl.render(document, task), document.text, task)
        assert not parsed.problems
        by_cursor.append((set(document.entities), set(parsed.entities)))
        places = [(document.text.find(document.surface(e)), e) for e in document.entities]
        by_first.append((set(document.entities), {Entity(i, i + e.end - e.start, e.label) for i, e in places}))
    assert f1(by_cursor) >= 98.4
    assert f1(by_cursor) == pytest.approx(cursor, abs=0.05)
    assert f1(by_first) == pytest.approx(first_occurrence, abs=0.05)


@pytest.mark.parametrize("answer", ["jsonl", "jsonl_seed", "grouped", "inline"])
def test_an_answer_that_grows_is_read_as_one_that_is_whole(answer: str) -> None:
    task = TaskSpec(labels=(Label(code="dis"), Label(code="sym")), instruction="x", answer=answer)  # type: ignore[arg-type]
    text, form = 'ab "ab" 肺炎 ab', answer_format(task)
    document = Document("1", text, (Entity(0, 2, "dis"), Entity(3, 7, "sym"), Entity(8, 10, "dis")))
    whole = form.render(document, task)
    for written in (whole, whole * 3, whole + "\n{ab\n" + whole, "\n" + whole, whole.replace("sym", "no")):
        for step in (1, 7, 40):
            read = form.growing(text, task)
            for end in range(step, len(written) + step, step):
                assert read(written[:end]) == form.parse(written[:end], text, task)
