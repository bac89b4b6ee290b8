"""Extraction by a run that reads spans: all outputs, long and unusual texts, calibration, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from helpers.command import Outcome
from helpers.fakes import tiny_model
from helpers.run_folders import READING, TASK, copy_run, save_run
from spantune.core import ConfigError, DataError, Document, Entity, ModelError, Status, TaskSpec, config
from spantune.data import formats, read
from spantune.extraction import Extractor, Server, calibrate_run, evaluate_run, load_remote, load_run
from spantune.extraction.chunked import cutter
from spantune.metrics import Calibration
from spantune.report import ExtractionView
from spantune.runs import RunFolder

TEXTS = [
    "",
    "肺",
    " ",
    "\n\r\n",
    "肺炎患者咳嗽。",
    "👩‍⚕️🫁𠀀 ab",
    "e\u0301a\u0302\u0301",
    "مريض بالتهاب",
    "<|im_end|>肺",
    "a" * 70,
]
DOCUMENTS = [Document(f"d{number}", text) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    return save_run(tmp_path_factory.mktemp("runs") / "reading", tiny_folder, READING)


@pytest.fixture(scope="module")
def extractor(run: Path) -> Extractor:
    return load_run(run)


def scored(document: Document) -> dict[tuple[int, int, str], float]:
    return {(entity.start, entity.end, entity.label): entity.score or 0.0 for entity in document.entities}


def test_any_text_is_read_alone_as_among_others(extractor: Extractor) -> None:
    together = list(extractor.stream(DOCUMENTS))
    backwards = list(extractor.stream(DOCUMENTS[::-1]))[::-1]
    assert sum(len(extraction.document.entities) for extraction in together) > 10
    for document, extraction, other in zip(DOCUMENTS, together, backwards, strict=True):
        assert (extraction.document.text, extraction.status, extraction.problems) == (document.text, "stopped", ())
        alone = scored(extractor.extract(document))
        for found in (scored(extraction.document), scored(other.document)):
            assert found == pytest.approx(alone, abs=1e-5)
        assert all(0 < end - start <= 6 and end <= len(document.text) for start, end, _ in alone)
    assert repr(extractor).endswith("spans, 2 labels, on cpu)")


def test_a_cpu_tells_of_a_pack_before_it_computes_the_next(extractor: Extractor) -> None:
    """Whoever waits for the first text does not have to wait for the second text's pack."""
    session = extractor.session()
    first, second = session.submit(Document("a", "患者肺炎")), session.submit(Document("b", "肺炎。" * 4))
    assert {ticket for ticket, _ in session.step()} == {first, second} and session.pending == 0
    third = session.submit(Document("c", "咳嗽"))
    assert [ticket for ticket, _ in session.step()] == [third]


def test_a_text_over_the_window_is_cut_and_thresholds_come_before_the_merge(run: Path, extractor: Extractor) -> None:
    text = "肺炎患者咳嗽，发热三天。" * 60
    chunked = load_run(run, settings=config.Extract(chunk_tokens=64, overlap=16))
    (extraction,) = chunked.stream([text])
    assert chunked.effort.passes > 1 and extraction.status is Status.STOPPED
    found, whole = scored(extraction.document), scored(extractor.extract(text))
    assert len(found.keys() & whole.keys()) > len(whole) // 2
    assert min(found.values()) >= min(extractor.thresholds.values()) - 1e-9  # type: ignore[union-attr]


def test_an_error_about_room_names_no_setting_of_writing(extractor: Extractor) -> None:
    with pytest.raises(
        DataError, match=r"no room for a text beside the 1 token before it: .* window 1; raise train\.max_tokens"
    ):
        cutter(extractor.encoder, extractor.settings, 1)


def test_what_needs_a_head_says_that_there_is_none(extractor: Extractor) -> None:
    with pytest.raises(ModelError, match=r"the model has no head to read spans with; spantune\.load loads both"):
        Extractor(tiny_model(vocabulary=len(extractor.encoder.tokenizer)), extractor.encoder)


def test_half_a_surrogate_pair_is_refused(extractor: Extractor) -> None:
    with pytest.raises(DataError, match="half a surrogate pair at character 1"):
        extractor.extract("a\ud800b")


def test_flat_entities_do_not_overlap(run: Path, tmp_path: Path) -> None:
    flat = copy_run(run, tmp_path / "flat")
    for folder in (flat, flat / "adapter"):
        READING.model_copy(update={"nested": False}).save(folder)
    extractor = load_run(flat, accept_changes=True)
    extractor.keeps_candidates = True
    candidates = list(extractor.stream(TEXTS))
    extractor.keeps_candidates = False
    assert sum(len(each.document.entities) for each in candidates) > 20
    for document in [*extractor.extract(TEXTS), *extractor.candidates(candidates)]:
        ends = [0, *(entity.end for entity in document.entities)]
        assert all(end <= entity.start for end, entity in zip(ends, document.entities, strict=False))


def test_a_lowest_score_takes_the_place_of_the_thresholds(run: Path, extractor: Extractor) -> None:
    text = "肺炎患者咳嗽，发热三天。"
    (by_default,) = extractor.stream([text])
    (some,) = load_run(run, min_score=0.9).stream([text])
    (all_of_them,) = load_run(run, min_score=0).stream([text])
    default, kept, everything = (scored(each.document) for each in (by_default, some, all_of_them))
    assert kept == {span: score for span, score in everything.items() if score >= 0.9} and kept
    assert scored(some.document.with_entities(some.below_threshold)).keys() == default.keys() - kept.keys()
    assert default.keys() < everything.keys() and min(everything.values()) < 0.5 <= min(default.values())


@pytest.fixture(scope="module")
def gold(extractor: Extractor) -> list[Document]:
    """Documents whose gold entities have the head's highest scores, so that a high threshold is the best one."""
    texts = [
        "肺炎患者咳嗽",
        "发热三天，无咳嗽",
        "糖尿病 diabetes",
        "ab abc 肺",
        "右下肺炎",
        "胸片示右下肺炎",
        "腹痛",
        "无异常",
    ]
    documents = [Document(f"g{number}", text) for number, text in enumerate(texts)]
    read_documents = extractor.extract(documents)
    return [each.with_entities(e for e in each.entities if (e.score or 0) > 0.8) for each in read_documents]


def test_a_stored_calibration_holds_when_the_run_is_loaded(
    run: Path, gold: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copy_run(run, tmp_path / "copy")
    monkeypatch.setattr("spantune.extraction.calibration._update_report", lambda _: None)  # it has no predictions
    monkeypatch.setattr(RunFolder, "require_finished", RunFolder.config)
    found = sum(len(document.entities) for document in load_run(copy).extract(document.text for document in gold))
    fitted = calibrate_run(copy, gold)
    assert fitted.evidence is not None and fitted.evidence.all.kept > found  # of all candidates
    assert fitted.evidence is not None and fitted.evidence.chosen.f1 == 1 > fitted.evidence.all.f1
    evaluation = evaluate_run(copy, gold)
    assert evaluation.scores.micro.f1 == 1 and evaluation.below_threshold["entities"] > 0


def test_thresholds_of_training_are_kept_where_others_are_no_better() -> None:
    from spantune.metrics import calibrate

    gold = [Document(f"{number}", "ab", (Entity(0, 1, "dis"),)) for number in range(3)]
    predicted = [
        document.with_entities((Entity(0, 1, "dis", 0.6), Entity(1, 2, "dis", 0.1 + 0.1 * number)))
        for number, document in enumerate(gold)
    ]
    fitted = calibrate(gold, predicted, own_thresholds={"dis": 0.5, "sym": 0.2})
    assert fitted.threshold is None and set(fitted.label_thresholds) == {"dis", "sym"}
    assert fitted.label_thresholds["dis"] == pytest.approx(0.5 ** (1 / fitted.temperature))
    assert fitted.evidence is not None and "chosen in training are kept" in " ".join(fitted.evidence.notes)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "out.jsonl"),
        (["--to", "few_shot"], "out.json"),
        (["--to", "label_studio"], "ls.json"),
        (["--to", "brat"], "b"),
    ],
)
def test_every_output(
    run: Path, tmp_path: Path, command: Callable[..., Outcome], options: list[str], name: str, extractor: Extractor
) -> None:
    source, out = tmp_path / "texts.jsonl", tmp_path / name
    documents = [document for document in DOCUMENTS if document.text.strip()][:4]
    formats.write(source, documents)
    done = command("extract", run, source, "--out", out, "--html", tmp_path / "p.html", *options)
    assert done.code == 0 and "problems: none" in done.err and "4 documents, " in done.err
    found = [scored(document).keys() for document in read(out).documents]
    assert sorted(map(sorted, found)) == sorted(sorted(scored(each).keys()) for each in extractor.extract(documents))
    assert "What the run left out is not in the page: under 0.50 for all labels." in (tmp_path / "p.html").read_text()


def test_the_least_sure_are_judged_by_what_is_extracted(
    run: Path, tmp_path: Path, command: Callable[..., Outcome], extractor: Extractor
) -> None:
    texts = ["肺炎患者咳嗽", "发热三天，无咳嗽", "右下肺炎", "胸片示右下肺炎"]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    done = command("extract", run, tmp_path / "texts.txt", "--uncertain", 1)
    (line,) = done.out.splitlines()
    least_sure = min(entity.score or 0.0 for document in extractor.extract(texts) for entity in document.entities)
    assert min(entity["score"] for entity in json.loads(line)["entities"]) == pytest.approx(least_sure, abs=1e-5)


def test_nothing_is_decoded_freely_or_by_a_server(run: Path, command: Callable[..., Outcome]) -> None:
    done = command("evaluate", run, "--data", "bundled:clinical-zh-test", "--free")
    assert done.code == 2 and "it writes no answer, so there is no grammar to do without" in done.err
    done = command("extract", run, "-", "extract.grounded=false")
    assert done.code == 2 and "leave extract.grounded out" in done.err
    with pytest.raises(ConfigError, match=r"reads spans .*extract here, with --engine local"):
        load_remote(run, Server("http://127.0.0.1:9/v1"))


def _without(name: str) -> Callable[[Path], None]:
    return lambda adapter: (adapter / name).unlink()


def _text(name: str, text: str) -> Callable[[Path], None]:
    return lambda adapter: (adapter / name).write_text(text, encoding="utf-8") and None


def _head(**changes: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        values = json.loads((adapter / "head.json").read_text(encoding="utf-8"))
        (adapter / "head.json").write_text(json.dumps(values | changes), encoding="utf-8")

    return change


def _not_finite(adapter: Path) -> None:
    weights = load_file(adapter / "head.safetensors")
    save_file(weights | {"bias": weights["bias"] / 0}, adapter / "head.safetensors")


def _as_writing(adapter: Path) -> None:
    TASK.save(adapter)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without("head.safetensors"), r"no head\.safetensors here, and the task is answered by reading spans"),
        (_without("head.json"), r"no head\.json here, and the task is answered by reading spans"),
        (_text("head.json", "{"), r"head\.json is damaged"),
        (_text("head.safetensors", "x"), r"the head is damaged: head\.safetensors cannot be read"),
        (_head(labels=["dis", "bod"]), r"the head reads the labels dis, bod, and the task has dis, sym"),
        (_head(layers=9), r"the head is for another model: .* and 9 layers"),
        (_head(size=8), r"head\.safetensors is not that of head\.json"),
        (_not_finite, r"not finite|NaN|infinite"),
        (_as_writing, r"head\.json is here, so this was trained to read spans, and task\.json says answer=jsonl"),
    ],
)
def test_a_damaged_head_is_named(run: Path, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    bad = copy_run(run, tmp_path / "bad")
    damage(bad / "adapter")
    with pytest.raises(ModelError, match=message):
        load_run(bad, accept_changes=True)


def test_the_thresholds_of_a_run_are_read_without_torch(run: Path, tmp_path: Path, extractor: Extractor) -> None:
    assert RunFolder(run).head_thresholds() == pytest.approx(extractor.thresholds)
    assert ExtractionView.of_run(run).own_thresholds == RunFolder(run).head_thresholds()
    bad = copy_run(run, tmp_path / "bad")
    (bad / "adapter" / "head.safetensors").write_bytes(b"\1\0\0\0\0\0\0\0{")
    with pytest.raises(ModelError, match="the head cannot be read"):
        RunFolder(bad).head_thresholds()


def test_the_card_says_that_nothing_is_written(run: Path) -> None:
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "scores every span of the text" in card and "token-classification" in card and "answer format" not in card
    assert isinstance(TaskSpec.load(run / "adapter"), TaskSpec) and Calibration.load(run) is None
