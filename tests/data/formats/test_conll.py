"""CoNLL: fixtures, tag schemes, joining tokens, round trips, bad lines, documents that it cannot hold, real files."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.real import SHARED
from helpers.refusal import assert_unwritable
from helpers.strategies import annotated, characters
from spantune.core import ConfigError, DataError, Document, Entity
from spantune.data import Options, formats
from spantune.data.raw.document import RawDocument
from spantune.data.raw.tags import decode, encode, parse_tag
from spantune.data.raw.text_files import BOM_NOTE, CRLF_NOTE
from spantune.data.raw.tokens import split

FIXTURES = Path(__file__).parents[2] / "fixtures" / "conll"

JOINED = "text joined from tokens"
NUMBER = "segmentation number taken off a token"
COLUMNS = "other columns not read"
SPACES = "white space that reading does not restore"
WARD = [
    ("右肩疼痛三天，血钾5.1。", [("右肩疼痛", "sym"), ("血钾", "ite")]),
    ("无不适。", []),
    ("𠮷先生患带状疱疹。", [("𠮷先生", "per"), ("带状疱疹", "dis")]),
]
NEWS = [
    ("Anna Berg left Lyon Spain .", [("Anna Berg", "PER"), ("Lyon", "LOC"), ("Spain", "LOC")]),
    ("Cafe\u0301 's cafés Le\u0301a", [("Cafe\u0301", "ORG"), ("Le\u0301a", "PER")]),
]
UNIVERSAL = [
    ("The patient's  potassium (5.1) rose.", [("potassium", "ite")]),
    ("用CT 检查", [("CT 检查", "equ")]),
]


def found(documents: object) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(d.text, [(d.surface(e), e.label) for e in d.entities]) for d in documents]  # type: ignore[attr-defined]


def lines(*rows: str) -> str:
    """Return token lines for rows of "token tag"; an empty row ends a sentence."""
    return "".join(row.replace(" ", "\t") + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "expected", "notes"),
    [
        ("characters.conll", WARD, {JOINED: 3}),
        ("bmes.txt", WARD, {JOINED: 3}),
        ("segmented.txt", WARD, {JOINED: 3, NUMBER: 26}),
        ("news.iob1", NEWS, {JOINED: 2, COLUMNS: 2, "tags read as IOB1": 1}),
        ("universal.conll", UNIVERSAL, {}),
    ],
)
def test_fixture_is_recognised_and_read(
    name: str, expected: list[tuple[str, list[tuple[str, str]]]], notes: dict[str, int]
) -> None:
    corpus = formats.read(FIXTURES / name)
    assert (corpus.format, corpus.notes) == ("conll", notes)
    assert found(corpus.documents) == expected


def test_ids_groups_and_tokens_are_kept_where_the_text_does_not_show_them() -> None:
    ward = formats.read(FIXTURES / "characters.conll").documents
    assert [(document.id, document.meta) for document in ward] == [
        ("characters-1", {}),
        ("characters-15", {}),
        ("characters-20", {}),
    ]
    universal = formats.read(FIXTURES / "universal.conll").documents
    assert [document.id for document in universal] == ["ward-1", "ward/2"]
    assert [document.meta for document in universal] == [
        {"group": "ward", "tokens": universal[0].meta["tokens"]},
        {"group": "ward", "tokens": ["用", "CT", "检查"]},
    ]
    news = formats.read(FIXTURES / "news.iob1").documents
    assert [document.meta["group"] for document in news] == ["document 1", "document 2"]


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        (["a B-x", "b I-x", "c I-x", "d O", "e B-x", "f B-x"], "IOB2"),
        (["a I-x", "b I-x", "c I-x", "d O", "e I-x", "f B-x"], "IOB1"),
        (["a B-x", "b I-x", "c E-x", "d O", "e S-x", "f S-x"], "BIOES"),
        (["a B-x", "b M-x", "c E-x", "d O", "e S-x", "f S-x"], "BMES"),
        (["a B-x", "b I-x", "c L-x", "d O", "e U-x", "f U-x"], "BIOUL"),
        (["a B-x", "b I-x", "c E-x", "d O", "e W-x", "f W-x"], "BIOEW"),
    ],
)
def test_every_scheme_is_told_from_its_tags(rows: list[str], scheme: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(lines(*rows), encoding="utf-8")
    assert found(formats.read(tmp_path / "x").documents) == [("a b c d e f", [("a b c", "x"), ("e", "x"), ("f", "x")])]


BROKEN = {
    "I after O": (["a O", "b I-x", "", "c B-x", "d O"], 2, "I-x begins an entity after O", "IOB2, has B", "x 'b'"),
    "I first": (["b I-x", "c O", "", "c B-x"], 1, "I-x begins an entity at the beginning", "IOB2, has B", "x 'b'"),
    "I of another": (["a B-y", "b I-x", "", "c B-x"], 2, "I-x begins an entity after B-y", "IOB2", "x 'b'"),
    "E without B": (["c S-x", "a O", "b E-x"], 3, "E-x begins an entity after O", "BIOES, has B or S", "x 'b'"),
    "B not closed": (["c S-x", "", "a B-x", "b I-x"], 4, "I-x ends an entity", "BIOES, has E or S", "x 'a b'"),
    "S not begun": (["c S-x", "b I-x", "a E-x"], 2, "I-x begins an entity after S-x", "BIOES", "x 'b a'"),
    "stray E": (["c B-x", "", "d B-x", "", "a B-x", "b E-x"], 6, "E-x ends an entity", "no such tag", "x 'a b'"),
    "free B": (["c I-x", "", "d I-x", "", "a O", "b B-x"], 6, "B-x begins an entity after O", "IOB1, has I", "x 'b'"),
}


@pytest.mark.parametrize(("rows", "line", "what", "expected", "read"), BROKEN.values(), ids=BROKEN)
def test_a_broken_transition_is_refused_and_stated_for_the_check(
    rows: list[str], line: int, what: str, expected: str, read: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.conll"
    path.write_text(lines(*rows), encoding="utf-8")
    with pytest.raises(DataError, match=rf"broken\.conll:{line}, field column 2: {what}.*{expected}.*{read}.*--fix"):
        formats.read(path)
    items = [item for item in formats.items(path, None, Counter()) if isinstance(item, RawDocument)]
    defects = [entity.defect for item in items for entity in item.entities if entity.defect]
    assert [(defect.rule, defect.tolerated) for defect in defects] == [("broken-transition", False)]
    surfaces = [f"{entity.label} {entity.surface!r}" for item in items for entity in item.entities]
    assert read in surfaces


@pytest.mark.parametrize(
    ("rows", "joiner", "text"),
    [
        (["右 O", "肩 O", "C O", "T O"], None, "右肩CT"),
        (["右 O", "肩 O", "CT O", "5 O"], None, "右肩CT 5"),
        (["ア O", "メ O", "リカ O", "！ O"], None, "アメリカ！"),
        (["one O", "two O", "한국 O", "말 O"], None, "one two 한국 말"),
        (["a O", "b O", "c O"], None, "a b c"),
        (["right O", "shoul O", "der O"], "", "rightshoulder"),
        (["右 O", "肩 O"], " ", "右 肩"),
        (["右0 O", "肩1 O", "😀0 O"], None, "右肩😀"),
        (["右0 O", "10 O", "01 O", "310 O", "\ufffd\ufffd11 O"], None, "右103\ufffd\ufffd"),
        (["右0 O", "肩01 O"], None, "右0肩01"),
        (["右0 O", "肩1 O", "B O"], None, "右0肩1 B"),
        (["右1 O", "肩2 O"], None, "右1肩2"),
        (["B0 O", "A2 O"], None, "B0 A2"),
    ],
)
def test_the_text_is_joined_by_the_rule(rows: list[str], joiner: str | None, text: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(lines(*rows), encoding="utf-8")
    corpus = formats.read(tmp_path / "x", "conll", Options(joiner=joiner))
    assert [document.text for document in corpus.documents] == [text]


def test_a_column_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("肺 B-a O B-b\n炎 I-a O O\n", encoding="utf-8")
    for column, entities in [(None, [("肺", "b"), ("肺炎", "a")]), (1, [("肺炎", "a")]), (-2, [])]:
        assert found(formats.read(tmp_path / "x", "conll", Options(column=column)).documents) == [("肺炎", entities)]
    for wrong in (0, 4, -4, -5):
        with pytest.raises(
            ConfigError, match=rf"column {wrong} cannot hold.*4 columns, from 0, and 0 holds the tokens"
        ):
            formats.read(tmp_path / "x", "conll", Options(column=wrong))
    with pytest.raises(ConfigError, match=r"'ner'.*no header; give the column's number"):
        formats.read(tmp_path / "x", "conll", Options(column="ner"))


def test_a_hash_is_a_token_where_it_has_a_tag_and_blank_looking_tokens_are_tokens(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(
        "# a comment\n#\tO\nxy\tO\n\n\u3000\tO\n\ufeff\tO\n\t\n#\tB-x\n1\tI-x\n", encoding="utf-8"
    )
    corpus = formats.read(tmp_path / "x")
    assert [document.text for document in corpus.documents] == ["# xy", "\u3000\ufeff", "# 1"]
    assert corpus.notes == {JOINED: 3, "comment line": 1}


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_it_is_written_with_tabs_in_either_scheme(scheme: str, tmp_path: Path) -> None:
    text = "用CT检查2天, ok"
    entities = (Entity(1, 5, "pro", 0.5), Entity(5, 6, "num"), Entity(9, 10, "x"))
    notes = formats.write(tmp_path / "x", [Document("a", text, entities, {"ward": 1})], "conll", Options(scheme=scheme))  # type: ignore[arg-type]
    tags = {
        "bio": ["O", "B-pro", "I-pro", "I-pro", "B-num", "O", "O", "B-x", "O"],
        "bioes": ["O", "B-pro", "I-pro", "E-pro", "S-num", "O", "O", "S-x", "O"],
    }[scheme]
    tokens = ["用", "CT", "检", "查", "2", "天", ",", "o", "k"]
    expected = "".join(f"{token}\t{tag}\n" for token, tag in zip(tokens, tags, strict=True)) + "\n"
    assert (tmp_path / "x").read_text("utf-8") == expected
    assert notes == {"id left out": 1, "meta left out": 1, "score left out": 1, SPACES: 1}
    assert found(formats.read(tmp_path / "x").documents)[0][1] == [("CT检查", "pro"), ("2", "num"), ("o", "x")]


@pytest.mark.parametrize(
    ("nested", "kept", "left"),
    [("outermost", [("右肩疼痛", "sym"), ("三天", "dur")], 2), ("innermost", [("右肩", "bod"), ("疼痛三", "x")], 2)],
)
def test_overlapping_entities_are_chosen_as_asked_and_counted(
    nested: str, kept: list[tuple[str, str]], left: int, tmp_path: Path
) -> None:
    entities = (Entity(0, 4, "sym"), Entity(0, 2, "bod"), Entity(2, 5, "x"), Entity(4, 6, "dur"))
    if nested == "innermost":
        entities = (Entity(0, 4, "sym"), Entity(0, 2, "bod"), Entity(2, 5, "x"), Entity(2, 5, "y"))
    document = Document("d", "右肩疼痛三天", entities)
    notes = formats.write(tmp_path / "x", [document], "conll", Options(nested=nested))  # type: ignore[arg-type]
    assert found(formats.read(tmp_path / "x").documents) == [(document.text, kept)]
    assert notes == {"id left out": 1, "overlapping entity left out": left}


@pytest.mark.parametrize("name", ["characters.conll", "bmes.txt", "segmented.txt", "news.iob1", "universal.conll"])
@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_fixtures_come_back_from_writing(name: str, scheme: str, tmp_path: Path) -> None:
    corpus = formats.read(FIXTURES / name)
    notes = formats.write(tmp_path / "x", corpus.documents, "conll", Options(scheme=scheme))  # type: ignore[arg-type]
    back = formats.read(tmp_path / "x")
    if name == "universal.conll":  # no rule makes its texts from their tokens
        assert notes[SPACES] == 2
        assert [entities for _, entities in found(back.documents)] == [[("potassium", "ite")], [("CT检查", "equ")]]
        return
    assert SPACES not in notes
    assert found(back.documents) == found(corpus.documents)
    assert [d.meta.get("tokens") for d in back.documents] == [d.meta.get("tokens") for d in corpus.documents]


def test_a_byte_order_mark_is_kept_as_text_and_taken_off_as_a_mark(tmp_path: Path) -> None:
    document = Document("d", "\ufeff肺", (Entity(0, 2, "x"),))
    assert formats.write(tmp_path / "x", [document, document], "conll") == {"id left out": 2}
    assert [(d.text, d.entities) for d in formats.read(tmp_path / "x").documents] == [
        ("\ufeff肺", document.entities)
    ] * 2

    content = (FIXTURES / "characters.conll").read_bytes()
    (tmp_path / "y").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    corpus = formats.read(tmp_path / "y")
    assert found(corpus.documents) == WARD
    assert corpus.notes == {JOINED: 3, BOM_NOTE: 1, CRLF_NOTE: content.count(b"\n")}


def test_meta_tokens_that_do_not_fit_are_noted_and_not_used(tmp_path: Path) -> None:
    unfit: list[object] = [["a"], ["a", "b", "c"], ["a", "", "b"], "ab", ["a\tb"], ["a", 1], ["# x = a b"]]
    documents = [Document(str(n), "a b", (), {"tokens": tokens}) for n, tokens in enumerate(unfit)]
    notes = formats.write(tmp_path / "x", documents, "conll")
    assert notes == {"id left out": 7, "meta tokens do not fit the text: not used": 7}
    assert (tmp_path / "x").read_text("utf-8") == "a\tO\nb\tO\n\n" * 7


@settings(deadline=None)
@given(st.lists(annotated(), min_size=1, max_size=3), st.sampled_from(["outermost", "innermost"]))
def test_what_is_written_reads_back_but_for_white_space(documents: list[Document], nested: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "back.conll"
        writable = [document for document in documents if _writable(document, nested, path)]
        if not writable:
            assert list(Path(folder).iterdir()) == []
            return
        options = Options(nested=nested)  # type: ignore[arg-type]
        notes = formats.write(path, writable, "conll", options)
        assert formats.detect(path) == "conll"
        back = formats.read(path).documents
    assert len(back) == len(writable)
    left = 0
    for document, again in zip(writable, back, strict=True):
        assert _squeezed(again, again.entities)[0] == _squeezed(document, ())[0]
        stated, read = (_squeezed(document, document.entities)[1], _squeezed(again, again.entities)[1])
        assert read <= stated
        left += len(document.entities) - len(again.entities)
    assert notes.get("overlapping entity left out", 0) == left
    assert notes.get(SPACES, 0) == sum(a.text != b.text for a, b in zip(writable, back, strict=True))


def _writable(document: Document, nested: str, path: Path) -> bool:
    try:
        formats.write(path, [document], "conll", Options(nested=nested))  # type: ignore[arg-type]
    except DataError:
        edges = [document.text[e.start] + document.text[e.end - 1] for e in document.entities]
        labels = [e.label for e in document.entities]
        odd = [x for x in edges + labels if not x or any(map(str.isspace, x))]
        assert odd or not document.text.strip()
        return False
    path.unlink()
    return True


def _squeezed(document: Document, entities: tuple[Entity, ...]) -> tuple[str, Counter[tuple[int, int, str]]]:
    """Return the text without white space, and counts of the entities in it."""
    text = document.text

    def solid(place: int) -> int:
        return sum(not character.isspace() for character in text[:place])

    return "".join(text.split()), Counter((solid(e.start), solid(e.end), e.label) for e in entities)


_tokens = (
    st.text(characters, min_size=1, max_size=5)
    .map(str.strip)
    .filter(lambda token: token and not set(token) & set("\t\n") and token[0] not in "#\ufeff")
)
_rows = st.lists(st.tuples(_tokens, st.sampled_from(["O", "x", "+x", "y-z"])), min_size=1, max_size=8)


@settings(deadline=None)
@given(st.lists(_rows, min_size=1, max_size=4))
def test_a_file_is_written_as_it_was_read(sentences: list[list[tuple[str, str]]]) -> None:
    """Tokens are of any kind; the tag `+x` continues an entity if one with this label is before it."""
    content = ""
    for sentence in sentences:
        before = "O"
        for token, drawn in sentence:
            goes_on = drawn.startswith("+") and before.endswith("-" + drawn[1:])
            label = drawn.removeprefix("+")
            before = "O" if drawn == "O" else f"{'I' if goes_on else 'B'}-{label}"
            content += f"{token}\t{before}\n"
        content += "\n"
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "in.conll", Path(folder) / "out.conll"
        path.write_bytes(content.encode())
        assert formats.detect(path) == "conll"
        notes = formats.write(again, formats.read(path).documents, "conll")
        assert again.read_bytes().decode() == content
    assert SPACES not in notes


@settings(deadline=None)
@given(st.lists(st.sampled_from(["O", "Bx", "Ix", "Ex", "Sx", "By", "Iy", "Ey", "Sy"]), max_size=8))
def test_decoding_covers_every_tagged_token_once_and_encoding_undoes_it(drawn: list[str]) -> None:
    tags = [tag for text in drawn if (tag := parse_tag(text if text == "O" else f"{text[0]}-{text[1]}"))]
    chunks = list(decode(tags, "BIOES"))
    covered = [place for chunk in chunks for place in range(chunk.start, chunk.end)]
    assert covered == [place for place, tag in enumerate(tags) if tag.role != "O"]
    assert all(tags[place].label == chunk.label for chunk in chunks for place in range(chunk.start, chunk.end))
    for scheme, name in (("bio", "IOB2"), ("bioes", "BIOES")):
        encoded = encode(len(tags), chunks, scheme)  # type: ignore[arg-type]
        again = list(decode([tag for text in encoded if (tag := parse_tag(text))], name))  # type: ignore[arg-type]
        assert again == [chunk._replace(fault=None, place=0) for chunk in chunks]
        if not any(chunk.fault for chunk in chunks) and scheme == "bioes":
            assert encoded == [tag.text for tag in tags]


def test_tokens_are_characters_words_and_signs() -> None:
    text = "右肩CT检查: don't e\u0301te\u0301 👩🏽\u200d⚕️ x_1\u3000５％"
    assert [text[start:end] for start, end in split(text)] == [
        *("右", "肩", "CT", "检", "查", ":", "don", "'", "t", "e\u0301te\u0301", "👩🏽\u200d⚕️", "x_1", "５", "％"),
    ]


GOOD = "肺\tB-dis\n炎\tI-dis\n。\tO\n\n"
BAD: dict[str, tuple[str | bytes, list[str]]] = {
    "one column": (GOOD + "肺\n。\tO\n", ["bad.txt:5:", "found 1 column(s) in '肺'", "expected 2 with a tab", "mend"]),
    "three columns": (GOOD + "肺\tNN\tO\n", ["bad.txt:5:", "found 3 column(s)", "expected 2", "mend the line"]),
    "blanks for a tab": (GOOD + "肺 O\n", ["bad.txt:5:", "found 1 column(s) in '肺 O'", "a tab between"]),
    "blanks": ("a O\nb O\nc d O\n", ["bad.txt:3:", "found 3 column(s)", "expected 2 with blanks between"]),
    "empty token": (GOOD + "\tB-dis\n", ["bad.txt:5:", "token is empty", "at least one character", "mend"]),
    "empty tag": (GOOD + "肺\t\n", ["bad.txt:5, field column 2", "found ''", "expected O or a tag", "mend it"]),
    "no type": (GOOD + "肺\tB\n", ["bad.txt:5, field column 2", "found 'B'", "as B-TYPE", "mend it"]),
    "no type after the dash": (GOOD + "肺\tB-\n", ["bad.txt:5, field column 2", "found 'B-'", "as B-TYPE"]),
    "unknown letter": (GOOD + "肺\tX-dis\n", ["bad.txt:5, field column 2", "found 'X-dis'", "name the column"]),
    "lower case": (GOOD + "肺\to\n", ["bad.txt:5, field column 2", "found 'o'", "expected O"]),
    "type with a blank": (GOOD + "肺\tB-big dis\n", ["bad.txt:5, field column 2", "'B-big dis'", "mend it"]),
    "comment inside": (GOOD + "肺\tO\n# id = x\n", ["bad.txt:6:", "found 1 column(s) in '# id = x'", "mend"]),
    "text of other tokens": (GOOD + "# text = 肝炎。\n肺\tO\n炎\tO\n", ["bad.txt:6:", "'肺'", "'肝炎。'", "remove it"]),
    "text goes on": (GOOD + "# text = 肺炎。\n肺\tO\n炎\tO\n", ["bad.txt:7:", "more than the tokens", "remove it"]),
    "repeated id": (f"# id = 1\n{GOOD}# id = 1\n{GOOD}", ["bad.txt:7", "field id", "'1' is repeated", "unique"]),
    "tokens alone": ("肺\n炎\n", ["bad.txt:", "most lines have one column", "expected a token and a tag"]),
    "comments alone": ("# id = 1\n# x\n", ["bad.txt:", "expected a token and a tag"]),
    "broken transition": (GOOD + "肺\tI-dis\n", ["bad.txt:5, field column 2", "I-dis", "has B", "--fix OUT"]),
    "gb18030": (GOOD.encode() + "肺\tO".encode("gb18030"), ["bad.txt:5:", "not UTF-8", "the text around it is UTF-8"]),
    "nothing": (b"\n\t\n", ["bad.txt", "is empty", "check the path"]),
}


@pytest.mark.parametrize(("content", "fragments"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(content: str | bytes, fragments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        formats.write(tmp_path / "out.jsonl", formats.stream(path, "conll", Counter()))
        formats.read(path, "conll")  # reading finds a repeated id, but streaming does not
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert [left.name for left in tmp_path.iterdir() if left != path] == ["out.jsonl"] * ("field id" in fragments)


def test_a_bad_sentence_does_not_end_the_reading_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text(GOOD + "肺\n炎\tX\n\n" + GOOD, encoding="utf-8")
    items = list(formats.items(tmp_path / "bad.txt", "conll", Counter()))
    assert [isinstance(item, DataError) for item in items] == [False, True, False]


@pytest.mark.parametrize(
    ("document", "fragments"),
    [
        (Document("d", " \u3000"), ["'d'", "field text", "blank text", "remove it"]),
        (Document("d", "ab", (Entity(0, 2, "x"), Entity(0, 1, "y"))), ["'d'", "y 'a' [0, 1)", "overlap", "outermost"]),
        (Document("d", "abc", (Entity(0, 2, "x"), Entity(1, 3, "y"))), ["'d'", "x 'ab' [0, 2)", "--nested outermost"]),
        (Document("d", "ab", (Entity(0, 2, "x"), Entity(0, 2, "y"))), ["'d'", "overlap", "another format"]),
        (Document("d", "a", (Entity(0, 1, "big x"),)), ["'d'", "'big x'", "white space", "rename it"]),
        (Document("d", "a", (Entity(0, 1, ""),)), ["'d'", "label ''", "rename it"]),
        (Document("d", "a b", (Entity(1, 3, "x"),)), ["'d'", "x ' b' [1, 3)", "begins or ends with", "trim it"]),
        (Document("d", "a b", (Entity(1, 2, "x"),)), ["'d'", "x ' ' [1, 2)", "trim it"]),
        (Document("d", "肺", (), {"tokens": ["肺"]}).with_entities((Entity(0, 1, "\n"),)), ["'d'", r"'\n'", "rename"]),
        (Document("d", "a\ud83d"), ["U+D83D", "mend the document"]),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_the_old_file(
    document: Document, fragments: list[str], tmp_path: Path
) -> None:
    assert_unwritable(tmp_path, document, "conll", fragments)


def test_tokens_that_would_be_read_as_segmented_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"kept\.txt: every token ends in a number.*remove the meta `tokens`"):
        formats.write(tmp_path / "kept.txt", [Document("d", "肺0炎1", (), {"tokens": ["肺0", "炎1"]})], "conll")
    assert list(tmp_path.iterdir()) == []


def test_sentences_come_out_before_a_later_line_fails(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(GOOD * 3 + "肺\tX\n", encoding="utf-8")
    stream = formats.stream(tmp_path / "x", "conll", Counter())
    assert [next(stream).id for _ in range(3)] == ["x-1", "x-5", "x-9"]
    with pytest.raises(DataError, match="x:13"):
        next(stream)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
@pytest.mark.parametrize(
    ("name", "documents", "entities", "broken"),
    [
        ("weibo_ner/weiboNER_2nd_conll.train", 1350, 1895, 10),
        ("weibo_ner/weiboNER_2nd_conll.dev", 270, 389, 0),
        ("weibo_ner/weiboNER_2nd_conll.test", 270, 418, 4),
        ("wnut17/wnut17train.conll", 3394, 1975, 0),
        ("wnut17/emerging.dev.conll", 1009, 836, 0),
        ("wnut17/emerging.test.annotated", 1287, 1079, 0),
        ("bc5cdr/train.tsv", 4560, 9385, 0),
        ("bc5cdr/devel.tsv", 4581, 9593, 0),
        ("bc5cdr/test.tsv", 4797, 9809, 0),
        ("ncbi_disease/train.tsv", 5432, 5145, 0),
        ("ncbi_disease/devel.tsv", 923, 787, 0),
        ("ncbi_disease/test.tsv", 940, 960, 0),
    ],
)
def test_real_files_are_recovered_whole(name: str, documents: int, entities: int, broken: int, tmp_path: Path) -> None:
    path = SHARED / name
    if broken:
        items = [item for item in formats.items(path, None, Counter()) if isinstance(item, RawDocument)]
        stated = [entity for item in items for entity in item.entities]
        assert (len(items), len(stated)) == (documents, entities)
        assert sum(entity.defect is not None for entity in stated) == broken
        with pytest.raises(DataError, match="I-PER"):
            formats.read(path)
        return
    corpus = formats.read(path)
    assert corpus.format == "conll"
    assert (len(corpus.documents), sum(len(d.entities) for d in corpus.documents)) == (documents, entities)
    tokens = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line.strip()]
    notes = formats.write(tmp_path / "again", corpus.documents, "conll")
    again = [line.split("\t") for line in (tmp_path / "again").read_text("utf-8").splitlines() if line]
    if "weibo" in name:
        tokens = [[token[: 2 if token[1] == "\ufffd" else 1], tag] for token, tag in tokens]
    assert notes == {"id left out": documents}
    assert again == tokens


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_the_real_invalid_file_is_refused_at_its_line() -> None:
    with pytest.raises(DataError, match=r"invalid\.conll:1: found 1 column.*'SOCCERO SOCCERO SOCCERO'"):
        formats.read(SHARED / "doccano/doccano_official_invalid.conll")
    trailing = formats.read(SHARED / "doccano/doccano_official_trailing.conll")
    assert found(trailing.documents)[0][1] == [("JAPAN", "LOC"), ("CHINA", "PER")]
