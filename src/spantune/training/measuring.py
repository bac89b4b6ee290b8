"""Measuring a run by real extraction: the test documents before and after training, a slice of dev while it trains.

What is measured is recorded, shown on the dashboards, and kept in `predictions/`. A signal ends an extraction between
two documents.

Of several processes each extracts its share of the documents, and all get the extractions of all, in order; figures
and thresholds are those of rank 0.
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
"""Dev documents that steer at the least, however little time `train.eval_share` leaves."""

FEW_DEV_DOCUMENTS = 200
"""Dev documents that steer at the most where answers are written, unless `train.eval_documents` says otherwise."""

log = logging.getLogger(__name__)


class Measuring:
    """Extracts and scores the held-out documents of a run.

    Args:
        prepared: the run's documents, encoder and recipe.
        model: the model under training.
        folder: the folder of the run.
        trackers: where the figures go; None for a process that records nothing.
        stop: ends an extraction between two documents.
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
        """Extract with another model from here on."""
        recipe = self.prepared.recipe
        self.extractor = _StoppableExtractor(
            self.stop, model, self.prepared.encoder, recipe.extract, on_choices=recipe.train.on_choices
        )
        self.extractor.ranks = self.ranks

    def measure_dev(self, step: int, seconds: float) -> Mapping[str, float]:
        """Measure the dev documents that steer, as many as `seconds` allow from the first measuring on.

        Raises:
            Stopped: a signal came meanwhile; nothing is recorded.
        """
        if not self._steering:
            self._steering = self.prepared.steering(self.ranks.from_main(lambda: self._slice_size(seconds)))
        evaluation = self.measure(self._steering, "dev", step)
        values = self.ranks.from_main(evaluation.values)
        return {key: value for key, value in values.items() if value is not None}

    def measure_test(self, step: int, **more: float) -> Evaluation:
        """Measure all test documents; `more` figures go on the same line."""
        return self.measure(self.prepared.splits.test, "test", step, **more)

    def scores_before(self) -> Scores | None:
        """The untrained model's scores, from the predictions that the run kept before it was interrupted."""
        path = self.folder.predictions("test", 0)
        if not path.is_file():
            return None
        predicted = [extraction.document for extraction in read_extractions(path)]
        return score(self.prepared.splits.test, predicted, self.prepared.task.codes)

    def measure(self, documents: Sequence[Document], split: str, step: int, **more: float) -> Evaluation:
        """Extract `documents`, score, keep and record them."""
        train = self.prepared.splits.train if split == "test" else None  # for the slices of the report
        self.extractor.keeps_candidates = split == "dev" and self.prepared.task.reads  # to choose thresholds on dev
        evaluation = evaluate(self.extractor, list(documents), f"extract {split}", train=train)
        self._seconds_per_document = evaluation.seconds / len(documents)
        if self.extractor.keeps_candidates and (head := head_of(self.extractor.model)) is not None:
            self.ranks.same([head.thresholds])
        if self.trackers is not None:
            self._keep_predictions(split, step, evaluation)
            self.trackers.measuring(step, split, evaluation.values() | more, evaluation.gold, evaluation.predicted)
        return evaluation

    def _slice_size(self, seconds: float) -> int:
        """How many dev documents steer: as many as before a resume, else what fits into `seconds`."""
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
        """Write what was extracted; a disk that refuses it costs these predictions and not the run."""
        try:
            save_predictions(self.folder.predictions(split, step), evaluation.extractions)
        except (DataError, OSError) as error:
            log.warning("step %d: the predictions on %s are not kept: %s", step, split, error)


class _StoppableExtractor(Extractor):
    """An extractor that ends between two documents once the run is asked to stop; ranks share the documents."""

    ranks = ALONE

    def __init__(
        self, stop: StopRequest, model: CausalLM, encoder: TextEncoder, settings: config.Extract, *, on_choices: bool
    ):
        super().__init__(model, encoder, settings, on_choices=on_choices)
        self._stop = stop

    def stream(self, documents: Iterable[str | Prediction], *, strict: bool = True) -> Iterator[Extraction]:
        """As an Extractor does; raises Stopped, on all ranks where one of them is asked to."""
        if self.ranks.size == 1:
            return self._stop.watch(super().stream(documents, strict=strict))
        return iter(self._shared_out(list(documents), strict))

    def _shared_out(self, documents: list[str | Prediction], strict: bool) -> list[Extraction]:
        """The extractions of all documents, in order, of which this rank makes every so many."""
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
