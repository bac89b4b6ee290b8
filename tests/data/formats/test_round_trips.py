"""Every format reads back what it writes; each loss is either refused or counted in a note."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from helpers.strategies import annotated, characters
from spantune.core import DataError, Document, Entity
from spantune.data import formats

# File names that select a writer's kind of file; other writers accept any name.
NAMES = {
    "cmeee": ("back.json", "back.jsonl"),
    "chat": ("back.json", "back.jsonl"),
    "gliner": ("back.json", "back.jsonl"),
    "spacy": ("back.jsonl", "back.json", "back.spacy"),
    "table": ("back.csv", "back.tsv", "back.parquet"),
}
NEEDED = {"back.spacy": "spacy", "back.parquet": "pyarrow", "datasets": "datasets"}
WRITTEN = [name for name, format in formats.FORMATS.items() if format.write]
FILES = [(name, file) for name in WRITTEN for file in NAMES.get(name, ("back",))]
IDS = [f"{name}{Path(file).suffix}" for name, file in FILES]
# Words in a note that counts a loss of this kind.
SAYS = {
    "id": ("id ", "id's"),
    "score": ("score",),
    "meta": ("meta", "label"),
    "text": ("white space", "text"),
    "entity": ("entity", "entities"),
    "document": ("text of an earlier document",),
}

words = st.text(characters, max_size=4)
scalars = st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -0.0, 2**70, "", None, True]) | st.floats() | words
values = st.recursive(scalars, lambda v: st.lists(v, max_size=2) | st.dictionaries(words, v, max_size=2), max_leaves=3)
names_of_fields = ["group", "id", "text", "label", "entities", "meta", "tokens", "relations", "spans", "Comments"]
metas = st.dictionaries(words | st.sampled_from([*names_of_fields, *formats.FORMATS]), values, max_size=2)
ids = words.filter(bool) | st.sampled_from(["1", "01", "d/2", "x y", "-1", "1e5", "A,\"b\"\t'c'"])


@st.composite
def corpora(draw: st.DrawFn) -> list[Document]:
    """Draw documents with repeated entities, scores, unusual ids and any meta."""
    on_a_line, scores = draw(st.booleans()), st.sampled_from(draw(st.sampled_from([[None], [0.0, 1.0], [None, 0.25]])))
    texts = draw(st.lists(annotated(crossing=not on_a_line, on_a_line=on_a_line), min_size=1, max_size=3))
    names = draw(st.lists(ids, min_size=len(texts), max_size=len(texts), unique=True))
    documents = []
    for name, document in zip(names, texts, strict=True):
        entities = [replace(entity, score=draw(scores)) for entity in document.entities]
        repeated = entities[: draw(st.integers(0, 1))]
        documents.append(Document(name, document.text, (*entities, *repeated), draw(metas)))
    return documents


ODD = [
    Document(
        "a",
        "\u2028x\u0085, \"y\"\t'z' \r\n|{}\\",
        (Entity(1, 2, "b\r"), Entity(1, 2, "b\r"), Entity(0, 9, "c")),
        {"x": [None]},
    ),
    Document("b", "", (), {"": {"": ""}}),
    Document("c", "none", (Entity(0, 4, "b", 0.5),), {"n": 0.1}),
]
PLAIN = [Document("a", "lung pain", (Entity(0, 4, "b"), Entity(0, 9, "sign\r"))), Document("b", "lung")]


def differences(before: Sequence[Document], after: Sequence[Document]) -> set[str]:
    """Return the kinds of difference, as named in `SAYS`; tokens that a reader adds to the meta are ignored."""
    if len(before) != len(after):
        return {"document"}
    kinds = set()
    for old, new in zip(before, after, strict=True):
        if old.id != new.id:
            kinds.add("id")
        if old.text != new.text:
            kinds.add("text")
        elif old.entities != new.entities:
            kinds.add("entity")
        elif [entity.score for entity in old.entities] != [entity.score for entity in new.entities]:
            kinds.add("score")
        added = {} if "tokens" in old.meta else {"tokens": new.meta["tokens"]} if "tokens" in new.meta else {}
        if as_text({**old.meta, **added}) != as_text(new.meta):
            kinds.add("meta")
    return kinds


def as_text(meta: Mapping[str, object]) -> str:
    return json.dumps(meta, sort_keys=True)


@pytest.mark.parametrize(("format", "file"), FILES, ids=IDS)
def test_what_is_written_is_read_or_refused_or_counted(format: str, file: str) -> None:
    if (library := NEEDED.get(file) or NEEDED.get(format)) and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")

    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(corpora())
    @example(ODD)
    @example(ODD[1:])
    @example(PLAIN)
    @example([Document("a", "lung", (Entity(0, 4, "b"),), {format: {"entities": [], "x": 1}})])
    def trip(documents: list[Document]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / file
            try:
                notes = formats.write(path, documents, format)
            except DataError:
                assert list(Path(folder).iterdir()) == []
                return
            back = formats.read(path, format)
        after = list(back.documents)
        if format == "brat":  # brat reads documents in the order of their names
            documents, after = (sorted(given, key=lambda document: document.id) for given in (documents, after))
        said = [*notes, *back.notes]
        for kind in differences(documents, after):
            assert any(word in note for word in SAYS[kind] for note in said), (kind, said)

    trip()


@pytest.mark.parametrize(("format", "file"), FILES, ids=IDS)
@pytest.mark.parametrize("meta", [{"x": math.inf}, {"x": [{"y": math.nan}]}], ids=["infinity", "nan"])
def test_no_file_holds_a_number_that_no_json_reader_takes(
    format: str, file: str, meta: dict[str, object], tmp_path: Path
) -> None:
    if (library := NEEDED.get(file) or NEEDED.get(format)) and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    document = Document("a", "lung pain", (Entity(0, 4, "b"),), meta)
    try:
        notes = formats.write(tmp_path / file, [document], format)
    except DataError as error:
        assert "cannot hold" in str(error)
        assert list(tmp_path.iterdir()) == []
    else:
        assert notes["meta left out"] == 1


@pytest.mark.parametrize("depth", [20, 800, 900, 950, 1000, 10_000])
@pytest.mark.parametrize("format", ["native", "label_studio", "doccano", "few_shot"])
def test_meta_nested_too_deeply_is_refused_by_name(format: str, depth: int, tmp_path: Path) -> None:
    nested = "[" * depth + "]" * depth
    (tmp_path / "in.jsonl").write_text(f'{{"id": "a", "text": "x", "entities": [], "meta": {{"x": {nested}}}}}')
    try:
        documents = formats.read(tmp_path / "in.jsonl", "native").documents
    except DataError as error:
        assert depth > 20 and "nested too deeply" in str(error)
        return
    formats.write(tmp_path / "out.json", documents, format)
    assert [document.meta for document in formats.read(tmp_path / "out.json", format).documents] == [documents[0].meta]
