"""The export of a run that reads spans: merged weights, the span head, and a loader that needs transformers and torch.

The loader is `span_reader.py`, which is copied into the folder unchanged. What it must know about the run and the
tokenizer is in `reader.json`.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spantune.core import Document, Entity, Extraction, Status, to_json, track
from spantune.encoding import SpanEncoder
from spantune.export.card import write_card
from spantune.export.merged import merge, ready, save_model, written_logits
from spantune.export.source import Source
from spantune.export.verify import (
    MOST,
    Differs,
    Verified,
    Written,
    extract_all,
    extractor_of,
    largest_difference,
    logits_of,
    require_close,
    require_same,
    sequences_of,
)
from spantune.extraction import LOWEST_LOGIT
from spantune.metrics import Calibration
from spantune.models import HeadConfig, copy_head, layer_kinds, read_head_config, window_of

LOADER = "span_reader.py"
ABOUT = "reader.json"


def write_spans(source: Source, out: Path) -> Written:
    """Write the merged model of a run that reads spans into the folder `out`, with head and loader, and compare it.

    Raises:
        ModelError: the base or the adapter cannot be loaded; Differs: the export computes something else than the run.
        OSError, SafetensorError: the files cannot be written.
    """
    documents = fitting(source)
    sequences = sequences_of(source.encoder, documents)
    merged = merge(source, sequences)
    save_model(source, merged.model, out)
    write_reader(source, out)
    write_card(source, "spans", out)
    if not documents:
        return Written()
    logits, rounding = written_logits(source, merged, sequences)
    expected = extract_calibrated(source, merged.model, documents)
    del merged
    reader = load_reader(out, source)
    difference = largest_difference(logits, logits_of(reader.model, sequences))
    require_close(difference, "the logits of the export")
    entities = compare(expected, reader)
    left = len(source.documents) - len(documents)
    notes = (f"{left} documents are too long for one pass and were not compared; the loader refuses such texts",)
    return Written(Verified(len(documents), entities, difference, rounding), notes if left else ())


def fitting(source: Source) -> Sequence[Document]:
    """Return those documents for the comparison that the model reads in one pass."""
    most = source.most_tokens
    return [document for document in source.documents if len(source.encoder.prompt_ids(document.text)) <= most]


def write_reader(source: Source, out: Path) -> None:
    """Write the span head, the loader and `reader.json` into `out`."""
    encoder, head = source.encoder, read_head_config(source.adapter, source.task)
    assert isinstance(encoder, SpanEncoder)
    copy_head(source.adapter, out)
    shutil.copyfile(Path(__file__).with_name(LOADER), out / LOADER)
    about = _about(source, encoder, head)
    (out / ABOUT).write_text(to_json(about, indent=2) + "\n", encoding="utf-8")


def _about(source: Source, encoder: SpanEncoder, head: HeadConfig) -> dict[str, object]:
    calibration, config = Calibration.load(source.folder.path), source.files.config
    thresholds = source.folder.head_thresholds()
    if calibration is not None:
        every = calibration.threshold or 0.0
        thresholds = {label: calibration.label_thresholds.get(label, every) for label in head.labels}
    return {
        "labels": list(head.labels),
        "thresholds": thresholds,
        "temperature": 1.0 if calibration is None else calibration.temperature,
        "lowest_logit": LOWEST_LOGIT,
        "nested": source.task.nested,
        "view": head.view,
        "longest": head.longest,
        "prefix": list(encoder.prefix),
        "between": list(encoder.between),
        "tokens": source.most_tokens,
        "windows": {kind: window_of(config, kind or None) for kind in sorted(set(layer_kinds(config) or [""]))},
    }


def extract_calibrated(source: Source, model: Any, documents: Sequence[Document]) -> Sequence[Extraction]:
    """Return what the run extracts from `documents` with `model` and its calibration."""
    extractor = extractor_of(source, ready(source, model, source.adapter))
    extractor.calibration = Calibration.load(source.folder.path)
    return extract_all(extractor, documents, "run")


def load_reader(out: Path, source: Source, base: str | None = None) -> Any:
    """Return a `SpanReader` of the loader in the exported folder, which is imported from its file."""
    from spantune.models import pick_device

    spec = importlib.util.spec_from_file_location("span_reader", out / LOADER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SpanReader(out, base, device=str(pick_device(source.settings.device)))


def compare(expected: Sequence[Extraction], reader: Any) -> int:
    """Compare the entities and scores of the loader with the run's; return the number of entities.

    Raises:
        Differs: an entity or a score differs.
    """
    documents = [extraction.document for extraction in expected]
    found = []
    for document in track(documents, "export", len(documents)):
        rows = reader(document.text)
        entities = tuple(Entity(row["start"], row["end"], row["label"], row["score"]) for row in rows)
        found.append(Extraction(document.with_entities(entities), "", Status.STOPPED, ()))
    count = require_same(expected, found)
    pairs = zip(expected, found, strict=True)
    scores = [
        abs((one.score or 0.0) - (other.score or 0.0))
        for run, export in pairs
        for one, other in zip(run.document.entities, export.document.entities, strict=True)
    ]
    if max(scores, default=0.0) > MOST:
        raise Differs(f"scores differ from the run's by up to {max(scores):.3g}; nothing is exported; report it")
    return count
