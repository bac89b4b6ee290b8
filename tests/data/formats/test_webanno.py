"""WebAnno TSV 3: layers, annotations of several tokens, escapes, UTF-16 offsets, joined sentences and bad input."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.corpora import file_of, spans
from helpers.refusal import assert_unreadable
from spantune.core import DataError, Document
from spantune.data import Options, formats

HEAD = "#FORMAT=WebAnno TSV 3.3\n#T_SP=custom.Span|value\n\n\n"
TWO_LAYERS = (
    "#FORMAT=WebAnno TSV 3.2\n"
    "#T_SP=de.tudarmstadt.ukp.dkpro.core.api.lexmorph.type.pos.POS|coarseValue|PosValue\n"
    "#T_SP=de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity|identifier|value\n"
    "#T_SP=webanno.custom.Title|kind\n"
    "#T_RL=webanno.custom.Rel|role|BT_webanno.custom.Title\n\n\n"
    "#Text=Dr. Ada Roe sings.\n"
    "1-1\t0-3\tDr.\tX\tNNP\t_\t_\tmed\t_\t_\t\n"
    "1-2\t4-7\tAda\tX\tNNP\t*[1]|http\\://x[2]\tPER[1]|GIVEN[2]\t_\t_\t_\t\n"
    "1-3\t8-11\tRoe\tX\tNNP\t*[1]\tPER[1]\t*\tof\t1-1\t\n"
    "1-4\t12-17\tsings\tX\tVBZ\t_\t_\t_\t_\t_\t\n"
    "1-5\t17-18\t.\tX\t.\t_\t_\t_\t_\t_\t\n"
)


def tsv(text: str, *lines: str) -> str:
    return HEAD + f"#Text={text}\n" + "".join(line + "\n" for line in lines)


def test_tokens_of_one_number_are_one_entity_and_others_stand_alone(tmp_path: Path) -> None:
    content = tsv(
        "Ada Roe met Bo Bo.",
        "1-1\t0-3\tAda\tPER[1]|GIVEN\t", "1-2\t4-7\tRoe\tPER[1]\t", "1-3\t8-11\tmet\t_\t",
        "1-4\t12-14\tBo\tPER\t", "1-5\t15-17\tBo\tPER\t", "1-6\t17-18\t.\t_\t",
    )  # fmt: skip
    corpus = formats.read(file_of(tmp_path, "a.tsv", content))
    assert corpus.format == "webanno" and corpus.notes == {}
    assert corpus.documents[0].id == "a-1"
    assert spans(corpus.documents) == [
        [("Ada", 0, "GIVEN"), ("Ada Roe", 0, "PER"), ("Bo", 12, "PER"), ("Bo", 15, "PER")]
    ]


def test_all_layers_but_those_of_words_are_read_or_the_one_that_is_named(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.tsv", TWO_LAYERS)
    corpus = formats.read(path)
    entities = [("Ada", 4, "GIVEN"), ("Ada Roe", 4, "PER")]
    assert spans(corpus.documents) == [[("Dr.", 0, "med"), *entities, ("Roe", 8, "Title")]]
    assert corpus.notes == {
        "layer de.tudarmstadt.ukp.dkpro.core.api.lexmorph.type.pos.POS not read": 1,
        "layer webanno.custom.Rel not read": 1,
        "annotation without a value: labelled Title": 1,
    }
    for column in ("NamedEntity", "NamedEntity|value", "value", 6):
        assert spans(formats.read(path, None, Options(column=column)).documents) == [entities], column
    assert spans(formats.read(path, None, Options(column="NamedEntity|identifier")).documents) == [
        [("Ada", 4, "http://x"), ("Ada Roe", 4, "NamedEntity")]
    ]
    assert len(spans(formats.read(path, None, Options(column="PosValue")).documents)[0]) == 5
    with pytest.raises(DataError, match=r"no 'Name'; layers of spans: POS\|coarseValue, .*--column"):
        formats.read(path, None, Options(column="Name"))


def test_escapes_and_utf16_offsets(tmp_path: Path) -> None:
    content = tsv(
        "\\\\𠮷\\tis [a|b]",
        "1-1\t0-3\t\\\\𠮷\tx\\_y\\|z\\[1\\][7]\t", "1-2\t4-6\tis\tx\\_y\\|z\\[1\\][7]\t", "1-3\t7-12\t[a|b]\t\\*\t",
    )  # fmt: skip
    corpus = formats.read(file_of(tmp_path, "a.tsv", content))
    assert corpus.documents[0].text == "\\𠮷\tis [a|b]"
    assert spans(corpus.documents) == [[("\\𠮷\tis", 0, "x_y|z[1]"), ("[a|b]", 6, "*")]]


def test_a_text_of_several_lines_and_parts_of_tokens(tmp_path: Path) -> None:
    content = HEAD + (
        "#Text=  Ada\n#Text=Roe-Lee\n"
        "1-1\t2-5\tAda\tPER[1]\t\n1-2\t6-13\tRoe-Lee\tLOC[2]\t\n1-2.1\t6-9\tRoe\tPER[1]|LOC[2]\t\n1-2.2\t10-13\tLee\tPER\t\n"
    )
    corpus = formats.read(file_of(tmp_path, "a.tsv", content))
    assert corpus.documents[0].text == "  Ada\nRoe-Lee"
    assert spans(corpus.documents) == [[("Ada\nRoe", 2, "PER"), ("Roe-Lee", 6, "LOC"), ("Lee", 10, "PER")]]


def test_line_breaks_of_two_characters_are_told_by_the_offsets(tmp_path: Path) -> None:
    content = HEAD + "#Text=Ada\n#Text=Roe\n1-1\t0-3\tAda\tPER[1]\t\n1-2\t5-8\tRoe\tPER[1]\t\n"
    corpus = formats.read(file_of(tmp_path, "a.tsv", content))
    assert spans(corpus.documents) == [[("Ada\r\nRoe", 0, "PER")]]


def test_sentences_are_documents_unless_an_annotation_joins_them(tmp_path: Path) -> None:
    content = HEAD + (
        "#Text=One.\n1-1\t0-3\tOne\tx\t\n1-2\t3-4\t.\t_\t\n\n"
        "#Text=Dr.\n2-1\t5-8\tDr.\tPER[1]\t\n\n"
        "#Text=Roe.\n3-1\t10-13\tRoe\tPER[1]\t\n3-2\t13-14\t.\t_\t\n"
    )
    corpus = formats.read(file_of(tmp_path, "a.tsv", content))
    assert [document.text for document in corpus.documents] == ["One.", "Dr.  Roe."]
    assert spans(corpus.documents) == [[("One", 0, "x")], [("Dr.  Roe", 0, "PER")]]
    assert corpus.notes == {"white space between sentences taken as blanks": 1}


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (tsv("Ada sings", "1-1\t0-3\tAda\tx\t", "1-2\t5-9\tsing\t_\t"), ["a.tsv:7", "'sing'", "5-9", "UTF-16"]),
        (tsv("Ada", "1-1\t0-3\tBo\tx\t"), ["a.tsv:6", "the token 'Bo' is not what stands at 0-3"]),
        (tsv("Ada", "1-1 0-3 Ada x"), ["a.tsv:6", "found '1-1 0-3 Ada x'", "a tab between"]),
        ("#FORMAT=WebAnno TSV 3.3\n#T_CH=x.Link|a|b\n\n#Text=a\n1-1\t0-1\ta\t_\t_\n", ["no a layer of spans", "none"]),
    ],
)
def test_bad_files_are_refused_by_line(content: str, fragments: list[str], tmp_path: Path) -> None:
    assert_unreadable(file_of(tmp_path, "a.tsv", content), None, fragments)


def test_another_file_and_writing_are_refused(tmp_path: Path) -> None:
    assert_unreadable(file_of(tmp_path, "a.tsv", "a\tb\n"), "webanno", ["a.tsv:1", "expected #FORMAT=WebAnno TSV 3"])
    with pytest.raises(DataError, match="webanno can only be read"):
        formats.write(tmp_path / "b.tsv", [Document("d", "a")], "webanno")
