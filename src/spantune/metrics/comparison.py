"""Whether systems differ on the same documents: paired bootstrap, approximate randomisation, and a sentence in words.

Two systems that read the same texts make errors in the same documents. Their difference is therefore far less uncertain
than either figure, and overlapping intervals of the two figures say nothing about it. Systems that were scored on
different documents, texts or gold annotations (such as CMeEE V1 and V2), or under different protocols, cannot be
compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

from spantune.core import (
    ConfigError,
    DataError,
    Document,
    Prediction,
    as_extraction,
    framed_html,
    number,
    table_html,
)
from spantune.metrics.figures import FEWEST_DOCUMENTS, Protocol, Scores, f1_text
from spantune.metrics.pairing import pair
from spantune.metrics.scoring import RESAMPLES, score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


ALPHA = 0.05
"""The level of significance: a difference is real only if its p is below this level."""


@dataclass(frozen=True)
class System:
    """The predictions of a run, a model or a file, with the gold documents and the protocol of their scores."""

    name: str
    gold: Sequence[Document]
    predicted: Sequence[Prediction]
    protocol: Protocol = "cblue"

    @property
    def documents(self) -> list[Document]:
        """The documents with the predicted entities."""
        return [as_extraction(prediction).document for prediction in self.predicted]


@dataclass(frozen=True)
class Gap:
    """The F1 of the second system minus the F1 of the first.

    Args:
        f1: the difference, from -1 to 1.
        f1_low: the lower bound of its 95 % interval, by paired bootstrap. None if fewer than FEWEST_DOCUMENTS
            documents contribute.
        f1_high: the upper bound.
        p: the p-value, by approximate randomisation.
        p_holm: p after Holm's correction over the labels, or over the pairs of systems.
    """

    f1: float
    f1_low: float | None
    f1_high: float | None
    p: float
    p_holm: float

    @property
    def real(self) -> bool:
        """Whether the difference is significant: `p_holm` is below ALPHA and 0 is outside the interval."""
        if self.f1_low is None or self.f1_high is None:
            return False
        return self.p_holm < ALPHA and not self.f1_low <= 0 <= self.f1_high

    def as_dict(self) -> dict[str, float | bool | None]:
        """Return the gap as a JSON object."""
        bounds = {"f1": self.f1, "f1_low": self.f1_low, "f1_high": self.f1_high}
        return {**bounds, "p": self.p, "p_holm": self.p_holm, "real": self.real}


@dataclass(frozen=True)
class Difference:
    """The gap between two systems on the same documents: in strict micro F1, and in F1 for each label that occurs.

    `corrected_for` is the number of pairs of systems over which `micro.p_holm` is corrected.
    """

    first: str
    second: str
    micro: Gap
    labels: Mapping[str, Gap]
    corrected_for: int = 1

    @property
    def sentence(self) -> str:
        """The result as an English sentence."""
        gap = self.micro
        p = "p < 0.001" if gap.p_holm < 0.001 else f"p = {gap.p_holm:.3f}"
        p += f" after Holm's correction for {self.corrected_for} comparisons" if self.corrected_for > 1 else ""
        if gap.f1_low is None or gap.f1_high is None:
            details, verdict = f"(no interval, {p})", "these are too few documents to say whether that is chance"
        else:
            details = f"(95 % interval {100 * gap.f1_low:+.1f} to {100 * gap.f1_high:+.1f}, {p})"
            verdict = "the difference is real" if gap.real else "this may be chance"
        if not gap.f1:
            return f"{self.second} and {self.first} have the same F1 {details}."
        direction = "higher" if gap.f1 > 0 else "lower"
        amount = f"The F1 of {self.second} is {abs(100 * gap.f1):.1f} points {direction} than that of {self.first}"
        return f"{amount} {details}: {verdict}."

    def as_dict(self) -> dict[str, object]:
        """Return the difference as a JSON object."""
        labels = {code: gap.as_dict() for code, gap in self.labels.items()}
        names = {"first": self.first, "second": self.second, "sentence": self.sentence}
        return {**names, "micro": self.micro.as_dict(), "labels": labels}


@dataclass(frozen=True)
class Comparison:
    """The scores of systems by name, and the difference between each other system and the first.

    `notes` say what was noticed when the documents were read.
    """

    systems: Mapping[str, Scores]
    differences: tuple[Difference, ...]
    protocol: Protocol
    documents: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        systems = ", ".join(f"{name} F1 {f1_text(scores.micro)}" for name, scores in self.systems.items())
        return f"Comparison({systems}, {number(self.documents, 'document')})"

    def _repr_html_(self) -> str:
        rows = [(name, f1_text(scores.micro)) for name, scores in self.systems.items()]
        sentences = "".join(f"<p>{escape(difference.sentence)}</p>" for difference in self.differences)
        return framed_html(f"{table_html(('strict', 'F1 [95 %]'), rows)}{sentences}")

    def as_dict(self) -> dict[str, object]:
        """Return the comparison as a JSON object."""
        return {
            "protocol": self.protocol,
            "documents": self.documents,
            "systems": {name: scores.as_dict() for name, scores in self.systems.items()},
            "differences": [difference.as_dict() for difference in self.differences],
        }


def compare(
    systems: Sequence[System], labels: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare each other system with the first one, by strict F1.

    Args:
        systems: at least two systems with different names and the same gold documents and protocol.
        labels: the label set.
        resamples: the number of resamples of the bootstrap, and of trials of the randomisation.
        seed: the seed of both.

    Raises:
        ConfigError: fewer than two systems, two with the same name, or several protocols.
        DataError: systems were scored on different documents, texts or annotations, or predictions do not pair.
    """
    import numpy as np

    from spantune.metrics.bootstrap import holm

    require_comparable(systems)
    codes = list(dict.fromkeys(labels))
    counted = [_counted(system, codes) for system in systems]
    scores = {
        system.name: score(system.gold, system.documents, codes, protocol=system.protocol, seed=seed)
        for system in systems
    }
    all_gaps = [_gaps(counted[0], table, resamples, seed) for table in counted[1:]]
    corrected = holm([gaps[-1].p for gaps in all_gaps])
    differences = []
    for system, gaps, p_holm, table in zip(systems[1:], all_gaps, corrected, counted[1:], strict=True):
        label_rows = np.flatnonzero((counted[0] + table)[:, :-1].any(axis=(0, 2))).tolist()
        label_p = holm([gaps[row].p for row in label_rows])
        labels_gaps = {codes[row]: replace(gaps[row], p_holm=p) for row, p in zip(label_rows, label_p, strict=True)}
        micro = replace(gaps[-1], p_holm=p_holm)
        differences.append(Difference(systems[0].name, system.name, micro, labels_gaps, len(all_gaps)))
    return Comparison(scores, tuple(differences), systems[0].protocol, len(systems[0].gold))


def require_comparable(systems: Sequence[System]) -> None:
    """Check that all systems were scored under one protocol against one annotation of one set of documents.

    Raises:
        ConfigError: fewer than two systems, two with the same name, or several protocols.
        DataError: documents, texts or gold annotations differ.
    """
    names = [system.name for system in systems]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"found {', '.join(names) or 'nothing'} to compare; expected two different systems or more")
    first = systems[0]
    for other in systems[1:]:
        if other.protocol != first.protocol:
            raise ConfigError(
                f"{first.name} is scored under protocol {first.protocol} and {other.name} under {other.protocol}, "
                "which count different things; score both under one"
            )
        _require_same_gold(first, other)


def _require_same_gold(first: System, second: System) -> None:
    """Check that two systems have the same gold documents with the same annotations.

    Raises:
        DataError: documents, texts or annotations differ.
    """
    first_gold, second_gold = ({document.id: document for document in system.gold} for system in (first, second))
    both = f"{first.name} and {second.name}"
    same_ids = [(document, [second_gold[id]]) for id, document in first_gold.items() if id in second_gold]
    if other_texts := [document.id for document, (counterpart,) in same_ids if document.text != counterpart.text]:
        raise DataError(
            f"{both} were measured on different texts: document {other_texts[0]!r} differs, as do "
            f"{len(other_texts) - 1} more; measure both on one corpus"
        )
    by_text: dict[str, list[Document]] = {}
    for id, document in second_gold.items():
        if id not in first_gold:
            by_text.setdefault(document.text, []).append(document)
    renamed = [document for id, document in first_gold.items() if id not in second_gold and document.text in by_text]
    shared = same_ids + [(document, by_text[document.text]) for document in renamed]
    changed = [
        document.id
        for document, counterparts in shared
        if set(document.entities) not in [set(counterpart.entities) for counterpart in counterparts]
    ]
    if changed:
        raise DataError(
            f"the gold annotations of {both} differ in {len(changed)} of {len(shared)} texts that both have, first in "
            f"document {changed[0]!r}; figures against different annotations, such as CMeEE V1 and V2, do not compare: "
            "measure both against one"
        )
    if unshared := sorted(first_gold.keys() ^ second_gold.keys()):
        owner = first.name if unshared[0] in first_gold else second.name
        raise DataError(
            f"{both} were measured on different documents: {unshared[0]!r} is one of {owner} only ({len(unshared)} "
            "such); measure both on one corpus"
        )


def _counted(system: System, codes: Sequence[str]) -> Floats:
    """Return the strict counts [documents, labels + 1, 4] of a system.

    Raises:
        DataError: its predictions do not pair with the gold documents.
    """
    from spantune.metrics import counts

    try:
        pairs = pair(sorted(system.gold, key=lambda document: document.id), system.documents)
        sides = counts.sides(pairs, codes)
    except DataError as error:
        raise DataError(error.message, path=system.name, field=error.field) from None
    units = sides if system.protocol == "cblue" else counts.mentions(*sides)
    return counts.strict(*units, len(pairs), len(codes))


def _gaps(first: Floats, second: Floats, resamples: int, seed: int) -> list[Gap]:
    """Return the gap for every label, and as the last one the gap for all labels together.

    Args:
        first: the strict counts of the first system [documents, labels + 1, 4].
        second: those of the second system, in the same order of documents.
    """
    import numpy as np

    from spantune.metrics.bootstrap import exchange, interval, p_value, resample
    from spantune.metrics.counts import GOLD, PREDICTED, quotients

    def f1(counts: Floats) -> Floats:
        return quotients(counts.reshape(*counts.shape[:-1], -1, 4))[..., 2]

    first, second = (table.reshape(len(table), -1) for table in (first, second))
    entities = (table.reshape(len(table), -1, 4)[..., [PREDICTED, GOLD]].sum(axis=-1) for table in (first, second))
    bearing = (sum(entities) > 0).sum(axis=0).tolist()
    observed = f1(second.sum(axis=0)) - f1(first.sum(axis=0))
    drawn = resample(np.concatenate((first, second), axis=1), resamples, seed)
    low, high = interval(f1(drawn[:, first.shape[1] :]) - f1(drawn[:, : first.shape[1]]))
    first_exchanged, second_exchanged = exchange(first, second, resamples, seed)
    chance = f1(second_exchanged) - f1(first_exchanged)
    gaps = []
    for row, (gap, lowest, highest) in enumerate(np.stack((observed, low, high), axis=1).tolist()):
        p = p_value(chance[:, row], gap)
        is_enough = bearing[row] >= FEWEST_DOCUMENTS
        gaps.append(Gap(gap, lowest if is_enough else None, highest if is_enough else None, p, p))
    return gaps
