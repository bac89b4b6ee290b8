"""What can be wrong with a corpus: every finding by name, with its severity, and counting them.

An error is what training would learn wrong or a figure would measure wrong, a warning is worth a look, an info is a
fact. The trade-off: a finding keeps its count, its first place and one example, so that a corpus with a hundred
thousand wrong offsets is a line and not a log; `data check --fix` writes the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from spantune.data.raw.document import Defect, RawDocument, RawEntity

Severity = Literal["error", "warning", "info"]
RARE = 20
LONG = 510

_EXAMPLE = 120  # characters


class Rule(NamedTuple):
    """How bad a finding is, whether `--fix` mends what it can of it, and what it means."""

    severity: Severity
    fixable: bool
    message: str


RULES: Mapping[str, Rule] = {
    "unreadable": Rule("error", False, "documents that cannot be read"),
    "lone-surrogate": Rule("error", False, "documents with half of a surrogate pair, which is not text"),
    "repeated-id": Rule("error", False, "documents with the id of an earlier one"),
    "surface-mismatch": Rule("error", True, "entities whose text is not what stands at their offsets"),
    "end-mismatch": Rule("error", True, "entities whose text begins at their start, but does not end at their end"),
    "empty-span": Rule("error", True, "entities that end where they start, or before"),
    "out-of-range": Rule("error", True, "entities that reach outside their text"),
    "end-one-too-small": Rule("error", True, "ends that are one too small for an inclusive end"),
    "end-half-open": Rule("error", True, "half-open ends in a format of inclusive ends"),
    "broken-transition": Rule("error", True, "tags that continue an entity which nothing has begun"),
    "utf16-offsets": Rule("error", True, "offsets that count UTF-16 code units, not code points"),
    "left-out": Rule("error", False, "documents and entities that could not be mended and were not written"),
    "label-outside": Rule("error", False, "entities with a label that the schema does not have"),
    "shared-text": Rule(
        "error", False, "texts that stand in several files: what is measured on them is learnt by heart"
    ),
    "conflicting-shared-text": Rule("error", False, "texts that stand in several files and are annotated differently"),
    "duplicate-annotation": Rule("warning", True, "entities that repeat span and label of another"),
    "two-labels": Rule("warning", False, "spans with several labels"),
    "crossing": Rule("warning", False, "entities that overlap another without one holding the other"),
    "boundary-inconsistency": Rule(
        "warning", False, "surfaces annotated sometimes with and sometimes without a word at their edge"
    ),
    "rare-label": Rule("warning", False, f"labels with fewer than {RARE} examples"),
    "duplicate-text": Rule("warning", False, "documents with the text of an earlier one of their file"),
    "conflicting-duplicate": Rule("warning", False, "texts that stand in one file and are annotated differently"),
    "near-duplicate": Rule("warning", False, "texts that are nearly an earlier one of their file"),
    "conflicting-near-duplicate": Rule(
        "warning", False, "texts that are nearly an earlier one of their file, but annotated differently"
    ),
    "shared-near-duplicate": Rule("warning", False, "texts that are nearly one of another file"),
    "conflicting-shared-near-duplicate": Rule(
        "warning", False, "texts that are nearly one of another file, but annotated differently"
    ),
    "empty-text": Rule("warning", False, "texts that are empty or blank"),
    "control-character": Rule("warning", False, "texts with control characters or line separators"),
    "zero-width-character": Rule(
        "warning", False, "texts with characters that nobody sees: zero-width, soft hyphen, marks of direction"
    ),
    "mixed-normalisation": Rule("warning", False, "texts that are not in Unicode's form NFC, where others are"),
    "too-long": Rule("warning", False, "texts with more tokens than the budget"),
    "long-text": Rule(
        "info", False, f"texts of more than {LONG} characters, which trainers made for sentences cut or drop"
    ),
    "repeated-surface": Rule(
        "info", False, "entities whose surface stands more than once in their text: only offsets say which is meant"
    ),
    "unverified": Rule("info", False, "entities without their text: their offsets cannot be verified"),
    "without-entities": Rule("info", False, "documents without entities"),
    "no-negatives": Rule("info", False, "files without a document without entities: they cannot show false alarms"),
    "byte-order-mark": Rule("info", True, "files that begin with a byte-order mark"),
    "crlf": Rule("info", True, "lines that end in CRLF"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of finding: how often, where first (`file:line`), and what is there."""

    name: str
    severity: Severity
    count: int
    fixable: bool
    message: str
    where: str
    example: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found; `errors` and `warnings` are the sums of their counts."""

    files: tuple[str, ...]
    documents: int
    entities: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        return self._sum("error")

    @property
    def warnings(self) -> int:
        return self._sum("warning")

    def as_dict(self) -> dict[str, Any]:
        """The report as `--json` prints it."""
        return {
            "files": list(self.files),
            "documents": self.documents,
            "entities": self.entities,
            "errors": self.errors,
            "warnings": self.warnings,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def _sum(self, severity: Severity) -> int:
        return sum(finding.count for finding in self.findings if finding.severity == severity)


class Tally:
    """Counts findings by name and keeps the first example of each."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Rule, str, str]] = {}
        self._counts: dict[str, int] = {}
        self._details: dict[str, list[str]] = {}

    def add(self, name: str, where: str, example: str, count: int = 1) -> None:
        """Count a finding of the table."""
        self._add(name, RULES[name], where, example, count)

    def add_defect(self, defect: Defect, where: str, example: str) -> None:
        """Count what a format calls a defect; one that the table does not know is an error unless it is tolerated."""
        unknown = Rule(
            "warning" if defect.tolerated else "error", True, "entities stated otherwise than the format says"
        )
        self._add(defect.code, RULES.get(defect.code, unknown), where, f"{example}: {defect.message}", 1)

    def explain(self, name: str, detail: str) -> None:
        """Add what all findings of `name` have in common to its message."""
        if name in self._counts:
            self._details.setdefault(name, []).append(detail)

    def findings(self) -> tuple[Finding, ...]:
        """What was found, errors first, in the order of the table."""
        order = list(RULES)
        severities = ("error", "warning", "info")
        found = [
            Finding(name, rule.severity, self._counts[name], rule.fixable, self._message(name, rule), where, example)
            for name, (rule, where, example) in self._found.items()
        ]
        place = {name: order.index(name) if name in RULES else len(order) for name in self._found}
        return tuple(sorted(found, key=lambda one: (severities.index(one.severity), place[one.name])))

    def _add(self, name: str, rule: Rule, where: str, example: str, count: int) -> None:
        if name not in self._found:
            cut = example if len(example) <= _EXAMPLE else example[: _EXAMPLE - 1] + "…"
            self._found[name] = (rule, where, cut)
        self._counts[name] = self._counts.get(name, 0) + count

    def _message(self, name: str, rule: Rule) -> str:
        return "; ".join([rule.message, *self._details.get(name, [])])


def place(path: str | Path, line: int | None) -> str:
    """`file:line`, or the file where there is no line."""
    return str(path) if line is None else f"{path}:{line}"


def place_of(document: RawDocument, entity: RawEntity | None = None) -> str:
    """Where `document`, or an entity of it, stands."""
    line = entity.line if entity is not None and entity.line is not None else document.line
    return place(document.path, line)


def excerpt(text: str, size: int = 30) -> str:
    """The beginning of `text`, with what cannot be printed as escapes."""
    return repr(text if len(text) <= size else text[: size - 1] + "…")


def shown(document: RawDocument, entity: RawEntity) -> str:
    """An entity as examples show it."""
    surface = document.text[max(entity.start, 0) : max(entity.end, 0)] if entity.surface is None else entity.surface
    return f"{excerpt(surface)} ({entity.label}) [{entity.start}, {entity.end})"
