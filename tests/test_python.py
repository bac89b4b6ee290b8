"""The Python functions behind the commands, how their results are displayed, and how they become rows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import spantune
from spantune.data import Options

PNEUMONIA = spantune.Document("a", "右下肺炎", (spantune.Entity(0, 2, "bod"), spantune.Entity(2, 4, "dis", 0.75)))
TAG = spantune.Document("<b>", "<script>alert(1)</script>", (spantune.Entity(0, 8, "<i>"),))


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> Path:
    """A copy of the trained run, which the test may change."""
    return Path(shutil.copytree(trained.folder, tmp_path / "run", ignore=shutil.ignore_patterns("swanlab")))


class _Elements(HTMLParser):
    """Collects the names of a page's elements."""

    def __init__(self, page: str):
        super().__init__()
        self.names: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)


def test_a_run_is_evaluated_on_a_file_a_corpus_and_documents(run: Path, corpus: Path, trained: Any) -> None:
    evaluation = spantune.evaluate(run, corpus / "test.jsonl")
    assert evaluation.scores.micro == trained.scores.micro and evaluation.scores.slices["surface"]
    assert evaluation.file == run / "predictions" / "test.jsonl" and evaluation.file.is_file() and not evaluation.notes
    evaluation.file.unlink()
    extractor = spantune.load(run)
    documents = spantune.read(corpus / "test.jsonl").documents
    again = spantune.evaluate(extractor, documents[:3], protocol="promptcblue")
    assert again.file is None and len(again.gold) == 3 and again.scores.protocol == "promptcblue"
    assert not list((run / "predictions").glob("test.jsonl"))
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("train.jsonl", "gone.jsonl"))
    (note,) = spantune.evaluate(extractor, documents[:3]).notes
    assert note.startswith("no figures for seen and unseen surfaces; ") and "gone.jsonl" in note


def test_runs_and_files_are_compared(run: Path, corpus: Path, trained: Any, tmp_path: Path) -> None:
    comparison = spantune.compare([trained.folder, run])
    assert list(comparison.systems) == [trained.folder.name, "run"] and comparison.differences[0].micro.f1 == 0
    spantune.write(tmp_path / "gold.jsonl", spantune.read(corpus / "test.jsonl"))
    better = spantune.compare([run, tmp_path / "gold.jsonl"], corpus / "test.jsonl", labels=trained.after.scores.labels)
    assert better.systems["gold.jsonl"].micro.f1 == 1.0 and len(better.systems["run"].labels) == 9
    with pytest.raises(spantune.DataError, match="not in the label set"):
        spantune.compare([run, trained.folder], labels=["dis"])
    with pytest.raises(spantune.ConfigError, match="is no run folder"):
        spantune.compare([run, tmp_path / "gold.jsonl"])


def test_a_run_is_calibrated(run: Path, corpus: Path) -> None:
    fitted = spantune.calibrate(run, corpus / "dev.jsonl", precision=0.01, store=False)
    assert not (run / "calibration.json").exists() and fitted.evidence is not None
    assert fitted.evidence.data == str(corpus / "dev.jsonl")
    extractor = spantune.load(run, min_score=0.99)
    assert spantune.calibrate(extractor).temperature == fitted.temperature  # the run has the same dev documents
    assert (run / "calibration.json").is_file() and extractor.calibration is not None
    assert extractor.calibration.threshold == 0.99
    (run / "report.html").unlink()
    with pytest.raises(spantune.RunError, match="not finished"):
        spantune.calibrate(run)
    with pytest.raises(spantune.ConfigError, match="a wanted precision of 2"):
        spantune.calibrate(run, precision=2)
    with pytest.raises(spantune.RunError, match=r"no config\.yaml here"):
        spantune.load(run / "config.yaml")


def _counts(report: Any) -> list[tuple[str, int]]:
    return [(finding.name, finding.count) for finding in report.findings]


def test_a_corpus_is_checked_and_split(corpus: Path, tmp_path: Path) -> None:
    whole = spantune.read("bundled:clinical-zh-test")
    report = spantune.check(whole, labels=["dis"])
    assert report.documents == 120 and any("label" in finding.name for finding in report.findings)
    assert _counts(spantune.check("bundled:clinical-zh-test")) == _counts(spantune.check(whole))
    wrong = spantune.Corpus.from_dicts([{"text": text, "entities": []} for text in ("a", "a\u200bb")])
    assert [finding.where for finding in spantune.check(wrong).findings if "zero" in finding.name] == ["records:2"]
    assert spantune.check([corpus / "train.jsonl", corpus / "train.jsonl"]).errors
    division = spantune.split(whole, to=tmp_path / "splits")
    assert list(division.parts) == ["train", "dev", "test"] and division.size == 120
    assert spantune.read(tmp_path / "splits" / "dev.jsonl").documents == division.parts["dev"]
    assert list(spantune.split(whole.documents, {"one": 0.5, "other": 0.5}).parts) == ["one", "other"]
    with pytest.raises(spantune.ConfigError, match="expected two or three, or a mapping"):
        spantune.split(whole, (0.25, 0.25, 0.25, 0.25))


def test_overrides_reach_plan_and_train(recipe_file: Callable[..., Path], trained: Any) -> None:
    path = recipe_file()
    plan = spantune.plan(path, ["data.limit=5"])
    assert not plan.failed and repr(plan).startswith("Plan(0 of ")
    with pytest.raises(spantune.ConfigError, match="did you mean 'max_steps'"):
        spantune.train(path, ["train.max_step=24"])
    with pytest.raises(spantune.ConfigError, match="did you mean 'max_steps'"):
        spantune.train(spantune.load_config(path), ["train.max_step=24"])
    with pytest.raises(spantune.RunError, match="is finished"):
        spantune.train(resume=trained.folder)


def test_loading_prints_no_bar_of_a_library_and_leaves_its_settings(
    trained: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    spantune.load(trained.folder)
    assert capfd.readouterr() == ("", "") and logging.is_progress_bar_enabled()


def test_values_are_shown_in_a_line(trained: Any) -> None:
    scores = spantune.score([PNEUMONIA], [PNEUMONIA])
    extractor = spantune.load(trained.folder)
    shown = {
        repr(PNEUMONIA): "Document('a', '右下肺炎', 2 entities)",
        repr(spantune.Document("b", "x" * 50)): f"Document('b', '{'x' * 37}...', 0 entities)",
        repr(spantune.read("bundled:clinical-zh-test")): "Corpus('bundled:clinical-zh-test', marked, 120 documents, ",
        repr(scores): "Scores(micro F1 1.000, 2 correct of 2 predicted and 2 gold, 1 document)",
        repr(trained): f"Result({str(trained.folder)!r}, F1 {trained.scores.micro.f1:.3f}",
        repr(extractor): f"Extractor({str(trained.folder)!r}, model phi3, jsonl, 9 labels, on cpu)",
        repr(extractor.task): "labels=",
        repr(spantune.load_config("recipes/demo.yaml")): "Config(run demo, model bundled:gemma3-270m, labels cmeee, ",
    }
    for text, beginning in shown.items():
        assert text.startswith(beginning) or beginning == "labels=", text
    assert "on the documents that chose the adapter" in repr(replace(trained, f1_on="dev"))
    assert "[" in repr(spantune.score(*[[spantune.Document(str(i), "ab", (spantune.Entity(0, 1, "x"),))
                                         for i in range(10)]] * 2))  # fmt: skip


def test_notebooks_show_escaped_texts_and_one_colour_a_label(trained: Any) -> None:
    result = spantune.Corpus((TAG, PNEUMONIA), "native", Path("<u>.jsonl"), {"a <u> note": 1})
    scores = spantune.score([TAG], [TAG])
    problem = spantune.Extraction(TAG, status="length")  # type: ignore[arg-type]
    for value in (TAG, result, scores, trained, trained.after, problem, spantune.check(result)):
        page = value._repr_html_()
        assert page.startswith('<div class="spantune-document"><style>') and page.endswith("</div>")
        names = _Elements(page).names
        assert not names & {"script", "b>", "u", "img", "link"} and "table" in names, names
    spantune.load(trained.folder)  # now colours follow its labels: dis, sym, pro, equ, dru, ite, bod
    assert set(re.findall(r'class="tag (entity-\d+)"', PNEUMONIA._repr_html_())) == {"entity-0", "entity-6"}


def test_documents_become_rows_and_come_back() -> None:
    corpus = spantune.read("bundled:clinical-zh-test")
    again = spantune.Corpus.from_dicts(corpus.to_dicts())
    assert again.documents == corpus.documents and again.format == "native" and again.name == "records"
    assert spantune.to_dicts([PNEUMONIA]) == [PNEUMONIA.to_dict()]
    tagged = spantune.Corpus.from_dicts([{"tokens": ["Ann", "runs"], "ner_tags": ["B-PER", "O"]}])
    assert tagged.labels == {"PER": 1} and tagged.documents[0].text == "Ann runs"
    rows = spantune.score([PNEUMONIA], [PNEUMONIA]).to_dicts()
    assert [(row["label"], row["f1"]) for row in rows] == [("bod", 1.0), ("dis", 1.0)]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"text": "a"}, "expected a list of mappings"),
        ([5], r"records\[0\]: expected"),
        ([{"text": "abc", "entities": [{"start": 0, "end": 9, "label": "x"}]}], "records:1, field entities"),
        ([{"text": "a"}, {"text": object()}], "records:2: not plain values"),
        ([], "no records"),
    ],
)
def test_records_that_are_no_documents_are_refused(records: Any, message: str) -> None:
    with pytest.raises(spantune.SpantuneError, match=message):
        spantune.Corpus.from_dicts(records)


def test_pandas_has_a_row_for_each_entity_document_and_label() -> None:
    pandas = pytest.importorskip("pandas")
    frame = spantune.to_pandas([PNEUMONIA, spantune.Document("b", "无")])
    assert list(frame.columns) == ["id", "start", "end", "label", "text", "score"] and len(frame) == 2
    assert frame.text.tolist() == ["右下", "肺炎"] and isinstance(frame, pandas.DataFrame)
    documents = spantune.to_pandas([PNEUMONIA, spantune.Document("b", "无")], "documents")
    assert spantune.Corpus.from_dicts(documents.to_dict("records")).documents[0] == PNEUMONIA
    assert spantune.score([PNEUMONIA], [PNEUMONIA]).to_pandas().label.tolist() == ["bod", "dis"]
    assert "label" in spantune.to_pandas([]).columns


def test_pandas_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(spantune.ConfigError, match="run pip install pandas"):
        spantune.to_pandas([PNEUMONIA])
    with pytest.raises(spantune.ConfigError, match="expected 'entities' or 'documents'"):
        spantune.to_pandas([PNEUMONIA], "words")  # type: ignore[arg-type]


def test_a_dataset_of_hugging_face_is_a_corpus() -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"tokens": [["Ann", "runs"]], "ner_tags": [["B-PER", "O"]]})
    corpus = spantune.Corpus.from_datasets(table)
    assert corpus.labels == {"PER": 1} and corpus.documents[0].text == "Ann runs"
    renamed = table.rename_column("ner_tags", "tags")
    assert spantune.Corpus.from_datasets(renamed, Options(column="tags")).documents == corpus.documents
    for wrong, message in (
        (datasets.DatasetDict({"train": table}), r"dataset\['train'\]"),
        (table.to_iterable_dataset(), "expected a datasets.Dataset"),
        (table.select([]), "no rows"),
        (renamed, "name the column of tags"),
    ):
        with pytest.raises(spantune.SpantuneError, match=message):
            spantune.Corpus.from_datasets(wrong)
