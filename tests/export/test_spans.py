"""An exported span reader, loaded with plain transformers, finds the entities and scores that spantune finds."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.fakes import MERGES, save_model
from helpers.reading import DOCUMENTS
from helpers.run_folders import READING, save_run
from spantune import load
from spantune.core import Document
from spantune.data import formats
from spantune.export import ExportSettings, export_run
from spantune.export.span_reader import SpanReader
from spantune.metrics import Calibration

CALIBRATION = Calibration(temperature=2.0, threshold=0.7, label_thresholds={"sym": 0.9})
TEXTS = [*(document.text for document in DOCUMENTS), "患者因急性阑尾炎，行 腹腔镜手术。\u3000\n再", " "]


def _rows(document: Document) -> list[tuple[int, int, str, float]]:
    return [(e.start, e.end, e.label, e.score or 0.0) for e in document.entities]


def _found(reader: SpanReader, text: str) -> list[tuple[int, int, str, float]]:
    return [(row["start"], row["end"], row["label"], row["score"]) for row in reader(text)]


def _corpus(folder: Path) -> str:
    path = folder / "texts.jsonl"
    formats.write(path, [Document(str(number), text) for number, text in enumerate(TEXTS)])
    return str(path)


@pytest.mark.parametrize(
    ("family", "spans", "nested", "calibration"),
    [
        ("phi3", {}, True, None),
        ("gemma3_text", {"types": "learnt", "convolution": 0}, False, None),
        (
            "mistral",
            {"view": "twice"},
            True,
            Calibration(temperature=2.0, threshold=0.7, label_thresholds={"sym": 0.9}),
        ),
        ("llama", {"view": "causal", "instruction": True}, True, Calibration(temperature=0.5)),
    ],
)
def test_the_loader_finds_what_spantune_finds(
    family: str, spans: dict[str, Any], nested: bool, calibration: Calibration | None, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", family, MERGES)
    run = save_run(tmp_path / "runs" / "r", model, READING.model_copy(update={"nested": nested}), spans)
    if calibration is not None:
        calibration.save(run)
    settings = ExportSettings(verify=len(TEXTS), data=_corpus(tmp_path), device="cpu")
    exported = export_run(run, "spans", tmp_path / "out", settings)
    assert exported.verified is not None and exported.verified.entities > 5
    reader, extractor = SpanReader(tmp_path / "out"), load(run, device="cpu")
    for text in TEXTS:
        wanted, found = _rows(extractor.extract(text)), _found(reader, text)
        assert [row[:3] for row in found] == [row[:3] for row in wanted]
        assert [row[3] for row in found] == pytest.approx([row[3] for row in wanted], abs=1e-4)


def test_a_text_over_the_limit_is_refused_and_named(tiny_folder: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "runs" / "r", tiny_folder, READING)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(text.replace("chunk_tokens: null", "chunk_tokens: 12"), encoding="utf-8")
    settings = ExportSettings(verify=len(TEXTS), data=_corpus(tmp_path), device="cpu")
    exported = export_run(run, "spans", tmp_path / "out", settings)
    assert exported.verified is not None and 0 < exported.verified.documents < len(TEXTS)
    assert "too long for one pass" in exported.notes[0]
    with pytest.raises(ValueError, match="13 are read at once: cut the text"):
        SpanReader(tmp_path / "out")("x" * 30)


def test_the_loader_needs_nothing_of_spantune(tiny_folder: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "runs" / "r", tiny_folder, READING)
    exported = export_run(run, "spans", tmp_path / "out", ExportSettings(verify=0, device="cpu"))
    source = (exported.folder / "span_reader.py").read_text(encoding="utf-8")
    imported = re.findall(r"^ *(?:from|import) (\w+)", source, re.MULTILINE)
    assert {*imported} - {*sys.stdlib_module_names} - {"span_reader"} == {
        "peft",
        "safetensors",
        "torch",
        "transformers",
    }
    (command,) = exported.commands
    assert "span_reader import SpanReader" in command.line
    about = json.loads((exported.folder / "reader.json").read_text(encoding="utf-8"))
    assert about["labels"] == ["dis", "sym"]
