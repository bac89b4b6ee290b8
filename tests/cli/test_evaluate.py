"""`evaluate` with two files, and `compare`: output for scripts and for people."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.command import one_line_error
from helpers.real import SHARED
from spantune.core import Document, Entity
from spantune.data import formats
from spantune.runs import evaluated

Command = Callable[..., Any]
TEXTS = ["肺炎患者咳嗽", "右肺疼痛", "无异常"]
GOLD = [
    Document("1", TEXTS[0], (Entity(0, 2, "dis"), Entity(0, 1, "bod"), Entity(4, 6, "sym"))),
    Document("2", TEXTS[1], (Entity(0, 2, "bod"), Entity(0, 4, "sym"))),
    Document("3", TEXTS[2]),
]
PREDICTED = [
    GOLD[0].with_entities([Entity(0, 2, "dis"), Entity(4, 6, "dis")]),
    GOLD[1].with_entities([Entity(0, 4, "sym")]),
    GOLD[2].with_entities([Entity(0, 1, "dis")]),
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Gold documents, two predictions and training documents as native JSONL files."""
    sides = {"gold": GOLD, "predicted": PREDICTED, "right": GOLD, "train": GOLD[:1]}
    for name, documents in sides.items():
        formats.write(tmp_path / f"{name}.jsonl", documents)
    return {name: tmp_path / f"{name}.jsonl" for name in sides}


def test_two_files_are_scored_without_a_run(command: Command, files: dict[str, Path]) -> None:
    outcome = command(
        "evaluate", "--gold", files["gold"], "--predicted", files["predicted"], "--train", files["train"], "--json"
    )
    assert outcome.code == 0 and outcome.err == ""
    found = json.loads(outcome.out)
    micro = found["strict"]["micro"]
    assert (micro["correct"], micro["predicted"], micro["gold"], micro["f1"]) == (2, 4, 5, pytest.approx(4 / 9))
    assert micro["f1_low"] is micro["f1_high"] is None
    table = command("evaluate", "--gold", files["gold"], "--predicted", files["predicted"]).out
    assert "too few to say" in table and "–" not in table.partition("forgiving")[0]
    assert set(found["strict"]["labels"]) == {"bod", "dis", "sym"}
    assert found["boundary"]["correct"] == 3 and found["alarms"]["predicted"] == 1
    assert found["slices"]["surface"]["seen"]["gold"] == 3


def test_the_table_has_every_part(command: Command, files: dict[str, Path]) -> None:
    outcome = command(
        "evaluate", "--gold", files["gold"], "--predicted", files["predicted"], "--protocol", "promptcblue"
    )
    for part in ("strict, promptcblue", "all (micro)", "mean of labels", "right place", "nesting inside", "1,000"):
        assert part in outcome.out


def test_files_without_ids_are_paired_by_their_texts(command: Command, files: dict[str, Path], tmp_path: Path) -> None:
    formats.write(tmp_path / "other.json", PREDICTED[::-1], "cmeee")
    outcome = command("evaluate", "--gold", files["gold"], "--predicted", tmp_path / "other.json", "--json")
    assert f"{tmp_path / 'other.json'}: no id is that of a gold document; paired by their texts" in outcome.err
    found = json.loads(outcome.out)
    assert found["strict"]["micro"]["correct"] == 2 and found["documents"] == 3


def test_what_is_no_error_is_said_on_stderr(command: Command, files: dict[str, Path], tmp_path: Path) -> None:
    new = tmp_path / "new.jsonl"
    formats.write(
        new, [GOLD[0].with_entities([Entity(0, 2, "dis"), Entity(0, 2, "dis"), Entity(1, 2, "new")]), *GOLD[1:]]
    )
    outcome = command("evaluate", "--gold", files["gold"], "--predicted", new, "--json")
    assert "1 × predicted entity repeated in its document, counted once" in outcome.err
    assert "1 × predicted entity of label 'new', which no gold entity has" in outcome.err
    assert json.loads(outcome.out)["notes"]
    refused = command("evaluate", "--gold", files["gold"], "--predicted", new, "--labels", "dis,bod,sym")
    one_line_error(refused, "new.jsonl against", "predicted label 'new' is not in the label set")


def test_limit_takes_the_first_gold_documents(command: Command, files: dict[str, Path]) -> None:
    arguments = ("evaluate", "--gold", files["gold"], "--predicted", files["predicted"], "--limit", 1, "--json")
    found = json.loads(command(*arguments).out)
    assert found["documents"] == 1 and found["strict"]["micro"]["gold"] == 3 and found["alarms"] is None


def test_predictions_that_do_not_fit_are_one_line(command: Command, files: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"

    def refused(documents: list[Document]) -> Any:
        formats.write(bad, documents)
        return command("evaluate", "--gold", files["gold"], "--predicted", bad)

    one_line_error(refused(PREDICTED[:2]), "bad.jsonl against", "document '3' is gold only")
    one_line_error(refused([Document("1", "肺炎"), *PREDICTED[1:]]), "document '1': the gold text (6 characters)")
    one_line_error(refused([PREDICTED[0], *PREDICTED]), "the id '1' is repeated")
    bad.write_text(
        json.dumps({"id": "1", "text": "ab", "entities": [{"start": 0, "end": 1, "label": "x", "score": float("nan")}]})
    )
    one_line_error(command("evaluate", "--gold", files["gold"], "--predicted", bad), "bad.jsonl:1", "NaN")


@pytest.mark.parametrize(
    "options", [(), ("--gold",), ("--predicted",), ("--gold", "--predicted", "--data"), ("--data",)]
)
def test_half_of_what_is_needed_is_refused(command: Command, files: dict[str, Path], options: tuple[str, ...]) -> None:
    arguments = [part for option in options for part in (option, files["gold"])]
    one_line_error(
        command("evaluate", *arguments), "a run folder with --data FILE", "--gold FILE with --predicted FILE"
    )
    if len(options) != 1 or options[0] != "--data":
        one_line_error(command("evaluate", "some/run", *arguments), "give a run folder with --data FILE")


def test_labels_that_name_nothing_are_refused(command: Command, files: dict[str, Path]) -> None:
    outcome = command("evaluate", "--gold", files["gold"], "--predicted", files["right"], "--labels", " ,")
    one_line_error(outcome, "names no label")


def test_compare_files(command: Command, files: dict[str, Path]) -> None:
    arguments = ("compare", "--gold", files["gold"], files["predicted"], files["right"])
    outcome = command(*arguments)
    assert outcome.code == 0
    assert "all (micro)" in outcome.out and "points higher than that of" in outcome.out
    found = json.loads(command(*arguments, "--json").out)
    (difference,) = found["differences"]
    assert difference["micro"]["f1"] == pytest.approx(1 - 4 / 9) and not difference["micro"]["real"]
    assert found["systems"]["right.jsonl"]["strict"]["micro"]["f1"] == 1.0
    one_line_error(command("compare", files["predicted"], files["right"]), "is no run folder", "--gold FILE")
    one_line_error(command("compare", "--gold", files["gold"], files["right"]), "two different systems")


def test_compare_runs_by_their_newest_predictions(command: Command, trained: Any, tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        shutil.copytree(trained.folder, run, ignore=shutil.ignore_patterns("swanlab", "checkpoints", "adapter"))
    (newest,) = (path for path in (runs[0] / "predictions").glob("test-*.jsonl") if path.stem != "test-0")
    documents = formats.read(newest).documents
    formats.write(runs[1] / "predictions" / "test-900.jsonl", [one.with_entities([]) for one in documents])
    found = json.loads(command("compare", *runs, "--json").out)
    first, second = found["systems"].values()
    assert first["strict"]["micro"]["f1"] == pytest.approx(trained.after.scores.micro.f1)
    assert second["strict"]["micro"]["predicted"] == 0
    assert list(found["systems"]) == ["one", "two"]
    for run in runs:  # as if the runs had no test set
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        config["data"]["dev"] = config["data"]["test"]
        (run / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    outcome = command("compare", *runs, "--report", tmp_path / "report")
    assert outcome.err.count("there is no test set; measured on the dev documents, which chose its adapter") == 2
    assert "data the dev documents of one" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    for path in (runs[1] / "predictions").glob("test-[1-9]*.jsonl"):
        path.unlink()
    one_line_error(command("compare", *runs), "two has no predictions after training", "--resume")
    shutil.rmtree(runs[1] / "predictions")
    one_line_error(command("compare", *runs), "no predictions/test-<step>.jsonl here")


def test_systems_of_one_name_go_by_their_paths(command: Command, files: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other" / "predicted.jsonl"
    other.parent.mkdir()
    formats.write(other, GOLD)
    found = json.loads(command("compare", "--gold", files["gold"], files["predicted"], other, "--json").out)
    assert list(found["systems"]) == [str(files["predicted"]), str(other)]
    assert found["differences"][0]["second"] == str(other)


def test_compare_refuses_runs_on_other_annotations(command: Command, trained: Any, tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        shutil.copytree(trained.folder, run, ignore=shutil.ignore_patterns("swanlab", "checkpoints", "adapter"))
    gold = [one.with_entities(one.entities[1:]) for one in trained.after.gold]
    formats.write(tmp_path / "v2.jsonl", gold)
    config = yaml.safe_load((runs[1] / "config.yaml").read_text(encoding="utf-8"))
    config["data"]["test"] = str(tmp_path / "v2.jsonl")
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    outcome = command("compare", *runs, "--report", tmp_path / "report")
    one_line_error(outcome, "the gold annotations of one and two differ", "V1 and V2", "measure both against one")
    assert not (tmp_path / "report").exists()
    assert command("compare", *runs, "--gold", tmp_path / "v2.jsonl").code == 0


NAMES = ["report.html", "report.md", "scores.json"]


def test_report_of_two_files(command: Command, files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "report"
    arguments = ("evaluate", "--gold", files["gold"], "--predicted", files["predicted"], "--json", "--report", folder)
    outcome = command(*arguments)
    assert outcome.code == 0 and sorted(path.name for path in folder.iterdir()) == NAMES
    printed, written = json.loads(outcome.out), json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert {key: written[key] for key in printed} == printed
    assert written["errors"] == {
        "correct": 2, "type": 1, "boundary": 0, "boundary+type": 0, "missed": 2, "spurious": 1,
    }  # fmt: skip
    markup = (folder / "report.html").read_text(encoding="utf-8")
    assert "predicted.jsonl against gold.jsonl" in markup and "How it was made" not in markup


def test_report_of_a_comparison(command: Command, files: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "compared"
    arguments = ("compare", "--gold", files["gold"], files["predicted"], files["right"], "--json", "--report", folder)
    printed = json.loads(command(*arguments).out)
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    written = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    assert written["differences"] == printed["differences"] and written["data"] == str(files["gold"])
    assert "Where the systems differ" in (folder / "report.html").read_text(encoding="utf-8")


def test_report_of_a_run_has_its_errors_and_what_was_left_out(
    command: Command, trained: Any, corpus: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained.folder, tmp_path / "run", ignore=shutil.ignore_patterns("swanlab")))
    data = tmp_path / "test-77.jsonl"  # the run's own predictions have such a name
    shutil.copy(corpus / "test.jsonl", data)
    arguments = ("evaluate", run, "--data", data, "--min-score", 1, "--json", "--report", run / "again")
    outcome = command(*arguments)
    assert outcome.code == 0, outcome.err
    printed = json.loads(outcome.out)
    written = json.loads((run / "again" / "scores.json").read_text(encoding="utf-8"))
    assert written["strict"] == printed["strict"] and written["run"] == "run"
    assert written["rates"]["invalid_rate"] == printed["invalid_rate"]
    ailing = {name: count / printed["documents"] for name, count in written["answers"].items()}
    assert ailing["invalid answer"] >= printed["invalid_rate"]
    kept = formats.read(run / "predictions" / "corpus-test-77.jsonl").documents
    gone = [one for document in kept for one in document.meta.get("left_out", [])]
    assert printed["left_out"]["entities"] == len(gone) > 0 and printed["strict"]["micro"]["predicted"] == 0
    right = {(one.id, e.start, e.end, e.label) for one in trained.after.gold for e in one.entities}
    true = sum((d.id, e["start"], e["end"], e["label"]) in right for d in kept for e in d.meta.get("left_out", []))
    assert printed["left_out"]["correct"] == true
    markup = (run / "again" / "report.html").read_text(encoding="utf-8")
    assert f"{len(gone)} entities, of which gold has {true}" in markup and '"left out by the threshold",[' in markup
    assert not (run / "predictions" / "test-77.jsonl").exists()


def test_a_report_is_not_written_over_a_run_or_a_file(
    command: Command, trained: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    given = ("--gold", files["gold"], "--predicted", files["predicted"], "--report")
    one_line_error(command("evaluate", *given, trained.folder), "is a run folder", "give another")
    one_line_error(command("evaluate", *given, files["gold"]), "is a file; expected a folder")
    one_line_error(command("evaluate", *given, files["gold"] / "deeper"), "cannot be made")
    compared = ("compare", "--gold", files["gold"], files["predicted"], files["right"], "--report")
    one_line_error(command(*compared, trained.folder), "is a run folder")


def test_what_a_reader_could_not_take_is_said(command: Command, files: dict[str, Path], tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    found = {"start_idx": 0, "end_idx": 1, "type": "dis", "entity": "肺炎", "by": "me"}
    rows = [{"text": text, "entities": [found] if text == TEXTS[0] else []} for text in TEXTS]
    old.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    outcome = command("evaluate", "--gold", files["gold"], "--predicted", old)
    assert outcome.code == 0 and f"{old}: 1 × entity field 'by' not read\n" in outcome.err


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the shared data are not at {SHARED}")
def test_the_annotations_of_cmeee_v1_and_v2_are_far_apart(command: Command) -> None:
    first, second = SHARED / "cmeee_v1" / "dev.jsonl", SHARED / "cmeee_v2_few_shot" / "cmeee.jsonl"
    found = json.loads(command("evaluate", "--gold", second, "--predicted", first, "--json").out)
    micro = found["strict"]["micro"]
    assert found["documents"] == 2500 and micro["gold"] == 13_086
    assert micro["f1"] == pytest.approx(0.648, abs=0.001) and micro["f1_high"] - micro["f1_low"] < 0.03


def test_inputs_of_one_name_are_kept_apart_and_found_again(command: Command, trained: Any, tmp_path: Path) -> None:
    run = Path(
        shutil.copytree(trained.folder, tmp_path / "run", ignore=shutil.ignore_patterns("swanlab", "checkpoints"))
    )
    corpora = {name: tmp_path / name / "test.jsonl" for name in ("a", "b")}
    for name, text in (("a", "疮"), ("b", "痈")):
        corpora[name].parent.mkdir()
        formats.write(corpora[name], [Document(name, text, (Entity(0, 1, "dis"),))])
        assert command("evaluate", run, "--data", corpora[name]).code == 0
        assert command("evaluate", run, "--data", corpora[name]).code == 0  # the same input again
    kept = {entry.data: run / "predictions" / entry.file for entry in evaluated(run)}
    texts = {data: [document.text for document in formats.read(path).documents] for data, path in kept.items()}
    assert texts == {str(corpora["a"]): ["疮"], str(corpora["b"]): ["痈"]} and len(set(kept.values())) == 2
    for corpus in corpora.values():
        compared = command("compare", "--gold", corpus, run, corpus, "--json")
        assert compared.code == 0, compared.err
    assert command("report", run).code == 0
    assert all(f"predictions/{path.name}" in (run / "report.md").read_text(encoding="utf-8") for path in kept.values())


@pytest.mark.parametrize("name", ["extract", "evaluate", "calibrate", "compare"])
def test_commands_that_read_a_corpus_take_the_options_that_its_errors_name(command: Command, name: str) -> None:
    said = command(name, "--help").out
    offsets = ["--offsets", "--label"] if name != "extract" else []
    assert all(option in said for option in ["--format", "--column", "--joiner", "--encoding", *offsets])


def test_files_are_scored_in_their_encoding(command: Command, tmp_path: Path) -> None:
    (tmp_path / "gold.conll").write_bytes("Espa\xf1a\tB-LOC\nni\xf1o\tO\n".encode("latin-1"))
    outcome = command(
        "evaluate", "--gold", tmp_path / "gold.conll", "--predicted", tmp_path / "gold.conll", "--encoding", "latin-1"
    )
    assert outcome.code == 0 and "1.000" in outcome.out
