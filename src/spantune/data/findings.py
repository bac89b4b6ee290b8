"""Count the findings of a corpus by rule, and report them.

For each rule, only the number of findings, the first place and one example are kept. So a corpus with a hundred
thousand wrong offsets gives one line and not a log; `data check --fix` writes the log.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

from spantune.core import framed_html, number, table_html
from spantune.data.raw.document import Defect, RawDocument, RawEntity
from spantune.data.rules import Rule, Severity

_EXAMPLE_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Finding:
    """The findings of one rule.

    Args:
        name: the rule.
        severity: `error`, `warning` or `info`.
        count: the number of findings.
        fixable: whether `--fix` repairs them.
        message: what the rule found, in words.
        where: the place of the first finding, as `file:line`.
        example: what is wrong at that place.
    """

    name: Rule
    severity: Severity
    count: int
    fixable: bool
    message: str
    where: str
    example: str


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check: the files, their numbers of documents and entities, and a Finding for each broken rule."""

    files: tuple[str, ...]
    documents: int
    entities: int
    findings: tuple[Finding, ...]

    def __repr__(self) -> str:
        counts = f"{number(self.errors, 'error')}, {number(self.warnings, 'warning')}"
        return f"Report({counts}, {number(self.documents, 'document')})"

    def _repr_html_(self) -> str:
        rows = [
            (finding.name, finding.severity, str(finding.count), finding.message, f"{finding.where}: {finding.example}")
            for finding in self.findings
        ]
        counts = f"{number(self.documents, 'document')}, {number(self.entities, 'entity', 'entities')}: "
        counts += f"{number(self.errors, 'error')}, {number(self.warnings, 'warning')}"
        table = table_html(("finding", "", "count", "what", "the first"), rows) if rows else ""
        return framed_html(f"<p>{counts}</p>{table}")

    @property
    def errors(self) -> int:
        """The number of errors: the sum of the counts of the findings with that severity."""
        return self._sum("error")

    @property
    def warnings(self) -> int:
        """The number of warnings: the sum of the counts of the findings with that severity."""
        return self._sum("warning")

    def as_dict(self) -> dict[str, object]:
        """Return the report as the JSON object that `--json` prints."""
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


@dataclass(slots=True)
class _Count:
    """The findings of one rule: place and example of the first, their number, and details that all of them share."""

    where: str
    example: str
    count: int = 0
    details: list[str] = field(default_factory=list)


class Tally:
    """Counts findings by rule, and keeps the place and the example of the first finding of each rule."""

    def __init__(self) -> None:
        self._counts: dict[Rule, _Count] = {}

    def add(self, rule: Rule, where: str, example: str, count: int = 1) -> None:
        """Count `count` findings of `rule`, the first of them at `where`."""
        if rule not in self._counts:
            is_short = len(example) <= _EXAMPLE_CHARACTERS
            self._counts[rule] = _Count(where, example if is_short else example[: _EXAMPLE_CHARACTERS - 1] + "…")
        self._counts[rule].count += count

    def again(self, rule: Rule) -> bool:
        """Count one more finding of `rule` if the tally already has one, and return whether it had one.

        So a caller builds a place and an example, which takes time, for the first finding only.
        """
        if (counted := self._counts.get(rule)) is None:
            return False
        counted.count += 1
        return True

    def add_all(self, later: Tally) -> None:
        """Add the findings of `later`, the tally of a later part of the corpus."""
        for rule, counted in later._counts.items():
            if (earlier := self._counts.get(rule)) is None:
                self._counts[rule] = counted
            else:
                earlier.count += counted.count
                earlier.details += counted.details

    def add_defect(self, defect: Defect, where: str, example: str) -> None:
        """Count a defect that the reader of a format has reported."""
        self.add(defect.rule, where, f"{example}: {defect.message}")

    def explain(self, rule: Rule, detail: str) -> None:
        """Add `detail` to the message of `rule`: a fact that holds for all its findings."""
        if rule in self._counts:
            self._counts[rule].details.append(detail)

    def findings(self) -> tuple[Finding, ...]:
        """Return the findings by severity, errors first, then in the order of the rules."""
        severities, rules = get_args(Severity), list(Rule)
        ordered = sorted(self._counts, key=lambda rule: (severities.index(rule.severity), rules.index(rule)))
        return tuple(_finding(rule, self._counts[rule]) for rule in ordered)


def _finding(rule: Rule, counted: _Count) -> Finding:
    message = "; ".join([rule.message, *counted.details])
    return Finding(rule, rule.severity, counted.count, rule.fixable, message, counted.where, counted.example)


def place(path: str | Path, line: int | None) -> str:
    """Return `file:line`, or only the file where `line` is None."""
    return str(path) if line is None else f"{path}:{line}"


def place_of(document: RawDocument, entity: RawEntity | None = None) -> str:
    """Return the place of `document`, or of its `entity` if one is given, as `file:line`."""
    line = entity.line if entity is not None and entity.line is not None else document.line
    return place(document.path, line)


def excerpt(text: str, size: int = 30) -> str:
    """Return the beginning of `text`, at most `size` characters, as a Python literal."""
    return repr(text if len(text) <= size else text[: size - 1] + "…")


def shown(document: RawDocument, entity: RawEntity) -> str:
    """Return an entity as examples show it: surface, label and offsets, such as `'肺炎' (dis) [0, 2)`."""
    surface = document.text[max(entity.start, 0) : max(entity.end, 0)] if entity.surface is None else entity.surface
    return f"{excerpt(surface)} ({entity.label}) [{entity.start}, {entity.end})"
