"""Measuring a run by real extraction: the test documents before and after training, dev documents during training.

The figures are recorded in `metrics.jsonl` and shown on the dashboards; the predictions are kept in `predictions/`. A
signal ends an extraction between two documents.

With several processes, each extracts its share of the documents, and all of them get all extractions, in the order of
the documents. The figures and thresholds of rank 0 are used.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext

from spantune.core import DataError, Document, Extraction, Prediction, StopRequest, config, track
from spantune.data import read_extractions
from spantune.encoding import TextEncoder
from spantune.extraction import Evaluation, Extractor, evaluate, save_predictions
from spantune.metrics import Scores, score
from spantune.models import CausalLM, head_of
from spantune.runs import RunFolder, Trackers
from spantune.training.lockstep import in_lockstep
from spantune.training.preparation import Prepared
from spantune.training.ranks import ALONE, Ranks

FEWEST_DEV_DOCUMENTS = 8
"""The least number of dev documents in an evaluation, however little time `train.eval_share` leaves."""

FEW_DEV_DOCUMENTS = 200
"""The largest number of dev documents in an evaluation where answers are written and `train.eval_documents` is not
set."""

log = logging.getLogger(__name__)


class Measuring:
    """Extracts and scores the held-out documents of a run.

    Args:
        prepared: the run's documents, encoder and recipe.
        model: the model under training.
        folder: the folder of the run.
        trackers: record the figures; None for a process that records nothing.
        stop: the request that ends an extraction between two documents.
        ranks: the processes that measure together.
    """

    def __init__(
        self,
        prepared: Prepared,
        model: CausalLM,
        folder: RunFolder,
        trackers: Trackers | None,
        stop: StopRequest,
        ranks: Ranks = ALONE,
    ):
        self.prepared, self.folder, self.trackers, self.stop, self.ranks = prepared, folder, trackers, stop, ranks
        self.use(model)
        self._steering: list[Document] = []
        self._seconds_per_document = 0.0

    def use(self, model: CausalLM) -> None:
        """Extract with `model` from now on."""
        recipe = self.prepared.recipe
        self.extractor = _StoppableExtractor(
            self.stop, model, self.prepared.encoder, recipe.extract, on_choices=recipe.train.on_choices
        )
        self.extractor.ranks = self.ranks

    def measure_dev(self, step: int, seconds: float) -> Mapping[str, float]:
        """Measure dev documents after step number `step`; the documents are the same at each step.

        Their number is fixed at the first call: the time that an earlier evaluation took for a document tells how many
        can be extracted in `seconds`.

        Returns:
            The figures by name, without those that are undefined.

        Raises:
            Stopped: a signal came during the extraction; nothing is recorded.
        """
        if not self._steering:
            self._steering = self.prepared.steering(self.ranks.from_main(lambda: self._slice_size(seconds)))
        evaluation = self.measure(self._steering, "dev", step)
        values = self.ranks.from_main(evaluation.values)
        return {key: value for key, value in values.items() if value is not None}

    def measure_test(self, step: int, **more: float) -> Evaluation:
        """Measure all test documents; `more` are further figures for the same line of `metrics.jsonl`."""
        return self.measure(self.prepared.splits.test, "test", step, **more)

    def scores_before(self) -> Scores | None:
        """Return the scores before training, from the predictions of the run before it was resumed; None without."""
        path = self.folder.predictions("test", 0)
        if not path.is_file():
            return None
        predicted = [extraction.document for extraction in read_extractions(path)]
        return score(self.prepared.splits.test, predicted, self.prepared.task.codes)

    def measure(self, documents: Sequence[Document], split: str, step: int, **more: float) -> Evaluation:
        """Extract `documents`, score the extractions, keep the predictions and record the figures."""
        train = self.prepared.splits.train if split == "test" else None  # for the slices of the report
        self.extractor.keeps_candidates = split == "dev" and self.prepared.task.reads  # thresholds are chosen on dev
        evaluation = evaluate(self.extractor, list(documents), f"extract {split}", train=train)
        self._seconds_per_document = evaluation.seconds / len(documents)
        if self.extractor.keeps_candidates and (head := head_of(self.extractor.model)) is not None:
            self.ranks.same([head.thresholds])
        if self.trackers is not None:
            self._keep_predictions(split, step, evaluation)
            self.trackers.measuring(step, split, evaluation.values() | more, evaluation.gold, evaluation.predicted)
        return evaluation

    def _slice_size(self, seconds: float) -> int:
        """Return the number of dev documents in an evaluation: that before a resume, else what fits into `seconds`."""
        settings = self.prepared.recipe.train
        documents = len(self.prepared.splits.dev)
        default = documents if self.prepared.task.reads else FEW_DEV_DOCUMENTS
        wanted = min(settings.eval_documents or default, documents)
        recorded_sizes = [record["documents"] for record in self.folder.metrics() if record.get("split") == "dev"]
        if recorded_sizes:
            return int(recorded_sizes[-1])
        if not self._seconds_per_document or math.isinf(seconds):
            return wanted
        size = max(min(FEWEST_DEV_DOCUMENTS, wanted), min(wanted, int(seconds / self._seconds_per_document)))
        if size < wanted:
            log.info("%d of %d dev documents steer: train.eval_share=%g of the time", size, wanted, settings.eval_share)
        return size

    def _keep_predictions(self, split: str, step: int, evaluation: Evaluation) -> None:
        """Write the extractions; if the disk refuses them, a warning is logged and the run goes on."""
        try:
            save_predictions(self.folder.predictions(split, step), evaluation.extractions)
        except (DataError, OSError) as error:
            log.warning("step %d: the predictions on %s are not kept: %s", step, split, error)


class _StoppableExtractor(Extractor):
    """An extractor that ends between two documents after a request to stop; the ranks share the documents."""

    ranks = ALONE

    def __init__(
        self, stop: StopRequest, model: CausalLM, encoder: TextEncoder, settings: config.Extract, *, on_choices: bool
    ):
        super().__init__(model, encoder, settings, on_choices=on_choices)
        self._stop = stop

    def stream(self, documents: Iterable[str | Prediction], *, strict: bool = True) -> Iterator[Extraction]:
        """Yield the extraction of each document (see `Extractor.stream`).

        Raises:
            Stopped: a rank was asked to stop; raised on all ranks.
        """
        if self.ranks.size == 1:
            return self._stop.watch(super().stream(documents, strict=strict))
        return iter(self._shared_out(list(documents), strict))

    def _shared_out(self, documents: list[str | Prediction], strict: bool) -> list[Extraction]:
        """Return the extractions of all documents, in order; of n ranks, each extracts every n-th document."""
        ranks = self.ranks
        own = documents[ranks.rank :: ranks.size]
        extractions: list[Extraction] = []
        with in_lockstep(self.model, ranks, self._stop) if ranks.in_lockstep else nullcontext():
            for extraction in track(super().stream(own, strict=strict), "extract, rank 0", len(own), "documents"):
                extractions.append(extraction)
                if ranks.is_stop_asked(self._stop):
                    break
        ranks.agree(self._stop)
        shares = ranks.gather(extractions)
        return [shares[index % ranks.size][index // ranks.size] for index in range(len(documents))]
