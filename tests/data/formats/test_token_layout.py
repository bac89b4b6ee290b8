"""Token files unlike plain CoNLL: indexes, layers, tag spellings, headers, documents, spaces, empty tokens."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from spantune.core import ConfigError, DataError
from spantune.data import Corpus, Options, formats

IO_NOTE = "tags without B and I: neighbours of one type read as one entity"


def read(folder: Path, content: str, options: Options | None = None) -> Corpus:
    """Write the content to a file, recognise its format and read it."""
    path = folder / "file.tsv"
    path.write_text(content, encoding="utf-8")
    corpus = formats.read(path, None, options or Options())
    assert corpus.format == "conll"
    return corpus


def found(corpus: Corpus) -> list[tuple[str, list[tuple[str, str]]]]:
    return [(d.text, [(d.surface(e), e.label) for e in d.entities]) for d in corpus.documents]


ROE = [("Ada Roe left", [("Ada Roe", "PER")]), ("Bo", [("Bo", "PER")])]


@pytest.mark.parametrize(
    "numbers", [(0, 1, 2, 0), (1, 2, 3, 1), (1, 2, 3, 4), (0, 1, 2, 3)], ids=["from 0", "from 1", "on", "on from 0"]
)
def test_a_first_column_that_counts_is_no_token(numbers: tuple[int, ...], tmp_path: Path) -> None:
    a, b, c, d = numbers
    content = f"{a}\tAda\tB-PER\n{b}\tRoe\tI-PER\n{c}\tleft\tO\n\n{d}\tBo\tB-PER\n"
    assert found(read(tmp_path, content)) == ROE
    assert found(read(tmp_path, content.replace("\t", " "))) == ROE


@pytest.mark.parametrize(
    "leads",
    [
        ("s 1", "s 1", "s 1", "s 2"),
        ("Sentence: 1", "", "", "Sentence: 2"),
        ("d1\t1", "d1\t2", "d1\t3", "d1\t1"),
        ("bc/01\t0\t0", "bc/01\t0\t1", "bc/01\t0\t2", "bc/01\t0\t0"),
    ],
    ids=["its name", "once", "document and index", "CoNLL-2012"],
)
def test_a_first_column_that_names_the_sentence_is_no_token(leads: tuple[str, ...], tmp_path: Path) -> None:
    a, b, c, d = leads
    content = f"{a}\tAda\tB-PER\n{b}\tRoe\tI-PER\n{c}\tleft\tO\n\n{d}\tBo\tB-PER\n"
    assert found(read(tmp_path, content)) == ROE


@pytest.mark.parametrize("name", ["news", ""])
def test_a_first_column_that_is_the_same_throughout_is_no_token(name: str, tmp_path: Path) -> None:
    content = f"{name}\tAda\tB-PER\n{name}\tRoe\tI-PER\n{name}\tleft\tO\n\n" * 3 + f"{name}\tBo\tB-PER\n"
    assert found(read(tmp_path, content)) == [ROE[0]] * 3 + [ROE[1]]


def test_sentences_that_only_a_column_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no blank lines part the sentences"):
        read(tmp_path, "1\tAda\tB-PER\n1\tleft\tO\n1\tus\tO\n2\tBo\tB-PER\n2\tleft\tO\n2\tus\tO\n")


def test_tokens_that_repeat_are_tokens(tmp_path: Path) -> None:
    assert read(tmp_path, "ha\tUH\tO\nha\tUH\tO\n\nBo\tNE\tB-PER\n").documents[0].text == "ha ha"


@pytest.mark.parametrize("sign", [":", ".", "/", "|", "–"])
def test_any_sign_may_part_letter_and_type(sign: str, tmp_path: Path) -> None:
    content = "Ada\tB-PER\nRoe\tI-PER\nleft\tO\n\nBo\tB-PER\n".replace("-", sign)
    assert found(read(tmp_path, content)) == ROE


def test_a_letter_and_a_sign_without_a_type_need_a_label(tmp_path: Path) -> None:
    content = "Ada\tB-\nRoe\tI-\nleft\tO\n\nBo\tB-\n"
    with pytest.raises(ConfigError, match="--label NAME"):
        read(tmp_path, content)
    assert found(read(tmp_path, content, Options(label="PER"))) == ROE


def test_lines_that_end_in_cr_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CR alone"):
        read(tmp_path, "Ada\tB-PER\rleft\tO\r\rBo\tB-PER\r")


def test_one_line_that_is_miscounted_does_not_make_numbers_of_all_tokens(tmp_path: Path) -> None:
    content = "".join(f"{n}\tw{n}\tO\n" for n in range(1, 9)) + "\n7\tBo\tB-PER\n"
    assert read(tmp_path, content).documents[1].text == "Bo"


def test_numbers_that_do_not_count_are_tokens(tmp_path: Path) -> None:
    assert found(read(tmp_path, "3\tCD\tO\n4\tCD\tO\n7\tCD\tB-NUM\n")) == [("3 4 7", [("7", "NUM")])]


def test_contracted_tokens_and_words_that_are_not_in_the_text_follow_universal_dependencies(tmp_path: Path) -> None:
    corpus = read(
        tmp_path,
        "# newdoc\n# text = Vado dal Roe.\n1\tVado\tO\n2-3\tdal\t_\n2\tda\tO\n3\til\tB-PER\n4\tRoe\tI-PER\n"
        "5\t.\tO\n5.1\tx\t_\n",
    )
    assert found(corpus) == [("Vado dal Roe.", [("dal Roe", "PER")])]
    assert corpus.documents[0].meta["group"] == "document 1"
    with pytest.raises(DataError, match=r"file\.tsv:2: .*of several words.* has a tag"):
        read(tmp_path, "1\tVado\tO\n2-3\tdal\tB-PER\n2\tda\tO\n3\til\tO\n4\tx\tO\n5\ty\tO\n6\tz\tO\n")


LAYERS = "Ada\tB-PER\tO\nRoe\tI-PER\tO\nof\tO\tO\nUniversity\tB-ORG\tO\nof\tI-ORG\tO\nRome\tI-ORG\tB-LOC\n"
NESTED = [
    ("Ada Roe of University of Rome", [("Ada Roe", "PER"), ("University of Rome", "ORG"), ("Rome", "LOC")]),
]


@pytest.mark.parametrize("separator", ["\t", " "])
def test_columns_of_tags_are_layers_of_one_annotation(separator: str, tmp_path: Path) -> None:
    assert found(read(tmp_path, LAYERS.replace("\t", separator))) == NESTED
    for column, entities in ((1, NESTED[0][1][:2]), (-1, NESTED[0][1][2:])):
        assert found(read(tmp_path, LAYERS, Options(column=column))) == [(NESTED[0][0], entities)]


def test_germeval_gives_outer_and_inner(tmp_path: Path) -> None:
    rows = [line.split("\t") for line in LAYERS.splitlines()]
    content = "#\thttp://example.org [2005-02-26]\n" + "".join(
        f"{number}\t{token}\t{outer}\t{inner}\n" for number, (token, outer, inner) in enumerate(rows, start=1)
    )
    corpus = read(tmp_path, content)
    assert found(corpus) == NESTED
    assert corpus.notes == {"comment line": 1, "text joined from tokens": 1}


@pytest.mark.parametrize(
    ("content", "entities"),
    [
        ("EU NNP B-NP B-ORG\nlikes VBZ B-VP O\nGerman JJ B-NP B-MISC\nlamb NN I-NP O\n", ["EU", "German"]),
        ("EU NNP I-NP I-ORG\nlikes VBZ I-VP O\nGerman JJ I-NP I-MISC\nlamb NN I-NP O\n", ["EU", "German"]),
        ("EU EU NE I-NC I-ORG\nmag moegen VV I-VC O\nLamm Lamm NN I-NC O\n", ["EU"]),
        ("EU NNP B-NP O\nlikes VBZ B-VP O\nGerman JJ B-NP O\n", []),
        ("EU NNP B-NP\nlikes VBZ B-VP\nGerman JJ B-NP\nlamb NN I-NP\n", ["EU", "likes", "German lamb"]),
    ],
    ids=["CoNLL-2003", "IOB1", "German", "no entity", "CoNLL-2000"],
)
def test_phrases_are_read_only_where_no_other_tags_are(content: str, entities: list[str], tmp_path: Path) -> None:
    corpus = read(tmp_path, content)
    assert [surface for surface, _ in found(corpus)[0][1]] == entities
    assert corpus.notes["other columns not read"] == 1


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ("EU B-ORG B-ORG\nlikes O O\nBo B-PER B-ORG\nRoe I-PER I-ORG\n", ["1 (ORG, PER), 2 (ORG)", "same spans"]),
        ("EU X B-ORG O\nlikes V O B-ACT\nBo X B-PER O\n", ["2 (ORG, PER), 3 (ACT)", "share no label"]),
        ("EU ORG O\nlikes O O\nBo PER O\nUniv O UNI\n", ["1 (ORG, PER), 2 (UNI)", "without B and I"]),
    ],
    ids=["two annotators", "other columns", "no B and I"],
)
def test_columns_that_may_be_several_annotations_are_refused(
    content: str, fragments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"file\.tsv: several columns hold tags.*--column") as caught:
        read(tmp_path, content)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert read(tmp_path, content, Options(column=-1)).documents


def test_every_layer_has_a_scheme_of_its_own_and_its_faults_name_its_column(tmp_path: Path) -> None:
    content = "a\tB-x\tS-y\nb\tI-x\tO\nc\tO\tO\nd\tB-x\tO\ne\tI-x\tS-y\n"
    assert found(read(tmp_path, content)) == [("a b c d e", [("a", "y"), ("a b", "x"), ("d e", "x"), ("e", "y")])]
    with pytest.raises(DataError, match=r"file\.tsv:7, field column 3: found 'Q-y'"):
        read(tmp_path, content + "\nf\tO\tQ-y\n")


@pytest.mark.parametrize(
    ("content", "expected", "note"),
    [
        ("EU\tORG\nhit\tO\n\nAda\tPER\nRoe\tPER\n", ["EU ORG", "Ada Roe PER"], IO_NOTE),
        ("London location-GPE\nis O\nbig O\n", ["London location-GPE"], IO_NOTE),
        ("EU B_ORG\nhit O\nAda B_PER\nRoe I_PER\n", ["EU ORG", "Ada Roe PER"], ""),
        ("EU ORG-B\nhit O\nAda PER-B\nRoe PER-I\n", ["EU ORG", "Ada Roe PER"], ""),
        ("EU ORG_S\nhit O\nAda PER_B\nRoe PER_E\n", ["EU ORG", "Ada Roe PER"], ""),
    ],
)
def test_tags_of_other_spellings_are_read(content: str, expected: list[str], note: str, tmp_path: Path) -> None:
    corpus = read(tmp_path, content)
    assert [f"{surface} {label}" for _, entities in found(corpus) for surface, label in entities] == expected
    assert (IO_NOTE in corpus.notes) is bool(note)


@pytest.mark.parametrize("tags", ["BIOO", "BEOS", "BLOU"])
def test_tags_without_a_type_need_a_label(tags: str, tmp_path: Path) -> None:
    content = "".join(f"{token}\t{tag}\n" for token, tag in zip("abcd", tags, strict=True))
    with pytest.raises(ConfigError, match=r"file\.tsv: the tags of column 1 are B and I without a type.*--label NAME"):
        read(tmp_path, content)
    assert found(read(tmp_path, content, Options(label="gene")))[0][1][0] == ("a b", "gene")


def test_parts_of_speech_are_not_taken_for_types(tmp_path: Path) -> None:
    for content in ("smh\tG\nhe\tO\nasked\tV\nhim\tO\n", "EU\tNNP\nlikes\tVBZ\nlamb\tNN\n"):
        with pytest.raises(DataError, match=r"no known format.*--column NAME or NUMBER"):
            read(tmp_path, content)


HIPE = (
    "TOKEN\tNE-COARSE-LIT\tNE-COARSE-METO\tNE-NESTED\tMISC\n# hipe2022:document_id = a\nOdysseus\tB-pers\t_\tO\t"
    "NoSpaceAfter\n,\tO\t_\tO\t_\n# segment = 2\nof\tO\t_\tO\t_\nIthaca\tB-loc\t_\tO\tEndOfSentence\n\n"
    "# hipe2022:document_id = b\nHomer\tB-pers\t_\tO\t_\n\n"
)


def test_a_header_names_the_columns_and_is_no_token(tmp_path: Path) -> None:
    corpus = read(tmp_path, HIPE)
    assert found(corpus) == [
        ("Odysseus, of Ithaca", [("Odysseus", "pers"), ("Ithaca", "loc")]),
        ("Homer", [("Homer", "pers")]),
    ]
    assert [document.meta["group"] for document in corpus.documents] == ["a", "b"]
    assert (corpus.notes["header line"], corpus.notes["comment line"]) == (1, 1)
    nested = HIPE.replace("Ithaca\tB-loc\t_\tO", "Ithaca\tO\t_\tB-loc")
    assert found(read(tmp_path, nested, Options(column="NE-NESTED")))[0][1] == [("Ithaca", "loc")]
    assert len(found(read(tmp_path, nested))[0][1]) == 2
    with pytest.raises(ConfigError, match="did you mean 'NE-NESTED'"):
        read(tmp_path, HIPE, Options(column="NE-NESTD"))


def test_coarse_and_fine_types_of_hipe_are_told_by_their_names(tmp_path: Path) -> None:
    content = "TOKEN\tNE-COARSE-LIT\tNE-FINE-LIT\nBob\tB-pers\tB-pers.ind\nof\tO\tO\n"
    with pytest.raises(DataError, match=r"1 NE-COARSE-LIT \(pers\), 2 NE-FINE-LIT \(pers\.ind\).*--column"):
        read(tmp_path, content)
    assert found(read(tmp_path, content, Options(column="NE-FINE-LIT")))[0][1] == [("Bob", "pers.ind")]


def test_a_misspelt_first_line_is_no_header(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"file\.tsv:1, field column 2: found 'B0ORG'"):
        read(tmp_path, "EU\tB0ORG\nhit\tO\nAda\tB-PER\nRoe\tI-PER\nx\tO\ny\tO\nz\tO\nt\tO\nu\tO\nv\tO\n")


def test_spaces_are_those_that_a_column_states_unless_a_joiner_is_given(tmp_path: Path) -> None:
    content = "1\t「\tO\tSpaceAfter=No\n2\tdon\tO\tSpaceAfter=No|x=y\n3\t't\tO\t_\n4\t肺\tB-x\t_\n5\t炎\tI-x\t_\n"
    assert found(read(tmp_path, content)) == [("「don't 肺 炎", [("肺 炎", "x")])]
    assert read(tmp_path, content, Options(joiner="")).documents[0].text == "「don't肺炎"


def test_the_column_of_tags_need_not_be_the_last(tmp_path: Path) -> None:
    content = "# text = Ada in Rome.\n1\tAda\tB-PER\t-\tx\n2\tin\tO\t-\t-\n3\tRome\tB-LOC\t-\tx\n4\t.\tO\t-\t-\n"
    expected = [("Ada in Rome.", [("Ada", "PER"), ("Rome", "LOC")])]
    assert found(read(tmp_path, content)) == found(read(tmp_path, content, Options(column=2))) == expected


@pytest.mark.parametrize("empty", ["\tO\n", " O\n"])
def test_a_line_without_a_token_is_left_out_unless_it_is_tagged(empty: str, tmp_path: Path) -> None:
    separator = empty[0]
    rows = [*["nice O\n", "show O\n"] * 10, "\n", "But O\n", "Rome B-LOC\n"]
    content = "".join(row.replace(" ", separator) for row in rows)
    corpus = read(tmp_path, content.replace("\n\n", f"\n{empty}\n{empty}\n"))
    assert found(corpus) == [("nice show" + " nice show" * 9, []), ("But Rome", [("Rome", "LOC")])]
    assert corpus.notes["line with an empty token and the tag O left out"] == 2
    with pytest.raises(DataError, match=r"file\.tsv:24: (the token is empty, but tagged|found 1 column)"):
        read(tmp_path, content + empty.replace("O", "I-LOC"))


@pytest.mark.parametrize("between", [" ", "\t"])
def test_tags_may_stand_before_the_tokens(between: str, tmp_path: Path) -> None:
    content = "".join(f"{tag}{between}{token}\n" for tag, token in [("B-PER", "Ada"), ("I-PER", "Roe"), ("O", "left")])
    content += f"\nB-PER{between}Bo\n"
    assert found(read(tmp_path, content)) == ROE
    assert found(read(tmp_path, content, Options(column=0))) == ROE
    tagged = [("B-sym", "腹"), ("I-sym", "痛"), ("O", "A"), ("O", "B")]
    chinese = "".join(f"{tag}{between}{token}\n" for tag, token in tagged)
    assert found(read(tmp_path, chinese)) == [("腹痛AB", [("腹痛", "sym")])]


def test_blanks_behind_a_tag_are_no_part_of_it(tmp_path: Path) -> None:
    assert found(read(tmp_path, "Ada\tB-PER \nRoe\tI-PER\nleft\tO  \n\nBo\tB-PER \n")) == ROE


def test_a_token_of_blanks_is_kept_where_one_blank_stands_between_columns(tmp_path: Path) -> None:
    content = "我 O\n  O\n爱 O\n北 B-LOC\n  I-LOC\n京 I-LOC\n\n"
    corpus = read(tmp_path, content * 2)
    assert found(corpus) == [("我 爱北 京", [("北 京", "LOC")])] * 2
    formats.write(tmp_path / "out.tsv", corpus.documents, "conll")
    assert found(formats.read(tmp_path / "out.tsv", "conll")) == found(corpus)
    aligned = "我     O\n      O\n爱     O\n北     B-LOC\n京     I-LOC\n\n"
    corpus = read(tmp_path, aligned * 2)
    assert found(corpus) == [("我爱北京", [("北京", "LOC")])] * 2
    assert corpus.notes["line with an empty token and the tag O left out"] == 2


def test_small_letters_are_b_and_i_where_no_other_tags_are(tmp_path: Path) -> None:
    assert found(read(tmp_path, "Ada b-PER\nRoe i-PER\nleft o\n\nBo b-PER\n")) == ROE
    assert found(read(tmp_path, "Ada b_PER\nRoe i_PER\nleft O\n\nBo b_PER\n")) == ROE
    corpus = read(tmp_path, "Ada PER\nRoe PER\nwrote O\na@b e-mail\nto O\n")
    assert found(corpus) == [("Ada Roe wrote a@b to", [("Ada Roe", "PER"), ("a@b", "e-mail")])]


@pytest.mark.parametrize(
    ("line", "group"),
    [
        ("-DOCSTART- -X- O doc-17", "doc-17"),
        ("-DOCSTART- (1 EU)", "(1 EU)"),
        ("-DOCSTART- -X- -X- O", "document 1"),
        ("-DOCSTART- -DOCSTART- O", "document 1"),
        ("-DOCSTART- NN O", "document 1"),
    ],
)
def test_a_docstart_line_names_its_document_where_it_does(line: str, group: str, tmp_path: Path) -> None:
    corpus = read(tmp_path, f"{line}\n\nAda B-PER\nRoe I-PER\nleft O\n\nBo B-PER\n")
    assert [document.meta["group"] for document in corpus.documents] == [group] * 2


@pytest.mark.parametrize("quoted", [False, True])
def test_the_way_from_comma_separated_tokens_is_said_and_works(quoted: bool, tmp_path: Path) -> None:
    rows = "Sentence: 1,Ada,N,B-PER\n,Roe,N,I-PER\n,left,V,O\n" + 'Sentence: 2,"""",N,O\n' * quoted
    rows = "Sentence #,Word,POS,Tag\n" + rows + "Sentence: 3,Bo,N,B-PER\n"
    (tmp_path / "FILE").write_text(rows, encoding="utf-8")
    for sentence in ("put tabs there: ", "passed over: "):
        with pytest.raises(DataError) as caught:
            formats.read(tmp_path / "FILE")
        subprocess.run(str(caught.value).rpartition(sentence)[2], shell=True, check=True, cwd=tmp_path)
        (tmp_path / "NEW.tsv").replace(tmp_path / "FILE")
    assert found(formats.read(tmp_path / "FILE")) == [ROE[0], *[('"', [])] * quoted, ROE[1]]
