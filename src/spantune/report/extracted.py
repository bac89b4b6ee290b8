"""The page of an extraction: every document with its entities, their scores and names, and its problems.

Entities below the threshold are in the page too, but hidden, so that the slider of the page can go below the threshold
of the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spantune.core import (
    LEFT_OUT,
    DataError,
    Entity,
    Extraction,
    TaskSpec,
    draw_entities,
    label_colors,
    masked,
    replacing,
)
from spantune.metrics import Calibration
from spantune.report.documents import PAGE, Row
from spantune.report.html import embed, number, render
from spantune.report.run import describe_run, listed
from spantune.runs import RunFolder


@dataclass(frozen=True)
class ExtractionView:
    """The facts about the run and its task that the page of an extraction shows.

    Args:
        title: the title of the page.
        names: code to name of the labels of the task; the order determines the colours. Other labels follow.
        threshold: the threshold of the run for all labels, at which the slider begins; None if there is none.
        label_thresholds: label code to threshold, for labels that have their own.
        head: the facts at the top of the page, by name, such as run, model and date.
        own_thresholds: label code to threshold of the span head, for a run that reads spans. Entities below it are not
            in the page.
    """

    title: str
    names: Mapping[str, str] = field(default_factory=dict)
    threshold: float | None = None
    label_thresholds: Mapping[str, float] = field(default_factory=dict)
    head: Mapping[str, str] = field(default_factory=dict)
    own_thresholds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_run(cls, folder: Path, min_score: float | None = None) -> ExtractionView:
        """Return the view of a run, without a title.

        Args:
            folder: the run folder.
            min_score: a threshold in [0, 1] that is used instead of the thresholds of the run; None to use those.

        Raises:
            RunError: the folder is not a run folder, or is damaged.
            ConfigError: `min_score` is not in [0, 1].
        """
        calibration = Calibration.load(folder) or Calibration()
        if min_score is not None:
            calibration = calibration.with_min_score(min_score)
        trained_on = "device"
        facts = {name: value for name, value in describe_run(folder).items() if name != trained_on}
        head = {"run": folder.resolve().name, **facts, "date": time.strftime("%Y-%m-%d")}
        return cls(
            "",
            TaskSpec.load(folder).names,
            calibration.threshold,
            calibration.label_thresholds,
            {name: masked(value) for name, value in head.items()},
            RunFolder(folder).head_thresholds() if min_score is None else {},
        )

    @property
    def sentence(self) -> str:
        """The thresholds in words, for the text beside the slider."""
        labels = ", ".join(
            f"{self.names.get(code) or code} {value:.2f}" for code, value in self.label_thresholds.items()
        )
        if self.threshold is None and not labels and self.own_thresholds:
            own = listed({self.names.get(code) or code: value for code, value in self.own_thresholds.items()})
            return f"Entities with a lower score are hidden. What the run left out is not in the page: under {own}."
        if self.threshold is None and not labels:
            return "Entities with a lower score are hidden. The run has no threshold, so the slider begins at 0."
        overall = "" if self.threshold is None else f" {self.threshold:.2f}"
        own = f"{', and ' if overall else ' '}by label {labels}" if labels else ""
        return f"Entities with a lower score are hidden. The slider begins at the run's threshold{overall}{own}."


@dataclass
class _Count:
    """The counts of a label.

    Args:
        entities: the number of its entities that are not below the threshold.
        documents: the number of documents with such an entity.
        left_out: the number of its entities below the threshold.
    """

    entities: int = 0
    documents: int = 0
    left_out: int = 0


def write_extractions(path: Path, extractions: Sequence[Extraction], view: ExtractionView) -> None:
    """Write the page of an extraction, as one self-contained HTML file.

    Args:
        path: the file to write.
        extractions: the results, in the order of the page.
        view: the facts about the run.

    Raises:
        DataError: there are no extractions, or the file cannot be written.
    """
    if not extractions:
        raise DataError("there are no documents to show", path=path)
    counts = _counts(extractions, view)
    codes = list(counts)
    entities = [entity for extraction in extractions for entity in _all(extraction)]
    page = render(
        "extracted.html.j2",
        "extracted.js.j2",
        title=view.title,
        page=view,
        key_figures=_key_figures(extractions, counts),
        counts=counts,
        left_out=any(count.left_out for count in counts.values()),
        has_scores=any(entity.score is not None for entity in entities),
        unscored=sum(entity.score is None for entity in entities),
        colours=label_colors(codes),
        size=PAGE,
        data=embed([_row(extraction, codes, view.names) for extraction in extractions]),
    )
    with replacing(path) as file:
        file.write(page)


def _all(extraction: Extraction) -> list[Entity]:
    return [*extraction.document.entities, *extraction.below_threshold]


def _counts(extractions: Iterable[Extraction], view: ExtractionView) -> dict[str, _Count]:
    """Return label code to counts, in the order of the task; labels that the task lacks follow, sorted by code."""
    counts = {code: _Count() for code in view.names}
    found = {entity.label for extraction in extractions for entity in _all(extraction)}
    counts |= {code: _Count() for code in sorted(found.difference(counts))}
    for extraction in extractions:
        for label, count in Counter(entity.label for entity in extraction.document.entities).items():
            counts[label].entities += count
            counts[label].documents += 1
        for entity in extraction.below_threshold:
            counts[entity.label].left_out += 1
    return counts


def _key_figures(extractions: Sequence[Extraction], counts: Mapping[str, _Count]) -> dict[str, str]:
    left_out = sum(count.left_out for count in counts.values())
    figures = {
        "documents": len(extractions),
        "entities": sum(count.entities for count in counts.values()),
        "without entities": sum(not extraction.document.entities for extraction in extractions),
        "with problems": sum(extraction.has_problem for extraction in extractions),
        "failed": sum(extraction.status.is_failure for extraction in extractions),
    }
    figures |= {"left out by the threshold": left_out} if left_out else {}
    return {name: number(value) for name, value in figures.items()}


def _row(extraction: Extraction, codes: Sequence[str], names: Mapping[str, str]) -> Row:
    """Return the row of a document.

    Its columns are: the id, the text, the entities, the status ("" if nothing went wrong), whether the document failed
    (1 or 0), its problems in words, and the drawing. An entity is [index of its label, score, 1 if it is below the
    threshold].
    """
    document = extraction.document
    dropped = set(extraction.below_threshold)
    entities = [
        [codes.index(entity.label), None if entity.score is None else round(entity.score, 4), int(entity in dropped)]
        for entity in _all(extraction)
    ]
    status = str(extraction.status) if extraction.has_problem else ""
    problems = [f"{problem.kind}: {problem.found}" for problem in extraction.problems]
    drawing = draw_entities(
        document.with_entities(_all(extraction)), codes, dict.fromkeys(dropped, LEFT_OUT), names, scores=True
    )
    return [document.id, document.text, entities, status, int(extraction.status.is_failure), problems, drawing]
