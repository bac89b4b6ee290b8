"""Calibrate a run: extract from documents that it was not trained on, fit scores and thresholds, and store them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from pathlib import Path

from spantune.core import Document, SpantuneError, expect, expect_each, track
from spantune.data import Corpus, read, read_splits
from spantune.extraction.extractor import Extractor
from spantune.extraction.loading import load_bare
from spantune.metrics import Calibration, calibrate, require_precision
from spantune.report import report_run
from spantune.runs import RunFolder

log = logging.getLogger(__name__)


def calibrate_run(
    run: str | Path | Extractor,
    data: str | Path | Iterable[Document] | None = None,
    *,
    precision: float | None = None,
    per_label: bool = False,
    store: bool = True,
) -> Calibration:
    """Fit a run's scores to the share of correct entities, and choose the score below which entities are dropped.

        calibration = spantune.calibrate("runs/demo", precision=0.9)
        print(calibration.threshold, calibration.evidence.chosen.recall)

    Args:
        run: the run folder, or the Extractor that `spantune.load` returned for it.
        data: an annotated corpus that the run was not trained on: a file, `bundled:NAME`, a Corpus or a list of
            Documents. None takes the run's dev documents.
        precision: the precision to reach, from 0 to 1, with as many entities as possible; None chooses the best F1.
        per_label: whether a label with many predictions gets a threshold of its own.
        store: whether to save the calibration in the run folder, where `load` and `extract` find it, and to write the
            run's report again.

    Raises:
        ConfigError: an argument is of a wrong type, or no threshold reaches the precision.
        DataError: the corpus cannot be read, or nothing was predicted.
        RunError: the folder is not a finished run, or cannot be written.
        ModelError: the model cannot be loaded.
    """
    expect(run, (str, Path, Extractor), "calibrate", "the path of a run folder, or what load returned")
    require_precision(precision)
    place = run.run if isinstance(run, Extractor) else run
    folder = RunFolder(Path(expect(place, (str, Path), "calibrate", "an Extractor of a run folder")))
    folder.require_finished()
    if store:
        folder.require_writable()
    corpus = read_splits(folder.data()).dev if data is None else read(data) if isinstance(data, str | Path) else data
    gold = list(expect_each(corpus, Document, "data", "a corpus file, a Corpus or a list of Documents"))
    extractor = _bare(run)
    extractor.task.check(gold)
    extractions = list(track(extractor.stream(gold), "extract", len(gold)))
    predicted, own = extractor.candidates(extractions), extractor.thresholds
    fitted = calibrate(gold, predicted, precision, per_label, _name(data, corpus), own_thresholds=own)
    if store:
        fitted.save(folder.path)
        _update_report(folder.path)
    return fitted


def _bare(run: str | Path | Extractor) -> Extractor:
    """Return the Extractor of a run without calibration, which keeps all candidates."""
    extractor = copy.copy(run) if isinstance(run, Extractor) else load_bare(run)
    extractor.calibration = None
    extractor.keeps_candidates = True
    return extractor


def _name(data: object, corpus: object) -> str:
    """Return the name of the documents that the calibration records: `dev`, the corpus's name, or `documents`."""
    if data is None:
        return "dev"
    return corpus.name if isinstance(corpus, Corpus) else "documents"


def _update_report(run: Path) -> None:
    """Write the run's report again, with the calibration; if that fails, keep the old report and log a warning."""
    try:
        report_run(run)
    except SpantuneError as error:
        log.warning("the calibration is stored, and the report is the old one: %s", error)
