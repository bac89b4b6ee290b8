"""Properties of every format: fixtures, round trips, recognition, bad input, and the real files if they are present."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpora import CLINIC, FIXTURES
from helpers.real import SHARED
from helpers.strategies import annotated
from spantune.core import DataError, Document, Entity
from spantune.data import Options, formats
from spantune.data.formats import few_shot
from spantune.data.raw import json_files, text_files
from spantune.data.raw.text_files import BOM_NOTE, CRLF_NOTE

FILES = {
    "native/clinic.jsonl": "native",
    "few_shot/inclusive.jsonl": "few_shot",
    "few_shot/one_too_small.jsonl": "few_shot",
    "few_shot/half_open.jsonl": "few_shot",
    "few_shot/mixed.jsonl": "few_shot",
    "cmeee/array.json": "cmeee",
    "cmeee/lines.jsonl": "cmeee",
    "marked/clinic.txt": "marked",
}


def round_trip(documents: list[Document], format: str, suffix: str = ".jsonl") -> tuple[Document, ...]:
    """Write documents and read them back; the format is not named if there is an entity to recognise it by."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"back{suffix}"
        formats.write(path, documents, format)
        if any(document.entities for document in documents):
            assert formats.detect(path) == format
        return formats.read(path, format).documents


def annotation(documents: object) -> list[tuple[str, tuple[Entity, ...]]]:
    return [(document.text, document.entities) for document in documents]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "format"), FILES.items())
def test_fixture_is_recognised_and_read(name: str, format: str) -> None:
    corpus = formats.read(FIXTURES / name)
    assert corpus.format == format
    assert corpus.path == FIXTURES / name
    found = [[(document.surface(e), e.label) for e in document.entities] for document in corpus.documents[:4]]
    assert found == CLINIC
    assert corpus.documents[3].text.endswith('𠮷先生的病案号写作"A\\7"。')
    assert len({document.id for document in corpus.documents}) == len(corpus.documents)


def test_ids_are_kept_or_made_from_stem_and_line() -> None:
    ids = {name: formats.read(FIXTURES / name).documents[2].id for name in FILES}
    assert ids["native/clinic.jsonl"] == "clinic/2"
    assert ids["few_shot/mixed.jsonl"] == "mixed-3"
    assert ids["cmeee/array.json"] == "array-3"
    assert ids["marked/clinic.txt"] == "clinic-7"


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("inclusive", {}),
        ("one_too_small", {few_shot.OFF_BY_ONE.message: 6}),
        ("half_open", {few_shot.HALF_OPEN.message: 6}),
        ("mixed", {few_shot.OFF_BY_ONE.message: 2}),
    ],
)
def test_few_shot_names_the_rule_of_end_idx(name: str, notes: dict[str, int]) -> None:
    corpus = formats.read(FIXTURES / "few_shot" / f"{name}.jsonl")
    assert corpus.notes == notes
    assert corpus.documents[0].meta == {"data_source": "clinic", "split": "train"}


def test_few_shot_is_written_with_inclusive_ends(tmp_path: Path) -> None:
    documents = formats.read(FIXTURES / "few_shot/one_too_small.jsonl").documents
    formats.write(tmp_path / "mended.jsonl", documents, "few_shot")
    mended = formats.read(tmp_path / "mended.jsonl")
    assert mended.notes == {}
    assert [(d.text, d.entities, d.meta) for d in mended.documents] == [(d.text, d.entities, d.meta) for d in documents]


def test_marked_keeps_white_space_at_both_ends(tmp_path: Path) -> None:
    (tmp_path / "spaces.txt").write_bytes(" {bod|肺} \t\r\n".encode())
    assert formats.read(tmp_path / "spaces.txt").documents[0].text == " 肺 \t"


def test_marked_groups_comments_and_escapes() -> None:
    corpus = formats.read(FIXTURES / "marked" / "clinic.txt")
    assert [document.meta.get("group") for document in corpus.documents] == ["肩痛", "肩痛", "会诊", None, None]
    assert corpus.documents[4].text == "# 号床的化验单写着 {空|白}。"
    assert corpus.notes == {"comment line": 1}


def test_marked_file_is_written_as_it_was_read(tmp_path: Path) -> None:
    source = FIXTURES / "marked" / "clinic.txt"
    notes = formats.write(tmp_path / "again.txt", formats.read(source).documents, "marked")
    kept = [line for line in source.read_text("utf-8").splitlines() if line and not line.startswith("# written")]
    assert (tmp_path / "again.txt").read_text("utf-8").splitlines() == kept
    assert notes == {"id left out": 5}


def test_native_keeps_score_meta_and_notes_what_it_does_not_read(tmp_path: Path) -> None:
    document = Document("a", "肺炎", (Entity(0, 2, "dis", 0.25),), {"ward": [1, {"x": None}]})
    assert formats.write(tmp_path / "a.jsonl", [document]) == {}
    back = formats.read(tmp_path / "a.jsonl").documents[0]
    assert (back, back.entities[0].score) == (document, 0.25)

    row = {"text": "肺炎", "entities": [{"start": 0, "end": 2, "label": "dis", "by": "me"}], "source": "x"}
    (tmp_path / "b.jsonl").write_text(json.dumps(row), encoding="utf-8")
    corpus = formats.read(tmp_path / "b.jsonl")
    assert corpus.documents[0].id == "b-1"
    assert corpus.notes == {
        "id made from the line number": 1,
        "entity without a copy of its text in the file: offsets cannot be verified": 1,
        "entity field 'by' not read": 1,
        "field 'source' not read; put it under meta": 1,
    }


@pytest.mark.parametrize("indent", [None, 2])
def test_native_objects_in_an_array_are_read_with_numbers_or_nothing_for_ids(
    indent: int | None, tmp_path: Path
) -> None:
    entity = {"start": 0, "end": 2, "label": "dis"}
    rows: list[dict[str, object]] = [{"text": "无", "entities": []}, {"id": 7, "text": "肺炎", "entities": [entity]}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps([*rows, {"id": "x", "text": "", "entities": []}], indent=indent), encoding="utf-8")
    corpus = formats.read(path)
    assert corpus.format == "native"
    assert [(d.id, d.entities) for d in corpus.documents] == [("a-1", ()), ("7", (Entity(0, 2, "dis"),)), ("x", ())]


def test_ids_of_lines_may_be_numbers_or_null(tmp_path: Path) -> None:
    entities = '"entities": [{"start": 0, "end": 1, "label": "x"}]'
    (tmp_path / "in.jsonl").write_text(
        "\n".join(f'{{"id": {id}, "text": "a", {entities}}}' for id in ("7", "null", '"b"')), encoding="utf-8"
    )
    corpus = formats.read(tmp_path / "in.jsonl")
    assert [document.id for document in corpus.documents] == ["7", "in-2", "b"]
    assert corpus.notes["id is a number, taken as text"] == corpus.notes["id made from the line number"] == 1


@pytest.mark.parametrize(("id", "format"), [({}, "cmeee"), ({"id": "a"}, "native")])
def test_an_array_of_texts_without_entities_is_native_where_it_has_ids(
    id: dict[str, str], format: str, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{**id, "text": "a", "entities": []}]), encoding="utf-8")
    assert formats.read(tmp_path / "a.json").format == format


@pytest.mark.parametrize("format", ["few_shot", "cmeee", "marked"])
def test_writer_counts_what_the_format_has_no_place_for(format: str, tmp_path: Path) -> None:
    document = Document("a", "肺炎", (Entity(0, 2, "dis", 0.5),), {"ward": 3})
    notes = formats.write(tmp_path / "out.jsonl", [document, document.with_entities(())], format)
    assert notes == {"id left out": 2, "score left out": 1} | ({"meta left out": 2} if format == "marked" else {})
    if format != "marked":
        assert formats.read(tmp_path / "out.jsonl").documents[0].meta == {"ward": 3}


@settings(deadline=None)
@given(st.lists(annotated(), min_size=1, max_size=4))
def test_native_round_trip_is_the_identity(documents: list[Document]) -> None:
    named = [Document(f"d/{n}", d.text, d.entities, {"group": d.text}) for n, d in enumerate(documents)]
    assert round_trip(named, "native") == tuple(named)


@settings(deadline=None)
@given(st.lists(annotated(), min_size=1, max_size=4))
def test_few_shot_round_trip_keeps_texts_and_entities(documents: list[Document]) -> None:
    assert annotation(round_trip(documents, "few_shot")) == annotation(documents)


@settings(deadline=None)
@given(st.lists(annotated(), min_size=1, max_size=4), st.sampled_from([".json", ".jsonl"]))
def test_cmeee_round_trip_keeps_texts_and_entities(documents: list[Document], suffix: str) -> None:
    assert annotation(round_trip(documents, "cmeee", suffix)) == annotation(documents)


@pytest.mark.no_cover
@settings(deadline=None)
@given(st.lists(st.tuples(annotated(crossing=False, on_a_line=True), st.sampled_from([None, "心衰", "# a {x|"]))))
def test_marked_round_trip_keeps_texts_entities_and_groups(
    pairs: list[tuple[Document, str | None]],
) -> None:
    documents = [Document("?", d.text, d.entities, {"group": g} if g else {}) for d, g in pairs]
    if documents:
        back = round_trip(documents, "marked", ".txt")
        assert annotation(back) == annotation(documents)
        assert [document.meta for document in back] == [document.meta for document in documents]


def test_formats_convert_into_each_other(tmp_path: Path) -> None:
    expected = annotation(formats.read(FIXTURES / "native/clinic.jsonl").documents)
    documents: object = formats.read(FIXTURES / "few_shot/one_too_small.jsonl").documents
    for step, format in enumerate(["cmeee", "marked", "native", "few_shot", "native"]):
        path = tmp_path / f"{step}.jsonl"
        formats.write(path, documents, format)  # type: ignore[arg-type]
        documents = formats.read(path).documents
        assert annotation(documents) == expected


NATIVE = b'{"id": "a", "text": "\xe8\x82\xba\xe7\x82\x8e", "entities": [%b]}\n'
FEW = b'{"text": "lung pain", "entities": [%b]}\n'
BAD = {
    "blank": (None, b" \n\r\n", ["is empty"]),
    "no bytes": (None, b"", ["is empty"]),
    "bom alone": (None, b"\xef\xbb\xbf", ["is empty"]),
    "gb18030": (
        None,
        FEW % b"" + "{肺炎}".encode("gb18030"),
        ["bad.txt:2:", "not UTF-8", "offset 39 ", "gb18030 if the text is Chinese"],
    ),
    "gb18030 array": (None, b"[\n" + "{肺炎}".encode("gb18030"), ["bad.txt:2:", "offset 3 "]),
    "not json": (None, FEW % b"" + b"{'text': 1}\n", ["bad.txt:2:", "column 2", "double quotes"]),
    "cut short": (None, b'{"text": "lung"', ["bad.txt:1:", "not JSON at column 16"]),
    "two objects": (None, b'{"text": "a", "entities": []} {}', ["not JSON at column 31", "more follows"]),
    "not an object": (None, FEW % b"" + b"[1]\n", ["bad.txt:2:", "found a list", "expected an object"]),
    "repeated key": (None, b'{"text": "a", "text": "b"}', ["'text' is repeated"]),
    "nan": (None, NATIVE % b'{"start": 0, "end": 1, "label": "x", "score": NaN}', ["NaN is not a JSON number"]),
    "too deep": (None, b'{"a":' * 100_000, ["bad.txt:1:", "not JSON"]),
    "endless number": (None, b'{"a": ' + b"1" * 5000 + b"}", ["bad.txt:1:", "not JSON"]),
    "plain text": (None, b"nothing is marked here\n", ["'nothing is marked", ", ".join(formats.FORMATS)]),
    "other objects": (
        None,
        b'{"text": "a", "sentiment": 3}',
        ["text, sentiment", ", ".join(formats.FORMATS)],
    ),
    "array not closed": (None, b'[\n{"text": "a", "entities": []}', ["bad.txt:2:", "expected , or ]"]),
    "array trailing comma": (None, b'[{"text": "a", "entities": []},\n]', ["bad.txt:2:", "column 1"]),
    "array and more": (None, b'[{"text": "a", "entities": []}]\n{}', ["bad.txt:2:", "more follows the array"]),
    "array of nothing": (None, b"[ ]", ["array is empty"]),
    "array of numbers": (None, b"[\n{}, 3]", ["of no known format"]),
    "array element": ("cmeee", b'[{"text": "a", "entities": []},\n3]', ["bad.txt:2:", "found the number 3"]),
    "no text": (None, b'{"entities": [{"start": 0, "end": 1, "label": "x"}]}', ["field text", "missing"]),
    "no entities": ("native", b'{"text": "a", "entitys": []}', ["field entities", "missing", "entitys", "[] for a"]),
    "text is a number": (None, b'{"id": "a", "text": 3, "entities": []}', ["field text", "the number 3", "a string"]),
    "text is null": (None, b'{"id": "a", "text": null, "entities": []}', ["field text", "found null"]),
    "entity is a list": (None, NATIVE % b'{"start": 0, "end": 1, "label": "x"}, []', ["field entities[1]", "a list"]),
    "start is text": (
        None,
        NATIVE % b'{"start": "0", "end": 1, "label": "x"}',
        ["entities[0].start", "found a string"],
    ),
    "start is a boolean": (None, NATIVE % b'{"start": true, "end": 2, "label": "x"}', ["entities[0].start", "boolean"]),
    "start is a float": (None, NATIVE % b'{"start": 0.0, "end": 2, "label": "x"}', ["entities[0].start", "whole"]),
    "no end": (None, NATIVE % b'{"start": 0, "label": "x"}', ["entities[0].end", "missing"]),
    "empty label": (None, NATIVE % b'{"start": 0, "end": 1, "label": ""}', ["entities[0].label", "empty"]),
    "empty span": (None, NATIVE % b'{"start": 1, "end": 1, "label": "x"}', ["bad.txt:1", "[1, 1)", "2 characters"]),
    "outside": (None, NATIVE % b'{"start": 1, "end": 3, "label": "x"}', ["[1, 3)", "outside", "half-open"]),
    "byte offsets": (
        None,
        NATIVE % b'{"start": 0, "end": 1, "label": "x", "text": "\xe7\x82\x8e"}',
        ["entities[0].text", "'炎'", "'肺'", "it occurs at 1", "code points"],
    ),
    "score": (None, NATIVE % b'{"start": 0, "end": 1, "label": "x", "score": 1.5}', ["entities[0].score", "1.5"]),
    "meta": (None, b'{"id": "a", "text": "a", "entities": [], "meta": []}', ["field meta", "an object"]),
    "repeated id": (None, NATIVE % b"" + NATIVE % b"", ["bad.txt:2", "field id", "'a' is repeated", "line 1"]),
    "id is a list": (None, b'{"id": [7], "text": "a", "entities": []}', ["field id", "a list", "a string"]),
    "no entities said": (None, b'{"id": "7", "text": "a", "entities": null}', ["field entities", "null", "a list"]),
    "object over lines": (None, b'{\n "text": "a",\n "entities": []\n}\n', ["does not end on its line", "jq -c"]),
    "surrogate": (None, b'{"id": "a", "text": "x\\ud83d", "entities": []}', ["U+D83D", "character 1"]),
    "few_shot surface": (
        None,
        FEW % b'{"start_idx": 1, "end_idx": 4, "entity_text": "lung", "entity_label": "b"}',
        ["bad.txt:1", "entities[0].entity_text", "'lung'", "'ung '", "it occurs at 0", "mend"],
    ),
    "few_shot absent": (
        None,
        FEW % b'{"start_idx": 0, "end_idx": 4, "entity_text": "liver", "entity_label": "b"}',
        ["does not occur in the text"],
    ),
    "few_shot negative": (
        None,
        FEW % b'{"start_idx": -5, "end_idx": -2, "entity_text": " pai", "entity_label": "b"}',
        ["at -5", "it occurs at 4"],
    ),
    "cmeee negative": (
        None,
        FEW % b'{"start_idx": -5, "end_idx": -2, "entity": " pai", "type": "b"}',
        ["at -5", "it occurs at 4"],
    ),
    "few_shot end": (
        None,
        FEW % b'{"start_idx": 0, "end_idx": 7, "entity_text": "lung", "entity_label": "b"}',
        ["entities[0].entity_text", "ends 8 characters", "'lung' has 4", "mend the end"],
    ),
    "few_shot no label": (
        None,
        FEW % b'{"start_idx": 0, "end_idx": 3, "entity_text": "lung"}',
        ["entities[0].entity_label", "missing", "start_idx, end_idx, entity_text"],
    ),
    "cmeee end": (
        None,
        b"[" + FEW % b'{"start_idx": 0, "end_idx": 4, "entity": "lung", "type": "b"}' + b"]",
        ["entities[0].entity", "ends 5 characters", "'lung' has 4", "mend the end"],
    ),
    "cmeee surface": (
        None,
        FEW % b'{"start_idx": 5, "end_idx": 8, "entity": "lung", "type": "b"}',
        ["entities[0].entity", "'pain'", "it occurs at 0"],
    ),
    "cmeee array wanted": ("cmeee", b"3", ["bad.txt:1", "found the number 3", "expected an object"]),
    "mark not closed": (None, b"ok\n{bod|lung} {sym|pain\n", ["bad.txt:2", "column 12", "'sym' is not closed"]),
    "mark not opened": ("marked", b"lung}", ["column 5", "closes no mark"]),
    "mark without label": ("marked", b"{bod|a} {lung}", ["column 9", "without a label"]),
    "mark with empty label": ("marked", b"{|lung}", ["label is empty"]),
    "mark without text": (None, b"{bod|}", ["covers no text"]),
    "bare bar": (None, b"{bod|lung|pain}", ["column 10", "outside the head"]),
    "unknown escape": (None, b"{bod|lung}\\n", ["column 11", "unknown escape \\n", "\\{ \\} \\| \\\\ \\#"]),
    "headings only": (None, b"# group: lungs\n", ["no document was found"]),
    "unknown format": ("nativ", NATIVE % b"", ["did you mean 'native'", ", ".join(sorted(formats.FORMATS))]),
}


@pytest.mark.parametrize(("format", "content", "fragments"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(format: str | None, content: bytes, fragments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        formats.read(path, format)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def test_an_array_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every small chunk size is tried, so that values, escapes and characters are cut at every place."""
    expected = formats.read(FIXTURES / "cmeee/array.json").documents
    for size in (1, 2, 3, 7, 64):
        monkeypatch.setattr(text_files, "CHUNK", size)
        assert formats.read(FIXTURES / "cmeee/array.json").documents == expected
    (tmp_path / "bad.json").write_text('[\n{"text": "肺", "entities": []},\n{"text": 1.5e}]', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.json:3: not JSON at column 13"):
        formats.read(tmp_path / "bad.json", "cmeee")


def test_a_line_or_object_that_no_document_has_is_refused_without_reading_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LINE_LIMIT", 1 << 20)
    monkeypatch.setattr(json_files, "LINE_LIMIT", 1 << 20)
    for name, content in {"line.jsonl": '{"id": "a", "text": "%s', "array.json": '[{"text": "%s'}.items():
        (tmp_path / name).write_text(content % ("x" * (3 << 20)), encoding="utf-8")
        with pytest.raises(DataError, match=f"{name}:1: over 1 MiB in one piece.*--format"):
            formats.read(tmp_path / name)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        formats.read(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="a folder with nothing in it, which is of no known format"):
        formats.read(tmp_path)
    with pytest.raises(DataError, match="this is a folder"):
        formats.read(tmp_path, "native")
    with pytest.raises(DataError, match="no such file"):
        formats.read(tmp_path / "absent.json", "cmeee")


@pytest.mark.parametrize(
    ("content", "found"), [("{}", "an empty object"), ('{"a": 1, "b": 2}', "an object with a, b"), ("[{}]", "an empty")]
)
def test_an_object_of_no_format_is_said_with_its_fields(content: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"found {found}.*, which is of no known format"):
        formats.detect(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["native/clinic.jsonl", "cmeee/array.json", "marked/clinic.txt"])
def test_bom_and_crlf_are_accepted_and_noted(name: str, tmp_path: Path) -> None:
    source = FIXTURES / name
    copy = tmp_path / source.name
    content = source.read_bytes()
    copy.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    corpus, original = formats.read(copy), formats.read(source)
    assert corpus.documents == original.documents
    assert corpus.notes == {BOM_NOTE: 1, CRLF_NOTE: content.count(b"\n"), **original.notes}


def test_an_array_on_one_line_may_be_longer_than_any_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = '{"text": "lung", "entities": [{"start_idx": 0, "end_idx": 3, "type": "bod", "entity": "lung"}]}'
    (tmp_path / "long.json").write_text("[" + ",".join(500 * [row]) + "]", encoding="utf-8")
    for module in (text_files, json_files):
        monkeypatch.setattr(module, "LINE_LIMIT", 1 << 10)
    assert formats.detect(tmp_path / "long.json") == "cmeee"


def test_blank_lines_first_do_not_mislead_recognition(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(500 * "\r\n" + "{bod|lung}\n", encoding="utf-8")
    assert formats.detect(tmp_path / "blank.txt") == "marked"


def test_a_text_without_entities_first_does_not_mislead_recognition(tmp_path: Path) -> None:
    path = tmp_path / "late.jsonl"
    empty = '{"text": "nothing", "entities": []}\n'
    entity = '{"start_idx": 0, "end_idx": 3, "type": "bod", "entity": "lung"}'
    path.write_text(empty * 500 + f'{{"text": "lung", "entities": [{entity}]}}\n', encoding="utf-8")
    assert formats.detect(path) == "cmeee"
    path.write_text(empty, encoding="utf-8")
    assert formats.read(path).documents == (Document("late-1", "nothing"),)


@pytest.mark.parametrize(
    ("name", "content"), [("t.jsonl", '{"text": "肺炎", "id": "7"}\n'), ("t.json", '[{"text": "肺炎"}]')]
)
def test_texts_without_annotation_are_read_only_where_they_are_welcome(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = list(formats.stream(tmp_path / name, None, Counter(), Options(unannotated=True)))
    assert [(document.text, document.entities) for document in found] == [("肺炎", ())]
    with pytest.raises(DataError, match=r"t\.jsonl?:1, field entities: the field is missing"):
        formats.read(tmp_path / name)


def test_streaming_yields_before_a_later_line_fails(tmp_path: Path) -> None:
    path = tmp_path / "half.jsonl"
    path.write_bytes(NATIVE % b"" + b"{\n")
    notes: Counter[str] = Counter()
    documents = formats.stream(path, "native", notes)
    assert next(documents).id == "a"
    with pytest.raises(DataError, match=r"half\.jsonl:2"):
        next(documents)


@pytest.mark.parametrize(
    ("document", "format", "message"),
    [
        (Document("d", "abcd", (Entity(0, 3, "x"), Entity(1, 4, "y"))), "marked", r"'d'.*'abc' \[0, 3\).*cross"),
        (Document("d", "a\nb"), "marked", "line break"),
        (Document("d", "a\r"), "marked", "line break"),
        (Document("d", " "), "marked", "blank"),
        (Document("d", "a", (Entity(0, 1, " "),)), "marked", "label ' '"),
        (Document("d", "a", meta={"group": "x\ny"}), "marked", "group"),
        (Document("d", "a", meta={"text": 1}), "few_shot", "meta key 'text'"),
        (Document("d", "a", meta={"entities": 1}), "cmeee", "meta key 'entities'"),
        (Document("d", "a\ud83d"), "native", r"U\+D83D"),
        (Document("d", "a"), "markd", "did you mean 'marked'"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_the_old_file(
    document: Document, format: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "kept.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        formats.write(path, [Document("first", "fine"), document], format)
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_refuses_a_missing_folder_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        formats.write(tmp_path / "no" / "x.jsonl", [Document("d", "a")])
    (tmp_path / "taken").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        formats.write(tmp_path / "taken", [Document("d", "a")])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_bundled_names_resolve_into_the_package_and_unknown_ones_list_the_valid() -> None:
    path = formats.resolve("bundled:clinical-zh-train")
    assert path.name == "clinical-zh-train.txt"
    assert path.parent == Path(formats.__file__).parents[1] / "bundled"
    with pytest.raises(DataError) as caught:
        formats.resolve("bundled:clinical-zh-dev")
    assert all(name in str(caught.value) for name in formats.BUNDLED)
    assert formats.resolve("corpus.txt") == Path("corpus.txt")


@pytest.mark.parametrize("name", formats.BUNDLED)
def test_bundled_corpora_are_recognised_and_read(name: str) -> None:
    corpus = formats.read(f"bundled:{name}")
    assert corpus.format == "marked"
    assert any(document.entities for document in corpus.documents)
    assert all("group" in document.meta for document in corpus.documents)


def test_formats_import_neither_torch_nor_transformers() -> None:
    code = "import sys, spantune.data; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
@pytest.mark.parametrize(
    ("name", "format", "documents", "entities", "notes"),
    [
        ("cmeee_v2_few_shot/cmeee.jsonl", "few_shot", 2500, 13086, {few_shot.OFF_BY_ONE.message: 13086}),
        ("cmeee_v1/train.jsonl", "few_shot", 15000, 61794, {}),
        ("cmeee_v1/dev.jsonl", "few_shot", 2500, 10263, {}),
        ("cmeee_v1/CMeEE_dev_sample.json", "cmeee", 500, 2128, {}),
    ],
)
def test_real_files_are_recovered_whole(
    name: str, format: str, documents: int, entities: int, notes: dict[str, int]
) -> None:
    corpus = formats.read(SHARED / name)
    assert (corpus.format, corpus.notes) == (format, notes)
    assert len(corpus.documents) == documents
    raw = (SHARED / name).read_text("utf-8")
    rows = json.loads(raw) if raw.startswith("[") else [json.loads(line) for line in raw.splitlines()]
    found = [sorted((d.surface(e), e.start, e.label) for e in d.entities) for d in corpus.documents]
    expected = [
        sorted((e.get("entity", e.get("entity_text")), e["start_idx"], e.get("type", e.get("entity_label"))) for e in r)
        for r in (row["entities"] for row in rows)
    ]
    assert found == expected
    assert sum(map(len, found)) == entities


LOSSLESS = {"few_shot": ".jsonl", "cmeee": ".json", "native": ".jsonl", "label_studio": ".json", "doccano": ".jsonl",
            "spacy": ".jsonl", "table": ".csv", "brat": "", "chip": ".txt"}  # fmt: skip


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_real_documents_survive_every_lossless_format_in_a_row(tmp_path: Path) -> None:
    """The published file is repaired and converted through all these formats and back."""
    source = formats.read(SHARED / "cmeee_v2_few_shot/cmeee.jsonl").documents
    documents = source
    for format, suffix in [*LOSSLESS.items(), ("few_shot", ".jsonl")]:
        path = tmp_path / f"{format}{suffix}"
        formats.write(path, documents, format)
        assert format == "chip" or formats.detect(path) == format
        documents = formats.read(path, format).documents
        assert sorted(annotation(documents)) == sorted(annotation(source)), format


def test_an_array_of_unannotated_texts_on_one_line_is_recognised_in_one_pass(tmp_path: Path) -> None:
    """Searching the beginning of the file again for each text took minutes."""
    records = [{"text": f"患者腹痛三天，无发热，见 {{sym|x}}。{number}", "entities": []} for number in range(15_000)]
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    assert formats.detect(path) == "cmeee"


ENTITY = {"start_idx": 2, "end_idx": 3, "entity_text": "腹痛", "entity_label": "sym"}
FEW_SHOT = {"text": "患者腹痛", "entities": [ENTITY]}


def test_few_shot_may_be_an_array(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([FEW_SHOT, FEW_SHOT], indent=1), encoding="utf-8")
    corpus = formats.read(tmp_path / "a.json")
    assert (corpus.format, [document.id for document in corpus.documents]) == ("few_shot", ["a-1", "a-2"])
    assert [document.entities for document in corpus.documents] == [(Entity(2, 4, "sym"),)] * 2


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (json.dumps({"train": [FEW_SHOT], "test": [FEW_SHOT]}), "'train' and 'test'; take them out: jq -c '.train[]'"),
        (json.dumps({"my docs": [FEW_SHOT]}), "jq -c '.[\"my docs\"][]' FILE"),
        (json.dumps({"text": "a", "entities": '[[0, 1, "x"]]'}), "take it out of there: jq -c '.entities |= fromjson'"),
        (json.dumps([{"text": "a", "spans": "[]"}]), "jq -c '.[] | .spans |= fromjson' FILE > NEW.jsonl"),
        ("[('a', {'entities': []})]", "Python's notation, of which json.dumps(ast.literal_eval(TEXT)) makes JSON"),
        ("{'text': 'a', 'entities': []}", "this is Python's notation"),
        ('{"text": "a", "entities": []}\n\ufeff{"text": "a", "entities": []}', "a byte-order mark stands there"),
    ],
)
def test_a_file_that_wraps_documents_gets_the_way_out(content: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content + "\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        formats.read(tmp_path / "a.json")
    assert remedy in str(caught.value)


@pytest.mark.parametrize("name", ["entity", "golden-entity-mentions", "ner"])
def test_entities_are_not_taken_for_documents(name: str, tmp_path: Path) -> None:
    record = {"content": "ab", name: [{"type": "x", "text": "a", "offset": [0, 0]}]}
    (tmp_path / "a.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="no known format") as caught:
        formats.read(tmp_path / "a.json")
    assert "jq" not in str(caught.value)
