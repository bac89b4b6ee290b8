"""spaCy's DocBin and Prodigy's JSONL: fixtures written by them, round trips, bad input and the real files."""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpora import CLINIC, FIXTURES
from helpers.real import SHARED
from helpers.refusal import assert_refused, assert_unreadable
from helpers.strategies import annotated
from spantune.core import ConfigError, DataError, Document, Entity
from spantune.data import Options, formats
from spantune.data.offsets import DOUBTFUL

needs_spacy = pytest.mark.skipif(
    importlib.util.find_spec("spacy") is None, reason="spaCy, of the extra `spacy`, is not installed"
)
FILES = [pytest.param("clinic.spacy", marks=needs_spacy), "prodigy.jsonl", "groups.jsonl"]
SUFFIXES = [pytest.param(".spacy", marks=needs_spacy), ".jsonl"]
TAIL = [
    [("Chronic kidney disease", "dis"), ("kidney", "bod"), ("pain", "sym")],
    [("Sjo\u0308gren’s syndrome", "dis")],
]


def to_docs(path: Path) -> list[Any]:
    """Return the Docs of a file as spaCy itself reads them."""
    import spacy
    from spacy.tokens import DocBin

    return list(DocBin().from_disk(path).get_docs(spacy.blank("xx").vocab))


@pytest.mark.parametrize("name", FILES)
def test_fixture_is_recognised_and_read(name: str) -> None:
    corpus = formats.read(FIXTURES / "spacy" / name)
    assert corpus.format == "spacy"
    assert [[(d.surface(e), e.label) for e in d.entities] for d in corpus.documents] == CLINIC + TAIL
    assert corpus.documents[4].text == 'Chronic kidney disease,\nstage 3 😀; "no pain".'
    assert corpus.documents[5].text == "Sjo\u0308gren’s syndrome  改善 👩🏽"


@needs_spacy
def test_docbin_keeps_id_and_meta_and_notes_other_user_data() -> None:
    corpus = formats.read(FIXTURES / "spacy/clinic.spacy")
    assert [(d.id, d.meta) for d in corpus.documents[2:5]] == [
        ("clinic/2", {"ward": 2}),
        ("clinic/3", {}),
        ("ward/1", {"ward": 7}),
    ]
    assert corpus.notes == {"user_data 'seen' not read": 6}


def test_prodigy_keeps_meta_and_leaves_out_what_was_rejected() -> None:
    corpus = formats.read(FIXTURES / "spacy/prodigy.jsonl")
    assert [(d.id, d.meta) for d in corpus.documents[2:4]] == [("prodigy-3", {"ward": 2}), ("prodigy-4", {})]
    assert corpus.notes == {
        "id made from the line number": 6,
        "field '_input_hash' not read": 6,
        "entity without a copy of its text in the file: offsets cannot be verified": 10,
        DOUBTFUL.message: 1,
        "document left out: its answer is reject": 1,
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None, max_examples=100)
@given(documents=st.lists(annotated(), min_size=1, max_size=4))
def test_round_trip_is_the_identity(suffix: str, documents: list[Document]) -> None:
    named = [Document(f"d/{n}", d.text, d.entities, {"x": [d.text, {"n": n}]}) for n, d in enumerate(documents)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"back{suffix}"
        formats.write(path, named, "spacy")
        assert formats.detect(path) == "spacy"
        assert formats.read(path).documents == tuple(named)
        assert [item.name for item in Path(folder).iterdir()] == [path.name]


@needs_spacy
def test_tokens_are_words_characters_and_white_space_split_at_entities(tmp_path: Path) -> None:
    text = "Kidney disease肾病 3  mg \n"
    spans = {(0, 6): "bod", (6, 10): "odd", (15, 16): "bod", (16, 18): "odd", (20, 23): "odd"}
    entities = tuple(Entity(start, end, label) for (start, end), label in spans.items())
    notes = formats.write(tmp_path / "x.spacy", [Document("a", text, entities)], "spacy")
    (doc,) = to_docs(tmp_path / "x.spacy")
    assert notes == {}
    assert doc.text == text
    assert [(t.text, bool(t.whitespace_)) for t in doc] == [
        ("Kidney", False),
        (" ", False),  # an entity begins with this space
        ("dis", False),
        ("ease", False),
        ("肾", False),
        ("病", False),
        (" ", False),
        ("3", True),
        (" ", False),
        ("mg", False),
        (" ", False),  # an entity ends with this space
        ("\n", False),
    ]
    assert [(e.text, e.start_char, e.label_) for e in doc.ents] == [
        (text[start:end], start, label) for (start, end), label in spans.items()
    ]


@needs_spacy
def test_ents_hold_a_flat_corpus_and_a_span_group_any_other(tmp_path: Path) -> None:
    flat = Document("a", "lung pain", (Entity(0, 4, "bod", 0.5), Entity(5, 9, "sym")), {"w": 1})
    nested = Document("b", "lung pain", (Entity(0, 4, "bod"), Entity(0, 9, "sym")))
    assert formats.write(tmp_path / "x.spacy", [flat, Document("c", "x")], "spacy") == {"score left out": 1}
    docs = to_docs(tmp_path / "x.spacy")
    assert [len(doc.ents) for doc in docs] == [2, 0]
    assert all(doc.has_annotation("ENT_IOB", require_complete=True) and not doc.spans for doc in docs)
    assert docs[0].user_data == {"id": "a", "meta": {"w": 1}}

    notes = formats.write(tmp_path / "y.spacy", [flat, nested], "spacy")
    assert notes == {"entities overlap: written to the span group 'sc', not to ents": 2, "score left out": 1}
    docs = to_docs(tmp_path / "y.spacy")
    assert [[(s.text, s.label_) for s in doc.spans["sc"]] for doc in docs] == [
        [("lung", "bod"), ("pain", "sym")],
        [("lung", "bod"), ("lung pain", "sym")],
    ]
    assert not any(doc.ents for doc in docs)


@needs_spacy
def test_two_annotations_are_refused_until_one_is_named(tmp_path: Path) -> None:
    import spacy
    from spacy.tokens import DocBin

    doc = spacy.blank("en")("lung pain")
    doc.ents = [doc.char_span(0, 4, label="bod")]
    doc.spans["long"] = [doc.char_span(0, 9, label="sym")]
    DocBin(docs=[doc]).to_disk(tmp_path / "x.spacy")
    row = {"text": "lung pain", "ents": [{"start": 0, "end": 4, "label": "bod"}]}
    row["spans"] = {"long": [{"start": 0, "end": 9, "label": "sym", "kb_id": ""}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row), encoding="utf-8")
    for name in ("x.spacy", "x.jsonl"):
        with pytest.raises(DataError, match=rf"{name}:1: entities stand under ents, long and differ.*--column NAME"):
            formats.read(tmp_path / name)
        for column, entity in {"ents": Entity(0, 4, "bod"), "long": Entity(0, 9, "sym")}.items():
            assert formats.read(tmp_path / name, None, Options(column=column)).documents[0].entities == (entity,)
        with pytest.raises(DataError, match=r"no entities under 'sc'; found: ents, long"):
            formats.read(tmp_path / name, None, Options(column="sc"))


@needs_spacy
def test_documents_without_annotation_or_with_a_part_of_it_are_noted(tmp_path: Path) -> None:
    import spacy
    from spacy.tokens import DocBin

    nlp = spacy.blank("en")
    bare, part = nlp("lung"), nlp("lung pain")
    part.set_ents([part[:1].char_span(0, 4, label="bod")], default="missing")
    DocBin(docs=[bare, part]).to_disk(tmp_path / "x.spacy")
    corpus = formats.read(tmp_path / "x.spacy")
    assert [len(document.entities) for document in corpus.documents] == [0, 1]
    assert corpus.notes == {
        "id made from the document's number": 2,
        "document without annotation: read as one without entities": 1,
        "document annotated in part: the rest read as without entities": 1,
    }


def test_prodigy_may_leave_out_empty_spans_and_other_files_may_not(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "spans": []}\n{"text": "b", "answer": "accept"}\n', encoding="utf-8")
    assert [document.entities for document in formats.read(path).documents] == [(), ()]


def test_a_file_of_rejected_documents_holds_none(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a", "spans": [], "answer": "ignore"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.jsonl: no document was found.*check the path"):
        formats.read(tmp_path / "x.jsonl")


SPAN = b'{"text": "lung pain", "spans": [%b]}\n'
OK = SPAN % b'{"start": 0, "end": 4, "label": "x"}'
BAD_JSONL = {
    "no spans": (OK + b'{"text": "a"}', ["bad.jsonl:2, field spans", "missing", "[] for a text without"]),
    "spans are null": (
        OK + b'{"text": "a", "spans": "x"}',
        ["bad.jsonl:2, field spans", "a string", "list of objects"],
    ),
    "ents are null": (OK + b'{"text": "a", "ents": null}', ["bad.jsonl:2, field ents", "found null", "list of"]),
    "group is an object": (OK + b'{"text": "a", "spans": {"sc": {}}}', ["field spans.sc", "an object", "a list of"]),
    "no text": (OK + b'{"spans": []}', ["bad.jsonl:2, field text", "missing", "expected a string"]),
    "text is a number": (OK + b'{"text": 1, "spans": []}', ["bad.jsonl:2, field text", "the number 1", "a string"]),
    "span is a list": (OK + SPAN % b'[0, 4, "x"]', ["bad.jsonl:2, field spans[0]", "found a list", "an object"]),
    "start is text": (SPAN % b'{"start": "0", "end": 4, "label": "x"}', ["spans[0].start", "a string", "whole number"]),
    "no end": (SPAN % b'{"start": 0, "label": "x"}', ["bad.jsonl:1, field spans[0].end", "missing", "start, label"]),
    "no label": (SPAN % b'{"start": 0, "end": 4}', ["spans[0].label", "missing", "expected a string"]),
    "empty label": (SPAN % b'{"start": 0, "end": 4, "label": ""}', ["spans[0].label", "is empty", "mend or remove"]),
    "in a group": (
        b'{"text": "lung", "spans": {"sc": [{"start": 0, "end": 9, "label": "x"}]}}',
        ["bad.jsonl:1, field spans.sc[0].end", "[0, 9)", "mend"],
    ),
    "outside": (
        OK + SPAN % b'{"start": 5, "end": 10, "label": "x"}',
        ["bad.jsonl:2", "[5, 10)", "9 characters", "mend"],
    ),
    "wrong text": (
        SPAN % b'{"start": 1, "end": 5, "label": "x", "text": "lung"}',
        ["bad.jsonl:1, field spans[0].text", "'ung '", "it occurs at 0", "mend"],
    ),
    "meta": (b'{"text": "a", "spans": [], "meta": 3}', ["field meta", "the number 3", "an object"]),
    "id twice": (
        b'{"id": "a", "text": "x", "spans": []}\n' * 2,
        ["bad.jsonl:2, field id", "repeated", "make ids unique"],
    ),
    "not json": (OK + b"{'text': 1}", ["bad.jsonl:2", "not JSON at column 2", "double quotes"]),
}


@pytest.mark.parametrize(("content", "fragments"), BAD_JSONL.values(), ids=BAD_JSONL)
def test_bad_jsonl_is_refused_by_place_and_leaves_nothing(content: bytes, fragments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    assert_refused(path, "spacy", fragments, "out.jsonl")


def _packed(**changes: Any) -> bytes:
    """Return the fixture's bytes with some of its parts replaced."""
    import srsly

    parts = srsly.msgpack_loads(zlib.decompress((FIXTURES / "spacy/clinic.spacy").read_bytes()))
    return zlib.compress(srsly.msgpack_dumps({k: v for k, v in (parts | changes).items() if v is not None}))


BAD_DOCBIN: dict[str, tuple[dict[str, Any], str]] = {
    "no attrs": ({"attrs": None}, "after document 0: 'attrs'"),
    "no strings": ({"strings": []}, "after document 0: "),
    "no labels": ({"strings": None}, "after document 0: 'strings'"),
    "lengths of another file": ({"lengths": b"\x01\0\0\0"}, "after document "),
    "half a length": ({"lengths": b"\x01\0"}, "after document 0: "),
    "tokens cut short": ({"tokens": b"\0" * 8}, "after document 0: "),
    "no spaces": ({"spaces": b""}, "after document 0: "),
    "flags missing": ({"flags": []}, "after document 0: "),
    "groups missing": ({"span_groups": []}, "after document 0: "),
    "groups damaged": ({"span_groups": [b"\xc1"] * 6}, "after document 0: "),
    "user data damaged": ({"user_data": [b"\xc1"] * 6}, "after document 0: "),
}


@needs_spacy
@pytest.mark.parametrize(("changes", "message"), BAD_DOCBIN.values(), ids=BAD_DOCBIN)
def test_a_damaged_docbin_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.spacy"
    path.write_bytes(_packed(**changes))
    fragments = [f"bad.spacy: not readable as a DocBin {message}", "written whole, by spaCy 3"]
    assert_refused(path, "spacy", fragments, "out.jsonl")
    assert_refused(path, "spacy", fragments, "out.spacy")


@needs_spacy
def test_a_docbin_that_is_none_is_refused_and_leaves_the_collector_on(tmp_path: Path) -> None:
    path = tmp_path / "bad.spacy"
    for content in ((FIXTURES / "spacy/clinic.spacy").read_bytes()[:-40], b"x\x9c", zlib.compress(b"\xc1"), b"xyz"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not readable as a DocBin after document 0"):
            formats.read(path, "spacy")
        assert gc.isenabled()
    path.write_bytes(zlib.compress(b"a text"))
    with pytest.raises(DataError):
        formats.detect(path)


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("x.txt", Document("d", "a"), r"one that ends in \.spacy, \.jsonl or \.json: rename it"),
        ("x.jsonl", Document("d", "a\ud83d"), r"U\+D83D.*mend the document"),
        pytest.param("x.spacy", Document("d", "a\ud83d"), r"U\+D83D.*mend the document", marks=needs_spacy),
        pytest.param(
            "x.spacy", Document("d", "a", (Entity(0, 1, ""),)), "'d': the entity at 0 has no label", marks=needs_spacy
        ),
        pytest.param(
            "x.spacy",
            Document("d", "a", meta={"n": 1 << 70}),
            "'d': its meta cannot be in user_data",
            marks=needs_spacy,
        ),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_the_old_file(
    name: str, document: Document, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("old", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        formats.write(tmp_path / name, [Document("first", "fine"), document], "spacy")
    assert [(file.name, file.read_text("utf-8")) for file in tmp_path.iterdir()] == [(name, "old")]


def test_without_spacy_a_docbin_asks_for_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.setitem(sys.modules, "spacy.tokens", None)
    assert formats.detect(FIXTURES / "spacy/clinic.spacy") == "spacy"
    with pytest.raises(ConfigError, match=r"needs spacy, .*pip install .*\[spacy\]'"):
        formats.read(FIXTURES / "spacy/clinic.spacy")
    with pytest.raises(ConfigError, match=r"pip install .*\[spacy\]'"):
        formats.write(tmp_path / "x.spacy", [Document("a", "b")], "spacy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_real_documents_come_back(suffix: str, tmp_path: Path) -> None:
    documents = formats.read(SHARED / "cmeee_v1/dev.jsonl").documents
    formats.write(tmp_path / f"dev{suffix}", documents, "spacy")
    corpus = formats.read(tmp_path / f"dev{suffix}")
    assert corpus.documents == documents
    assert (len(documents), sum(len(d.entities) for d in corpus.documents)) == (2500, 10263)


PAIR = ["Who is Ada Roe?", {"entities": [[7, 14, "PERSON"]], "cats": {}}]
SPACY_2 = {
    "array.json": json.dumps([PAIR, ["Nobody here.", {"entities": []}]]),
    "indented.json": json.dumps([PAIR, ["Nobody here.", {"entities": []}]], indent=1),
    "lines.jsonl": f'{json.dumps(PAIR)}\n["Nobody here.", {{"entities": []}}]\n',
    "bare.json": json.dumps([["Who is Ada Roe?", [[7, 14, "PERSON"]]], ["Nobody here.", []]]),
    "annotator.json": json.dumps(
        {"classes": ["PERSON"], "annotations": [None, PAIR, ["Nobody here.", {"entities": []}]]}, indent=1
    ),
    "triples.jsonl": '{"text": "Nobody here.", "entities": []}\n'
    '{"text": "Who is Ada Roe?", "entities": [[7, 14, "PERSON"]]}\n',
    "triples.json": '[{"id": 1, "text": "Who is Ada Roe?", "entities": [[7, 14, "PERSON"]]}]',
}


@pytest.mark.parametrize("name", SPACY_2)
def test_training_data_of_spacy_2_is_recognised_and_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(SPACY_2[name], encoding="utf-8")
    corpus = formats.read(tmp_path / name)
    assert corpus.format == "spacy"
    found = [(document.surface(e), e.start, e.label) for document in corpus.documents for e in document.entities]
    assert found == [("Ada Roe", 7, "PERSON")]
    assert len(corpus.documents) == (1 if name == "triples.json" else 2)
    assert corpus.notes.get("null in place of a document left out") == (1 if name == "annotator.json" else None)


def test_training_data_of_spacy_2_is_read_in_other_encodings(tmp_path: Path) -> None:
    content = json.dumps([["在𠮷", {"entities": [[1, 2, "LOC"]]}]], ensure_ascii=False)
    (tmp_path / "a.json").write_text(content, encoding="utf-16")
    assert formats.read(tmp_path / "a.json").documents[0].entities == (Entity(1, 2, "LOC"),)
    (tmp_path / "b.json").write_text(content, encoding="gb18030")
    options = Options(encoding="gb18030")
    assert formats.read(tmp_path / "b.json", None, options).documents[0].text == "在𠮷"


@settings(deadline=None, max_examples=40)
@given(st.lists(annotated(), min_size=1, max_size=3))
def test_training_data_of_spacy_2_comes_back(documents: list[Document]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        notes = formats.write(Path(folder) / "a.json", documents, "spacy")
        back = formats.read(Path(folder) / "a.json").documents
    assert [(d.text, d.entities) for d in back] == [(d.text, d.entities) for d in documents]
    assert notes == {"id left out": len(documents)}


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ('[["a", {"entities": [[0, 2, "x"]]}]]', ["[1].entities[0]", "[0, 2) is empty or outside"]),
        ('[["a", {"entities": [[0, 1]]}]]', ["bad.json:1, field [1].entities[0]", "expected [start, end, label]"]),
        ('[["a", {"entities": []}],\n["b"]]', ["bad.json:2", 'expected [text, {"entities": […]}]']),
        ('[["a", {"entities": []}],\n["b", {}]]', ["bad.json:2, field [1].entities", "missing"]),
        ('[["a", {"entities": []}], ["b", 3]]', ["field [1]", "the number 3"]),
        ('{"annotations": [["a", {"entities": []}], [3, {"entities": []}]]}', ["annotations[1][0]", "the number 3"]),
        ('{"text": "a", "entities": [[0, 1, "x"], [0, 1]]}', ["field entities[1]", "expected [start, end, label]"]),
    ],
)
def test_bad_training_data_of_spacy_2_is_refused_by_place(content: str, fragments: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(content, encoding="utf-8")
    assert_unreadable(tmp_path / "bad.json", None, fragments)


def test_prodigys_first_record_may_be_one_that_was_rejected(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "_input_hash": 1, "_task_hash": 2, "answer": "reject"},
        {"text": "Ada", "_input_hash": 3, "spans": [{"start": 0, "end": 3, "label": "PER"}], "answer": "accept"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    corpus = formats.read(tmp_path / "p.jsonl")
    assert corpus.format == "spacy" and [document.text for document in corpus.documents] == ["Ada"]
    assert corpus.notes["document left out: its answer is reject"] == 1
