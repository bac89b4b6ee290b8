"""Whether systems differ on the same documents: paired bootstrap, approximate randomisation, and a plain sentence.

Two systems that read the same texts err on the same documents, so that their difference is far less uncertain than
either figure, and overlapping intervals of the two say nothing. Refused is what cannot be compared: other documents,
other texts, other protocols, or other gold annotations of the same texts, such as CMeEE V1 and V2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from spantune.core import ConfigError, DataError, Document, Prediction, as_extraction
from spantune.metrics.figures import Protocol, Scores
from spantune.metrics.pairing import pair
from spantune.metrics.scoring import RESAMPLES, score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


ALPHA = 0.05
"""A difference counts as real below this p."""


@dataclass(frozen=True)
class System:
    """The predictions of a run, a model or a file, and the gold documents and protocol that they are scored with."""

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
    """F1 of the second less F1 of the first: interval by paired bootstrap, p by approximate randomisation.

    `p_holm` is p after Holm's correction: over the labels, or over the pairs of systems.
    """

    f1: float
    f1_low: float
    f1_high: float
    p: float
    p_holm: float

    @property
    def real(self) -> bool:
        """Whether both tests say that chance is no explanation: p_holm is below ALPHA and the interval leaves 0 out."""
        return self.p_holm < ALPHA and not self.f1_low <= 0 <= self.f1_high

    def as_dict(self) -> dict[str, float | bool]:
        """The gap as a JSON object."""
        bounds = {"f1": self.f1, "f1_low": self.f1_low, "f1_high": self.f1_high}
        return {**bounds, "p": self.p, "p_holm": self.p_holm, "real": self.real}


@dataclass(frozen=True)
class Difference:
    """Two systems on the same documents: the gap of strict micro F1, and that of each label that occurs."""

    first: str
    second: str
    micro: Gap
    labels: Mapping[str, Gap]
    corrected_for: int = 1

    @property
    def sentence(self) -> str:
        """What the figures say, in words."""
        gap = self.micro
        p = "p < 0.001" if gap.p_holm < 0.001 else f"p = {gap.p_holm:.3f}"
        p += f" after Holm's correction for {self.corrected_for} comparisons" if self.corrected_for > 1 else ""
        facts = f"(95 % interval {100 * gap.f1_low:+.1f} to {100 * gap.f1_high:+.1f}, {p})"
        if not gap.f1:
            return f"{self.second} and {self.first} have the same F1 {facts}."
        more = "higher" if gap.f1 > 0 else "lower"
        amount = f"The F1 of {self.second} is {abs(100 * gap.f1):.1f} points {more} than that of {self.first} {facts}"
        return f"{amount}: the difference is real." if gap.real else f"{amount}: this may be chance."

    def as_dict(self) -> dict[str, Any]:
        """The difference as a JSON object."""
        labels = {code: gap.as_dict() for code, gap in self.labels.items()}
        names = {"first": self.first, "second": self.second, "sentence": self.sentence}
        return {**names, "micro": self.micro.as_dict(), "labels": labels}


@dataclass(frozen=True)
class Comparison:
    """Systems by name with their scores, and every other's difference from the first."""

    systems: Mapping[str, Scores]
    differences: tuple[Difference, ...]
    protocol: Protocol
    documents: int

    def as_dict(self) -> dict[str, Any]:
        """The comparison as a JSON object."""
        return {
            "protocol": self.protocol,
            "documents": self.documents,
            "systems": {name: scores.as_dict() for name, scores in self.systems.items()},
            "differences": [difference.as_dict() for difference in self.differences],
        }


def compare(
    systems: Sequence[System], labels: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compare every other system with the first, by strict F1.

    Raises:
        ConfigError: fewer than two systems, two of one name, or several protocols.
        DataError: systems were measured on different documents, texts or annotations, or predictions do not fit.
    """
    import numpy as np

    from spantune.metrics.bootstrap import holm

    require_comparable(systems)
    codes = list(dict.fromkeys(labels))
    counted = [_counted(system, codes) for system in systems]
    scores = {one.name: score(one.gold, one.documents, codes, protocol=one.protocol, seed=seed) for one in systems}
    found = [_gaps(counted[0], other, resamples, seed) for other in counted[1:]]
    corrected = holm([gaps[-1].p for gaps in found])
    differences = []
    for system, gaps, p, table in zip(systems[1:], found, corrected, counted[1:], strict=True):
        occurs = np.flatnonzero((counted[0] + table)[:, :-1].any(axis=(0, 2))).tolist()
        by_label = {codes[row]: gaps[row] for row in occurs}
        adjusted = holm([gap.p for gap in by_label.values()])
        labelled = {code: replace(by_label[code], p_holm=its) for code, its in zip(by_label, adjusted, strict=True)}
        micro = replace(gaps[-1], p_holm=p)
        differences.append(Difference(systems[0].name, system.name, micro, labelled, len(found)))
    return Comparison(scores, tuple(differences), systems[0].protocol, len(systems[0].gold))


def require_comparable(systems: Sequence[System]) -> None:
    """Check that all systems were measured in one way on one annotation of one set of documents.

    Raises:
        ConfigError: fewer than two systems, two of one name, or several protocols.
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


def _require_same_gold(first: System, other: System) -> None:
    """Refuse gold documents that are others, or that are annotated in another way."""
    ours, theirs = ({document.id: document for document in system.gold} for system in (first, other))
    both = f"{first.name} and {other.name}"
    same = [(document, [theirs[name]]) for name, document in ours.items() if name in theirs]
    if moved := [one.id for one, (its,) in same if one.text != its.text]:
        raise DataError(
            f"{both} were measured on different texts: document {moved[0]!r} differs, as do {len(moved) - 1} more; "
            "measure both on one corpus"
        )
    by_text: dict[str, list[Document]] = {}
    for name, document in theirs.items():
        if name not in ours:
            by_text.setdefault(document.text, []).append(document)
    renamed = [document for name, document in ours.items() if name not in theirs and document.text in by_text]
    shared = same + [(document, by_text[document.text]) for document in renamed]
    changed = [one.id for one, its in shared if set(one.entities) not in [set(that.entities) for that in its]]
    if changed:
        raise DataError(
            f"the gold annotations of {both} differ in {len(changed)} of {len(shared)} texts that both have, first in "
            f"document {changed[0]!r}; figures against different annotations, such as CMeEE V1 and V2, do not compare: "
            "measure both against one"
        )
    if alone := sorted(ours.keys() ^ theirs.keys()):
        owner = first.name if alone[0] in ours else other.name
        raise DataError(
            f"{both} were measured on different documents: {alone[0]!r} is one of {owner} only ({len(alone)} such); "
            "measure both on one corpus"
        )


def _counted(system: System, codes: Sequence[str]) -> Floats:
    """Strict counts [documents, labels + 1, 4] of a system.

    Raises:
        DataError: its predictions do not fit the gold documents.
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
    """The gap of every label, and of all as the last."""
    import numpy as np

    from spantune.metrics.bootstrap import exchange, interval, p_value, quotients, resample

    def f1(counted: Floats) -> Floats:
        return quotients(counted.reshape(*counted.shape[:-1], -1, 4))[..., 2]

    one, other = (table.reshape(len(table), -1) for table in (first, second))
    observed = f1(other.sum(axis=0)) - f1(one.sum(axis=0))
    drawn = resample(np.concatenate((one, other), axis=1), resamples, seed)
    low, high = interval(f1(drawn[:, one.shape[1] :]) - f1(drawn[:, : one.shape[1]]))
    ours, theirs = exchange(one, other, resamples, seed)
    chance = f1(theirs) - f1(ours)
    gaps = []
    for row, (gap, lowest, highest) in enumerate(np.stack((observed, low, high), axis=1).tolist()):
        p = p_value(chance[:, row], gap)
        gaps.append(Gap(gap, lowest, highest, p, p))
    return gaps
