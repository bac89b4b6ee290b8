"""Label Studio's JSON: both layouts, annotators, predictions, UTF-16 offsets, round trips, bad input, real exports."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.corpora import file_of
from helpers.real import SHARED
from helpers.refusal import assert_unreadable
from helpers.strategies import annotated
from spantune.core import DataError, Document, Entity
from spantune.data import Options, formats, read_source
from spantune.data.raw.document import RawDocument
from spantune.data.repairs import repair

FIXTURES = Path(__file__).parents[2] / "fixtures" / "label_studio"
NOTE = "𠮷先生右肩疼痛，血钾低。"


def found(document: Document) -> list[tuple[str, str]]:
    return [(document.surface(entity), entity.label) for entity in document.entities]


def tasks(path: Path) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return loaded


def test_every_annotation_that_is_not_cancelled_is_a_document() -> None:
    corpus = formats.read(FIXTURES / "export.json")
    assert corpus.format == "label_studio"
    assert {document.id: found(document) for document in corpus.documents} == {
        "7-20": [("右肩", "bod"), ("右肩疼痛", "main"), ("右肩疼痛", "sym")],
        "7-21": [("血钾", "ite")],
        "8-23": [("lunch", "food"), ("no fever", "sign")],
        "9-24": [],
    }
    assert [(d.meta["group"], d.meta["annotator"]) for d in corpus.documents] == [
        ("7", 1),
        ("7", 2),
        ("8", 1),
        ("9", 1),
    ]
    assert corpus.notes == {
        "cancelled annotation skipped": 1,
        "prediction not read: its task is annotated": 1,
        "result of type 'choices' kept in meta only": 1,
        "task without annotation skipped": 1,
    }


def test_the_export_is_written_back_but_for_what_was_skipped(tmp_path: Path) -> None:
    documents = formats.read(FIXTURES / "export.json").documents
    assert formats.write(tmp_path / "back.json", documents, "label_studio") == {}
    assert formats.read(tmp_path / "back.json").documents == documents
    expected = tasks(FIXTURES / "export.json")[:3]
    del expected[0]["annotations"][2]
    for task in expected:
        del task["predictions"]
        if not task["meta"]:
            del task["meta"]
    assert tasks(tmp_path / "back.json") == expected


def test_json_min_is_recognised_and_read(tmp_path: Path) -> None:
    corpus = formats.read(FIXTURES / "min.json")
    assert (corpus.format, corpus.notes) == ("label_studio", {})
    assert {document.id: found(document) for document in corpus.documents} == {
        "7-20": [("右肩", "bod"), ("右肩疼痛", "main"), ("右肩疼痛", "sym")],
        "9-24": [],
    }
    assert corpus.documents[1].meta["label_studio"]["data"] == {"ward": 3}
    formats.write(tmp_path / "full.json", corpus.documents, "label_studio")
    again = formats.read(tmp_path / "full.json").documents
    assert [(d.id, d.text, d.entities) for d in again] == [(d.id, d.text, d.entities) for d in corpus.documents]


def test_offsets_in_utf16_units_are_named_and_read_under_the_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"result\[1\]\.value\.text: .* count UTF-16 code units, give --offsets utf16"):
        formats.read(FIXTURES / "utf16.json")
    corpus = formats.read(FIXTURES / "utf16.json", options=Options(offsets="utf16"))
    assert [found(document) for document in corpus.documents] == [[("Pain", "sign"), ("lunch", "food")]]
    repair(read_source(FIXTURES / "utf16.json"), tmp_path / "mended.json")
    assert formats.read(tmp_path / "mended.json").documents == corpus.documents


def test_a_negative_start_is_no_utf16_offset(tmp_path: Path) -> None:
    region = {"type": "labels", "value": {"start": -6, "end": 6, "text": "lung", "labels": ["b"]}}
    task = {"data": {"text": "🙂lung🙂"}, "annotations": [{"result": [region]}]}
    (tmp_path / "in.json").write_text(json.dumps([task]), encoding="utf-8")
    with pytest.raises(DataError, match=r"value\.text: the entity's text is 'lung', but .* at -6; it occurs at 1"):
        formats.read(tmp_path / "in.json")


def test_a_region_with_two_labels_outlives_one_of_them(tmp_path: Path) -> None:
    document = formats.read(FIXTURES / "export.json").documents[0]
    left = document.with_entities(entity for entity in document.entities if entity.label != "main")
    assert formats.write(tmp_path / "out.json", [left], "label_studio") == {}
    results = tasks(tmp_path / "out.json")[0]["annotations"][0]["result"]
    assert [result.get("value", {}).get("labels", "relation") for result in results] == [["bod"], ["sym"], "relation"]


def test_only_annotations_of_one_task_share_it(tmp_path: Path) -> None:
    formats.write(tmp_path / "out.json", [Document("a", "x"), Document("a", "x")], "label_studio")
    assert len(tasks(tmp_path / "out.json")) == 2


def test_predictions_are_read_with_scores_where_nobody_annotated(tmp_path: Path) -> None:
    corpus = formats.read(FIXTURES / "predictions.json")
    assert corpus.notes == {"prediction read: its task is not annotated": 1}
    assert [(d.id, found(d), d.entities[0].score) for d in corpus.documents] == [("4-11", [("lunch", "food")], 0.75)]
    assert formats.write(tmp_path / "back.json", corpus.documents, "label_studio") == {}
    assert tasks(tmp_path / "back.json") == tasks(FIXTURES / "predictions.json")


def test_entities_with_scores_are_written_as_a_prediction_to_review(tmp_path: Path) -> None:
    documents = [
        Document("empty", "nothing"),
        Document("a", NOTE, (Entity(3, 5, "bod", 0.5), Entity(3, 7, "sym", 0.25)), {"ward": 3}),
        Document("late", "nothing"),
    ]
    assert formats.write(tmp_path / "out.json", documents, "label_studio") == {}
    names = {"from_name": "label", "to_name": "text", "type": "labels"}
    assert tasks(tmp_path / "out.json")[1] == {
        "data": {"text": NOTE},
        "meta": {"spantune": {"id": "a", "meta": {"ward": 3}}},
        "predictions": [
            {
                "model_version": "spantune",
                "score": 0.25,
                "result": [
                    {
                        "value": {"start": 3, "end": 5, "text": "右肩", "labels": ["bod"]},
                        "id": "spantune-1",
                        **names,
                        "score": 0.5,
                    },
                    {
                        "value": {"start": 3, "end": 7, "text": "右肩疼痛", "labels": ["sym"]},
                        "id": "spantune-2",
                        **names,
                        "score": 0.25,
                    },
                ],
            }
        ],
    }
    # A text without predictions must not be read as an annotated text.
    assert [set(task) - {"data", "meta"} for task in tasks(tmp_path / "out.json")] == 3 * [{"predictions"}]
    assert formats.read(tmp_path / "out.json").documents == tuple(documents)


def test_predicting_anew_over_an_export_leaves_its_annotation_and_relations_behind(tmp_path: Path) -> None:
    document = formats.read(FIXTURES / "export.json").documents[0]
    predicted = document.with_entities([Entity(3, 5, "bod", 0.9), Entity(8, 10, "ite", 0.8)])
    notes = formats.write(tmp_path / "out.json", [predicted], "label_studio")
    assert notes == {
        "fields of the annotation left out: its entities are predicted anew": 1,
        "result left out: its entity is gone": 1,
    }
    (task,) = tasks(tmp_path / "out.json")
    assert task["id"] == 7
    assert "annotations" not in task
    assert [region["id"] for region in task["predictions"][0]["result"]] == ["a1", "spantune-1"]
    assert formats.read(tmp_path / "out.json").documents[0].id == "7-20"


def test_what_annotators_make_of_our_tasks_comes_back_under_our_ids(tmp_path: Path) -> None:
    formats.write(tmp_path / "out.json", [Document("note/7", NOTE, (Entity(3, 5, "bod", 0.5),))], "label_studio")
    (task,) = tasks(tmp_path / "out.json")
    region = task["predictions"][0]["result"][0] | {"origin": "prediction"}
    annotation = {"id": 5, "completed_by": 2, "was_cancelled": False, "result": [region]}
    exported = task | {"id": 31, "annotations": [annotation]}
    (tmp_path / "in.json").write_text(json.dumps([exported]), encoding="utf-8")
    (document,) = formats.read(tmp_path / "in.json").documents
    assert (document.id, document.entities[0].score, document.meta["annotator"]) == ("note/7", None, 2)
    exported["annotations"].append(annotation | {"id": 6})
    (tmp_path / "in.json").write_text(json.dumps([exported]), encoding="utf-8")
    assert [document.id for document in formats.read(tmp_path / "in.json").documents] == ["note/7-5", "note/7-6"]


def test_our_prediction_that_label_studio_has_exported_keeps_its_fields(tmp_path: Path) -> None:
    formats.write(tmp_path / "out.json", [Document("note/7", NOTE, (Entity(3, 5, "bod", 0.5),))], "label_studio")
    (task,) = tasks(tmp_path / "out.json")
    task["predictions"][0] |= {"id": 11, "created_ago": "1 hour"}
    (tmp_path / "in.json").write_text(json.dumps([task]), encoding="utf-8")
    assert formats.write(tmp_path / "back.json", formats.read(tmp_path / "in.json").documents, "label_studio") == {}
    assert tasks(tmp_path / "back.json") == [task]


def test_the_text_among_several_is_named_by_the_column_option(tmp_path: Path) -> None:
    source = tmp_path / "in.json"
    source.write_text('[{"id": 1, "data": {"title": "T", "body": "lung"}, "annotations": [{"id": 2, "result": []}]}]')
    with pytest.raises(
        DataError, match=r"in\.json:1, field data: found title, body; expected one text: .*--column NAME"
    ):
        formats.read(source)
    documents = formats.read(source, options=Options(column="body")).documents
    assert [document.text for document in documents] == ["lung"]
    formats.write(tmp_path / "back.json", documents, "label_studio")
    assert tasks(tmp_path / "back.json")[0]["data"] == {"title": "T", "body": "lung"}
    with pytest.raises(DataError, match="expected a text 'text'"):
        formats.read(source, options=Options(column="text"))


LINKS = [
    "/data/upload/7/0a1b-letter.txt",
    "/data/local-files/?d=letters%2F1.txt",
    "s3://bucket/a b.txt",
    "gs://bucket/a.txt",
    "azure-blob://container/a",
    "http://example.com/a.txt\n",
    "https://example.com/a?b=c",
]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("result", [[], [{"type": "labels", "value": {"start": 5, "end": 11, "labels": ["ORG"]}}]])
def test_a_text_that_is_only_a_link_is_refused(link: str, result: list[Any], tmp_path: Path) -> None:
    task = {"data": {"text": link}, "annotations": [{"result": result}]}
    (tmp_path / "in.json").write_text(json.dumps([task]), encoding="utf-8")
    assert_unreadable(tmp_path / "in.json", None, ["in.json:1, field data.text", "only a link", "put the text"])


def test_a_text_with_a_link_in_it_and_a_link_that_is_annotated_are_texts(tmp_path: Path) -> None:
    region = {"type": "labels", "value": {"start": 0, "end": 5, "text": "https", "labels": ["SCHEME"]}}
    rows = [("see https://example.com", []), ("s3://a is down, again", []), ("https://example.com", [region])]
    tasks = [{"id": text, "data": {"text": text}, "annotations": [{"result": result}]} for text, result in rows]
    (tmp_path / "in.json").write_text(json.dumps(tasks), encoding="utf-8")
    assert [document.text for document in formats.read(tmp_path / "in.json").documents] == [text for text, _ in rows]


def test_other_results_cost_nothing_where_some_annotation_has_labels(tmp_path: Path) -> None:
    choice = '{"type": "choices", "value": {"choices": ["x"]}}'
    negative = TASK[2:-1] % choice
    skipped = TASK[2:-1].replace('"id": 1', '"id": 2').replace('"id": 2,', '"id": 2, "was_cancelled": true,') % REGION
    for name, tasks_after in (("read", TASK[2:-1].replace('"id": 1', '"id": 2') % REGION), ("skipped", skipped)):
        path = tmp_path / f"{name}.json"
        path.write_text(f"[{negative},\n{tasks_after}]", encoding="utf-8")
        corpus = formats.read(path)
        assert [len(document.entities) for document in corpus.documents] == [0, 1][: len(corpus.documents)]
        assert corpus.notes["result of type 'choices' kept in meta only"] == 1
    assert_unreadable_choices = tmp_path / "none.json"
    assert_unreadable_choices.write_text(f"[{negative}]", encoding="utf-8")
    assert_unreadable(assert_unreadable_choices, None, ["no labels in the whole file"])


def test_what_stands_in_fields_that_are_not_needed_costs_no_document(tmp_path: Path) -> None:
    unneeded = [
        '"note": "\\ud800"',
        '"predictions": 5',
        '"size": 1e999',
        '"meta": 3',
        '"inner": [{"x": -1e999, "y": 1}]',
    ]
    text = "[" + ",\n".join(
        TASK[2:-1].replace('"id": 1', f'"id": {n}, {field}') % REGION for n, field in enumerate(unneeded)
    )
    text += ', {"data": {"text": "x"}, "predictions": 5, "annotations": []}]'
    (tmp_path / "in.json").write_text(text, encoding="utf-8")
    corpus = formats.read(tmp_path / "in.json")
    assert [found(document) for document in corpus.documents] == 5 * [[("lung", "b")]]
    assert {note.rpartition(": ")[2]: count for note, count in corpus.notes.items()} == {
        "label_studio.task.note": 1,
        "label_studio.task.size": 1,
        "label_studio.task.inner[].x": 1,
        "task skipped: it has no annotation, and its predictions are no list".rpartition(": ")[2]: 1,
    }
    assert formats.write(tmp_path / "out.json", corpus.documents, "label_studio") == {}
    assert formats.read(tmp_path / "out.json").documents == corpus.documents
    back = tasks(tmp_path / "out.json")
    assert (back[3]["meta"], back[4]["inner"]) == (3, [{"y": 1}])


def test_regions_of_html_are_placed_in_its_source_by_the_text_that_is_seen(tmp_path: Path) -> None:
    source = "<p>Paid to AT&amp;T <b>In</b>c</p><!-- x > y -->\n<p>1 < 2</p>"
    regions = [(8, 12, "AT&T", "AT&amp;T"), (13, 16, "Inc", "In</b>c"), (17, 22, "1 < 2", "1 < 2")]
    result = [
        {
            "type": kind,
            "value": {
                "start": "/p[1]/text()[1]",
                "globalOffsets": {"start": start, "end": end},
                "text": text,
                kind: ["ORG"],
            },
        }
        for kind, (start, end, text, _) in zip(["labels", "hypertextlabels", "labels"], regions, strict=True)
    ]
    task = {"data": {"text": source}, "annotations": [{"result": result}]}
    (tmp_path / "in.json").write_text(json.dumps([task]), encoding="utf-8")
    corpus = formats.read(tmp_path / "in.json")
    assert found(corpus.documents[0]) == [(expected, "ORG") for *_, expected in regions]
    assert corpus.notes["region of HTML placed by its globalOffsets, to be written as a region of text"] == 3


def test_tasks_as_lines_and_completions_of_old_versions_are_read(tmp_path: Path) -> None:
    task = '{"id": 1, "data": {"text": "lung"}, "completions": [{"id": 2, "result": []}]}\n'
    (tmp_path / "old.jsonl").write_text(task + task.replace("1,", "2,"), encoding="utf-8")
    assert [document.id for document in formats.read(tmp_path / "old.jsonl").documents] == ["1-2", "2-2"]


@settings(deadline=None)
@given(
    st.lists(annotated(), min_size=1, max_size=4),
    st.booleans(),
    st.fixed_dictionaries({}, optional={"group": st.text(max_size=3), "x": st.none() | st.lists(st.integers())}),
)
def test_round_trip_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, documents: list[Document], scored: bool, meta: dict[str, Any]
) -> None:
    named = [Document(f"d/{n}", d.text, d.entities, meta) for n, d in enumerate(documents)]
    if scored:
        named = [d.with_entities(replace(e, score=0.5 if e.start % 2 else 1.0) for e in d.entities) for d in named]
    path = tmp_path_factory.mktemp("trip") / "back.json"
    assert formats.write(path, named, "label_studio") == {}
    assert formats.detect(path) == "label_studio"
    back = formats.read(path).documents
    assert back == tuple(named)
    assert [e.score for d in back for e in d.entities] == [e.score for d in named for e in d.entities]


REGION = '{"id": "a", "type": "labels", "value": {"start": 0, "end": 4, "text": "lung", "labels": ["b"]}}'
TASK = '[\n{"id": 1, "data": {"text": "lung pain"}, "annotations": [{"id": 2, "result": [%s]}]}]'
HTML = (
    '{"type": "hypertextlabels", "value": {"start": "/text()[1]", "end": "/text()[1]", "startOffset": 5, '
    '"endOffset": 9, "globalOffsets": {"start": 5, "end": 9}, "text": "pain", "hypertextlabels": ["b"]}}'
)
PREDICTED = '[{"data": {"text": "lung pain"}, "predictions": [{"result": [%s]}]}]'
BAD = {
    "choices": (
        None,
        TASK % '{"type": "choices", "value": {"choices": ["x"]}}',
        ["bad.json:2, field annotations[0].result", "type choices", "expected labels", "<Labels>"],
    ),
    "rectangles": (None, TASK % '{"type": "rectanglelabels", "value": {"x": 1}}', ["type rectanglelabels", "export"]),
    "rectangles, min": (
        None,
        '[{"image": "x.png", "label": [{"x": 1, "rectanglelabels": ["a"]}], "annotator": 1, "annotation_id": 2, '
        '"lead_time": 1.5}]',
        ["bad.json:1", "type rectanglelabels"],
    ),
    "untyped": (None, TASK % "{}", ["type None", "expected labels"]),
    "no text": (
        None,
        '[{"data": {"image": 3}, "annotations": [{"result": []}]}]',
        ["field data", "found image (the number 3)"],
    ),
    "two texts": (None, TASK.replace('"text": "lung', '"a": "x", "b": "lung') % "", ["found a, b", "--column"]),
    "surface": (
        None,
        TASK % REGION.replace('"lung"', '"pain"'),
        ["bad.json:2, field annotations[0].result[0].value.text", "'pain'", "'lung'", "it occurs at 5", "mend"],
    ),
    "end": (None, TASK % REGION.replace("4", "5"), ["ends 5 characters", "'lung' has 4", "mend the end"]),
    "outside": (
        None,
        TASK % REGION.replace('"text": "lung", ', "").replace("4", "14"),
        ["result[0].value.end", "[0, 14)", "9 characters"],
    ),
    "start is text": (None, TASK % REGION.replace("0", '"0"'), ["value.start", "found a string", "whole number"]),
    "no value": (None, TASK % '{"type": "labels"}', ["value.start", "missing"]),
    "no labels": (None, TASK % REGION.replace('["b"]', "[]"), ["value.labels", "found []", "give the region one"]),
    "label is a number": (None, TASK % REGION.replace('"b"', "7"), ["value.labels", "found [7]"]),
    "result is an object": (None, TASK.replace("[%s]", "{}"), ["annotations[0].result", "found an object", "a list"]),
    "no result": (None, TASK.replace('"result": [%s]', '"by": 1'), ["annotations[0].result", "missing"]),
    "annotation is a number": (
        None,
        TASK.replace('{"id": 2, "result": [%s]}', "2"),
        ["annotations[0]", "the number 2"],
    ),
    "score": (None, PREDICTED % REGION.replace('"id"', '"score": 7, "id"'), ["result[0].score", "found 7", "0 to 1"]),
    "predictions by id": (None, PREDICTED.replace('{"result": [%s]}', "3"), ["predictions[0]", "the number 3"]),
    "our meta": (None, TASK.replace('"data"', '"meta": {"spantune": 3}, "data"') % "", ["meta.spantune", "an object"]),
    "our id": (None, TASK.replace('"data"', '"meta": {"spantune": {"id": 3}}, "data"') % "", ["meta.spantune.id"]),
    "label of half a pair": (None, TASK % REGION.replace('"b"', '"\\ud800"'), ["value.labels", "a list of labels"]),
    "id of half a pair": (
        None,
        TASK.replace('"id": 1', '"id": "\\ud800"') % "",
        ["bad.json:2, field id", "another id"],
    ),
    "html": (
        None,
        TASK % HTML.replace('"start": 5, "end"', '"start": 4, "end"'),
        ["result[0].value.start", "a region of HTML", "<Labels> on a <Text>"],
    ),
    "html without offsets": (None, TASK % HTML.replace("globalO", "o"), ["value.start", "a region of HTML"]),
    "repeated": (None, TASK[:-1] % "" + ",\n" + TASK[2:] % "", ["bad.json:3", "'1-2' is repeated"]),
    "nobody annotated": (None, TASK.replace('{"id": 2, "result": [%s]}', ""), ["no document was found"]),
    "cut short": (None, TASK[:-1] % "", ["bad.json:2", "expected , or ]"]),
    "surrogate": (None, TASK.replace("lung pain", "lung \\ud83d") % "", ["data.text", "U+D83D"]),
}


@pytest.mark.parametrize(("format", "content", "fragments"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(format: str | None, content: str, fragments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content, encoding="utf-8")
    assert_unreadable(path, format, fragments)


def test_what_is_wrong_with_one_annotation_does_not_hide_the_others(tmp_path: Path) -> None:
    both = TASK % "{}" + "\n"
    both = both.replace("]}]", ']}, {"id": 3, "result": []}]', 1)
    (tmp_path / "x.json").write_text(both, encoding="utf-8")
    first, second = formats.items(tmp_path / "x.json", None, Counter())
    assert isinstance(first, DataError)
    assert isinstance(second, RawDocument)
    assert second.id == "1-3"


@pytest.mark.parametrize(
    ("kept", "fragment"),
    [
        (3, "found 3"),
        ({"task": []}, "found [] for task"),
        ({"task": {"meta": 3}}, "found 3 for task.meta"),
        ({"annotations": "x"}, "found 'x' for annotations"),
        ({"data": 1}, "found 1 for data"),
        ({"results": {}}, "found {} for results"),
        ({"results": [3]}, "found [3] for results"),
        ({"entities": [{"id": "a"}]}, "start, end, label, id"),
    ],
)
def test_meta_that_reading_did_not_keep_is_refused_and_leaves_nothing(
    kept: object, fragment: str, tmp_path: Path
) -> None:
    document = Document("d", "a", (Entity(0, 1, "x"),), {"label_studio": kept})
    with pytest.raises(DataError) as caught:
        formats.write(tmp_path / "x.json", [Document("c", "fine"), document], "label_studio")
    assert [
        part for part in ("'d'", fragment, "meta['label_studio']", "remove it") if part not in str(caught.value)
    ] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
@pytest.mark.parametrize(("name", "documents", "entities"), [("full", 160, 514), ("slim", 121, 484)])
def test_real_exports_are_recovered_whole(name: str, documents: int, entities: int, tmp_path: Path) -> None:
    source = SHARED / "label_studio_zh" / f"label_studio_{name}.json"
    corpus = formats.read(source)
    assert (corpus.format, corpus.notes, len(corpus.documents)) == ("label_studio", {}, documents)
    assert sum(len(document.entities) for document in corpus.documents) == entities
    for task, document in zip(tasks(source), corpus.documents, strict=True):
        values = [r["value"] for a in task["annotations"] for r in a["result"] if r["type"] == "labels"]
        stated = sorted((value["start"], value["end"], *value["labels"], value["text"]) for value in values)
        assert [(e.start, e.end, e.label, document.surface(e)) for e in document.entities] == stated
    assert formats.write(tmp_path / "back.json", corpus.documents, "label_studio") == {}
    again = formats.read(tmp_path / "back.json").documents
    assert [(d.id, d.text, d.entities) for d in again] == [(d.id, d.text, d.entities) for d in corpus.documents]
    for before, after in zip(tasks(source), tasks(tmp_path / "back.json"), strict=True):
        ordered = [sorted(t["annotations"][0].pop("result"), key=str) for t in (before, after)]
        assert [{k: r[k] for k in sorted(r)} for r in ordered[1]] == [{k: r[k] for k in sorted(r)} for r in ordered[0]]
        assert {k: v for k, v in before.items() if k != "predictions" and v != {}} == after


def region(start: int, end: int, text: str | None, to_name: str, id: str) -> dict[str, object]:
    value = {"start": start, "end": end, "labels": ["sym"]} | ({} if text is None else {"text": text})
    return {"id": id, "from_name": "label", "to_name": to_name, "type": "labels", "value": value}


def two_texts(folder: Path, *regions: dict[str, object]) -> Path:
    data = {"title": "无不适", "body": "患者腹痛三天。"}
    task = {"id": 1, "data": data, "annotations": [{"id": 5, "result": list(regions)}]}
    return file_of(folder, "two.json", [task])


def test_regions_of_another_text_are_kept_in_meta_and_written_back(tmp_path: Path) -> None:
    path = two_texts(tmp_path, region(2, 4, "腹痛", "t2", "a"), region(0, 2, "无不", "t1", "b"))
    for column, surface in (("body", "腹痛"), ("title", "无不")):
        corpus = formats.read(path, None, Options(column=column))
        assert [corpus.documents[0].surface(entity) for entity in corpus.documents[0].entities] == [surface]
        assert corpus.notes == {"region of another text kept in meta only": 1}
        formats.write(tmp_path / "out.json", corpus.documents, "label_studio")
        again = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        assert {result["id"] for result in again[0]["annotations"][0]["result"]} == {"a", "b"}


def test_regions_that_do_not_show_their_text_are_told_by_its_name_or_refused(tmp_path: Path) -> None:
    named = two_texts(tmp_path, region(2, 4, None, "body", "a"), region(0, 2, None, "title", "b"))
    assert formats.read(named, None, Options(column="body")).documents[0].entities == (Entity(2, 4, "sym"),)
    unnamed = two_texts(tmp_path, region(2, 3, None, "t2", "a"), region(0, 2, None, "t1", "b"))
    with pytest.raises(DataError, match=r"found regions of several texts \(t1, t2\).*call the <Text>"):
        formats.read(unnamed, None, Options(column="body"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": None}, r"found text \(null\); expected a text, a string"),
        ({"dialogue": [{"text": "a"}]}, r"found dialogue \(a list\); expected a text, a string"),
        ({"image": "http://x/a.png"}, "found results of type rectanglelabels, and no labels in the whole file"),
    ],
)
def test_a_task_without_a_text_is_refused_by_what_it_has(data: dict[str, object], message: str, tmp_path: Path) -> None:
    result = {"id": "a", "type": "rectanglelabels", "from_name": "r", "to_name": "image", "value": {"x": 1}}
    path = file_of(tmp_path, "a.json", [{"id": 1, "data": data, "annotations": [{"id": 2, "result": [result]}]}])
    with pytest.raises(DataError, match=message):
        formats.read(path)


def test_on_one_line_the_task_is_named_by_its_place_in_the_array(tmp_path: Path) -> None:
    good = {"id": 1, "data": {"text": "ab"}, "annotations": [{"id": 1, "result": []}]}
    bad = {"id": 2, "data": {"text": "ab"}, "annotations": [{"id": 2, "result": [region(0, 1, "b", "text", "x")]}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps([good, bad]), encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json:1, field \[1\]\.annotations\[0\]\.result\[0\]\.value\.text: "):
        formats.read(path)
    path.write_text(json.dumps([good, bad], indent=1), encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json:\d\d, field annotations\[0\]\.result\[0\]\.value\.text: "):
        formats.read(path)


def test_what_was_passed_over_is_said_where_no_document_is_left(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.json", [{"id": 1, "data": {"text": "ab"}, "annotations": [], "drafts": [{"id": 3}]}])
    with pytest.raises(DataError, match=r"read as label_studio \(counted: 1 × task without annotation skipped\)"):
        formats.read(path)
