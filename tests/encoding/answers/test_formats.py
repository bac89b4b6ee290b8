"""The answer formats `grouped` and `inline`, and the properties that all answer formats share."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.answers import TASK, documents, f1
from helpers.fakes import MERGES, byte_tokenizer
from helpers.real import SHARED
from spantune.core import Document, Entity, Label, ModelError, Problem, TaskSpec
from spantune.data import formats
from spantune.encoding import FORMATS, Encoder, answer_format
from spantune.encoding.answers import grouped, inline
from spantune.encoding.answers.anchoring import Parsed
from spantune.extraction import Guide
from spantune.extraction.grammar import Constraint

BYTES, MERGED = byte_tokenizer(), byte_tokenizer([*MERGES, ('"', ","), ('"', "]"), (">", "<"), ("<", "/"), ("><", "/")])
CONSTRAINTS = [Constraint(tokenizer, len(tokenizer), tokenizer.eos_token_id) for tokenizer in (BYTES, MERGED)]
TAGS = TASK.model_copy(update={"answer": "inline"})
LISTS = TASK.model_copy(update={"answer": "grouped"})


def of_labels(*codes: str, **changes: Any) -> TaskSpec:
    return TaskSpec(labels=tuple(Label(code=code) for code in codes), instruction="x", **changes)


def writable(constraint: Constraint, task: TaskSpec, text: str, answer: list[int], tokenizer: Any) -> bool:
    """Whether the grammar allows an answer token by token, with equal forced tokens, and then its end."""
    try:
        Guide(constraint, Encoder(tokenizer, task), text).choices(answer)
    except ModelError:
        return False
    return True


def gold_is_writable(document: Document, task: TaskSpec) -> bool:
    return all(
        writable(constraint, task, document.text, Encoder(tokenizer, task).answer_ids(document), tokenizer)
        for constraint, tokenizer in zip(CONSTRAINTS, (BYTES, MERGED), strict=True)
    )


def could_be_written(task: TaskSpec, text: str, answer: str) -> bool:
    ids: list[int] = []
    for piece in answer_format(task).pieces(answer):
        ids += BYTES(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return writable(CONSTRAINTS[0], task, text, [*ids, BYTES.eos_token_id], BYTES)


def shown(parsed: Parsed) -> list[tuple[int, int, str]]:
    return [(entity.start, entity.end, entity.label) for entity in parsed.entities]


def same_label(document: Document, relation: Any) -> bool:
    """Whether two entities with one label have this relation."""
    return any(
        one.label == other.label and relation(one, other)
        for one in document.entities
        for other in document.entities
        if one != other
    )


def cross(one: Entity, other: Entity) -> bool:
    return one.start < other.start < one.end < other.end


@settings(max_examples=200, deadline=None)
@given(documents())
def test_inline_comes_back_exactly_unless_two_of_one_label_cross(document: Document) -> None:
    answer = inline.render(document, TAGS)
    parsed = inline.parse(answer, document.text, TAGS)
    exact = tuple(sorted(parsed.entities)) == document.entities and not parsed.problems
    assert exact or same_label(document, cross)
    for item in parsed.resolved:
        stated = answer[slice(*item.span)]
        assert stated.startswith(answer[slice(*item.label_span)]) and stated.endswith(">")


@settings(max_examples=200, deadline=None)
@given(documents())
def test_grouped_comes_back_with_all_its_mentions_in_order(document: Document) -> None:
    answer = grouped.render(document, LISTS)
    parsed = grouped.parse(answer, document.text, LISTS)
    assert not parsed.problems
    wanted = [(e.label, document.surface(e)) for code in LISTS.codes for e in document.entities if e.label == code]
    assert [(e.label, document.text[e.start : e.end]) for e in parsed.entities] == wanted
    for item in parsed.resolved:
        assert json.loads(answer[slice(*item.span)]) == document.text[item.entity.start : item.entity.end]
        assert json.loads(answer[slice(*item.label_span)]) == item.entity.label


@pytest.mark.no_cover
@settings(max_examples=60, deadline=None)
@given(documents())
def test_the_grammar_takes_every_gold_answer_of_its_own_tokens(document: Document) -> None:
    """The grammar is renewed after each entity, and each forced token must be the tokenizer's own."""
    for answer in ("jsonl", "jsonl_seed", "grouped", "inline"):
        task = TASK.model_copy(update={"answer": answer})
        known = document
        if answer == "jsonl_seed":
            known = Document("1", document.text.replace('"', "”"), document.entities)
        if answer == "inline" and (
            same_label(document, cross) or same_label(document, lambda a, b: a.start == b.start)
        ):
            continue
        parsed = answer_format(task).parse(answer_format(task).render(known, task), known.text, task)
        if answer != "inline" and set(parsed.entities) != set(known.entities):
            continue  # the mention would be read at an earlier place
        assert gold_is_writable(known, task), (answer, known)


@pytest.mark.parametrize("answer", sorted(FORMATS))
@pytest.mark.parametrize("code", ["a", 'd"x', "b\\y", "😀", "t\tb\n", "/i", "<", "a>b", "&lt;", "a|b"])
def test_labels_are_written_as_they_are_read(answer: str, code: str) -> None:
    task = of_labels("i", code, answer=answer)
    document = Document("1", "肺炎<i>a", (Entity(0, 1, "i"), Entity(0, 2, code)))
    assert gold_is_writable(document, task)
    if answer == "jsonl_seed" and '"' in code:
        return  # such an answer cannot be read back reliably
    parsed = answer_format(task).parse(answer_format(task).render(document, task), document.text, task)
    assert set(parsed.entities) == set(document.entities) and not parsed.problems


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("{}\n", True),
        ('{"a": ["肺"]}\n', True),
        ('{"a": ["肺", "肺炎"], "b": ["肺炎"]}\n', True),
        ('{"b": ["炎肺"]}\n', True),
        ("{}", False),
        ('{"a": []}\n', False),
        ('{"a": [""]}\n', False),
        ('{"c": ["肺"]}\n', False),
        ('{"a": ["肺痛"]}\n', False),
        ('{"b": ["肺"], "a": ["肺"]}\n', False),  # wrong order of labels
        ('{"a": ["肺"], "a": ["炎"]}\n', False),
        ('{"a": ["炎", "肺炎"]}\n', False),  # 肺炎 does not follow 炎 in order
        ('{"a": ["肺炎", "肺炎"]}\n', False),  # the text has it once
        ('{"a": ["肺", "肺", "肺"]}\n', False),  # the text has it twice
    ],
)
def test_what_grouped_may_write(answer: str, right: bool) -> None:
    assert could_be_written(of_labels("a", "b", answer="grouped"), "肺炎肺", answer) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("肺炎&amp;咳&lt;\n", True),
        ("<a>肺</a>炎&amp;咳&lt;\n", True),
        ("<a><b>肺</b>炎</a>&amp;<a>咳&lt;</a>\n", True),
        ("<a>肺<b>炎</a>&amp;咳</b>&lt;\n", True),  # crossing entities
        ("肺炎&amp;咳&lt;", False),
        ("肺炎&咳<\n", False),
        ("肺炎&amp;咳\n", False),
        ("肺炎炎&amp;咳&lt;\n", False),
        ("<a></a>肺炎&amp;咳&lt;\n", False),
        ("<c>肺</c>炎&amp;咳&lt;\n", False),
        ("<a>肺炎&amp;咳&lt;\n", False),
        ("肺</a>炎&amp;咳&lt;\n", False),
        ("<a><a>肺</a>炎</a>&amp;咳&lt;\n", False),
        ("肺炎&amp;咳&lt;<a></a>\n", False),
    ],
)
def test_what_inline_may_write(answer: str, right: bool) -> None:
    assert could_be_written(of_labels("a", "b", answer="inline"), "肺炎&咳<", answer) is right


def test_answers_for_nothing() -> None:
    for answer, empty in (("grouped", "{}\n"), ("inline", "肺\n"), ("jsonl", ""), ("jsonl_seed", "")):
        task, none = of_labels("a", answer=answer), of_labels("a", answer=answer, empty_answer="没有")
        form = answer_format(task)
        assert form.render(Document("1", "肺"), task) == empty
        assert form.render(Document("1", "肺"), none).rstrip("\n") == "没有"
        for chosen in (task, none):
            assert gold_is_writable(Document("1", "肺"), chosen) and gold_is_writable(Document("1", ""), chosen)
            assert form.parse(form.render(Document("1", "肺"), chosen), "肺", chosen) == Parsed((), ())


@pytest.mark.parametrize(
    ("answer", "expected", "problems"),
    [
        ('{"a": ["肺"], "b": ["炎"]}', [(0, 1, "a"), (1, 2, "b")], []),
        ('{"a": "肺", "b": ["炎"]}\n', [(0, 1, "a"), (1, 2, "b")], ["repaired"]),
        ('{"a": ["肺",], "b": ["炎"],}', [(0, 1, "a"), (1, 2, "b")], ["repaired"]),
        ('{"a": ["肺"], "a": ["炎"]}\n', [(0, 1, "a"), (1, 2, "a")], ["repaired"]),
        ('Here: {"a": ["肺"]}', [(0, 1, "a")], ["invalid", "repaired"]),
        ('{"a": ["肺", "炎', [(0, 1, "a")], ["invalid"]),
        ('{"a": ["肺"]', [(0, 1, "a")], ["invalid"]),
        ('{"x": ["肺"], "a": ["痛", "肺", "肺"]}\n', [(0, 1, "a")], ["label", "ungrounded", "repeated"]),
        ('["肺"]', [], ["invalid", "invalid"]),
        ("nothing", [], ["invalid"]),
        ('{"a": ["\\ud800"]}\n', [], ["invalid"]),
        ("", [], []),
    ],
)
def test_grouped_reads_what_is_plain(answer: str, expected: list[Any], problems: list[str]) -> None:
    parsed = grouped.parse(answer, "肺炎", of_labels("a", "b", answer="grouped"))
    assert shown(parsed) == expected and [problem.kind for problem in parsed.problems] == problems


@pytest.mark.parametrize(
    ("answer", "expected", "problems"),
    [
        ("<a>肺</a>炎 <b>x</b>", [(0, 1, "a"), (3, 4, "b")], []),
        ("<a>肺</a>炎", [(0, 1, "a")], ["invalid"]),
        ("<a>肺炎 x\n", [], ["invalid"]),
        ("肺</a>炎 x\n", [], ["invalid"]),
        ("<a></a>肺炎 x\n", [], ["invalid"]),
        ("<a><a>肺</a></a>炎 x\n", [(0, 1, "a")], ["repeated"]),
        ("<a>肺</a>炎，<b>x</b>\n", [(0, 1, "a"), (3, 4, "b")], ["repaired"]),  # other text: searched for
        ("<a>痛</a>\n", [], ["ungrounded", "repaired"]),
        ("<c>肺</c>炎 x\n", [], ["repaired"]),
    ],
)
def test_inline_reads_what_is_plain(answer: str, expected: list[Any], problems: list[str]) -> None:
    parsed = inline.parse(answer, "肺炎 x", of_labels("a", "b", answer="inline"))
    assert shown(parsed) == expected and [problem.kind for problem in parsed.problems] == problems


def test_a_tag_of_the_text_is_no_tag() -> None:
    text = "CD<sub>4</sub> <a>&lt;"
    task = of_labels("a", "sub", answer="inline")
    document = Document("1", text, (Entity(0, 14, "a"), Entity(7, 8, "sub")))
    answer = inline.render(document, task)
    assert answer == "<a>CD&lt;sub><sub>4</sub>&lt;/sub></a> &lt;a>&amp;lt;\n"
    assert inline.parse(answer, text, task).entities[::-1] == document.entities and gold_is_writable(document, task)


@pytest.mark.parametrize(("answer", "ceiling"), [("grouped", 97.87), ("inline", 100.0)])
def test_ceilings_on_cmeee(answer: str, ceiling: float) -> None:
    path = SHARED / "cmeee_v1/dev.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    gold = formats.read(path).documents
    codes = sorted({entity.label for document in gold for entity in document.entities})
    task = of_labels(*codes, answer=answer)
    form = answer_format(task)
    pairs: list[tuple[set[Any], set[Any]]] = []
    for document in gold:
        parsed = form.parse(form.render(document, task), document.text, task)
        assert parsed.problems == ()
        pairs.append((set(document.entities), set(parsed.entities)))
    assert f1(pairs) == pytest.approx(ceiling, abs=0.05)


@given(answer=st.text(max_size=60), text=st.text(max_size=20), name=st.sampled_from(sorted(FORMATS)))
@settings(max_examples=300, deadline=None)
def test_any_answer_can_be_read_and_what_is_not_read_is_said(answer: str, text: str, name: str) -> None:
    task = of_labels("a", "b", answer=name)
    parsed = answer_format(task).parse(answer, text, task)
    for entity in parsed.entities:
        assert 0 <= entity.start < entity.end <= len(text) and entity.label in task.codes
    if answer.strip() and not parsed.entities and answer.rstrip("\n") not in (text.rstrip("\n"), "{}"):
        assert parsed.problems or (name == "inline" and answer.replace("&amp;", "&").replace("&lt;", "<") != answer)
    assert all(isinstance(problem, Problem) and problem.found is not None for problem in parsed.problems)


# --- white space at the ends of a mention -------------------------------------------------------------------------

BLANKS = st.text(st.sampled_from('a肺\\ \n\t\u3000\x1f\xa0n<"'), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(BLANKS, st.data())
@pytest.mark.parametrize("answer", FORMATS)
def test_a_mention_can_be_written_unless_white_space_is_at_its_ends(
    answer: str, text: str, data: st.DataObject
) -> None:
    """This holds in every format with its escapes; `\\\\n` in an answer is a backslash and an n, not a line break."""
    task = of_labels("a", "b", answer=answer)
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    surface = text[start:end]
    if answer == "jsonl_seed" and '"' in text:
        return  # this format does not escape quotes
    document = Document("d", text, (Entity(start, end, "a"),))
    ids = Encoder(BYTES, task).answer_ids(document)
    assert writable(CONSTRAINTS[0], task, text, ids, BYTES) == (surface == surface.strip())


@pytest.mark.parametrize("answer", FORMATS)
def test_a_free_answer_is_trimmed_and_that_is_a_problem(answer: str) -> None:
    task = of_labels("a", answer=answer)
    document = Document("d", "x  痛\u3000y", (Entity(1, 5, "a"),))
    parsed = answer_format(task).parse(answer_format(task).render(document, task), document.text, task)
    assert shown(parsed) == [(3, 4, "a")]
    assert [(problem.kind, problem.found) for problem in parsed.problems] == [("repaired", "  痛\u3000")]
    blank = document.with_entities([Entity(1, 3, "a")])
    parsed = answer_format(task).parse(answer_format(task).render(blank, task), blank.text, task)
    assert shown(parsed) == [] and [problem.found for problem in parsed.problems] == ["  "]


@settings(max_examples=25, deadline=None)
@given(st.text("ab 肺", max_size=6), st.integers(0, 2**32))
def test_inline_answers_at_random_end_and_have_no_white_space_at_the_ends(text: str, seed: int) -> None:
    for nested in (True, False):
        task = of_labels("a", "b", answer="inline", nested=nested)
        parsed = at_random(task, text, seed)
        assert not parsed.problems
        surfaces = [text[start:end] for start, end, _ in shown(parsed)]
        assert surfaces == [surface.strip() for surface in surfaces]
        assert nested or not overlap(parsed)


# --- tasks whose entities do not overlap --------------------------------------------------------------------------


def at_random(task: TaskSpec, text: str, seed: int) -> Parsed:
    """Write an answer of random tokens that the grammar allows, and parse it."""
    import random

    chance, encoder = random.Random(seed), Encoder(BYTES, task)
    guide, ids = Guide(CONSTRAINTS[0], encoder, text, ordered=bool(seed % 2)), list[int]()
    for _ in range(400):
        options = CONSTRAINTS[0].allowed([guide.matcher]).ids[0].tolist()
        if encoder.stop_id in options and (len(options) == 1 or len(ids) > 250 or chance.random() < 0.1):
            break
        token = chance.choice([option for option in options if option != encoder.stop_id])
        ids += [token, *(forced for forced in guide.advance(token))]
        if ids[-1] == encoder.stop_id or guide.finished:
            break
    answer = encoder.decode([token for token in ids if token != encoder.stop_id])
    return encoder.format.parse(answer, text, task)


def overlap(parsed: Parsed) -> bool:
    return any(first < second < Entity(first.end, 0, "") for first in parsed.entities for second in parsed.entities)


@settings(max_examples=25, deadline=None)
@given(st.text("ab 肺", max_size=8), st.integers(0, 2**32))
@pytest.mark.parametrize("answer", FORMATS)
def test_whatever_is_written_for_a_flat_task_does_not_overlap(answer: str, text: str, seed: int) -> None:
    labels = ("a",) if answer == "grouped" else ("a", "b")  # only `read_answer` compares the lists
    parsed = at_random(of_labels(*labels, answer=answer, nested=False), text, seed)
    assert not overlap(parsed) and all(problem.kind != "invalid" for problem in parsed.problems)


@pytest.mark.no_cover
@settings(max_examples=40, deadline=None)
@given(documents())
@pytest.mark.parametrize("task", [TASK, LISTS, TAGS])
def test_flat_gold_can_be_written_and_comes_back(task: TaskSpec, document: Document) -> None:
    entities: list[Entity] = []
    for entity in document.entities:
        if not entities or entity.start >= entities[-1].end:
            entities.append(entity)
    flat = document.with_entities(entities)
    assert gold_is_writable(flat, task.model_copy(update={"nested": False}))


def test_of_a_repeated_mention_a_flat_task_takes_the_place_that_is_free() -> None:
    answer = '{"entity_text": "ab", "entity_label": "a"}\n{"entity_text": "b", "entity_label": "a"}\n'
    for nested, place in ((True, (1, 2, "a")), (False, (3, 4, "a"))):
        assert shown(FORMATS["jsonl"].parse(answer, "ab b", of_labels("a", nested=nested))) == [(0, 2, "a"), place]
