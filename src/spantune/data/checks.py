"""Check annotated files, which are the splits of one corpus: `check` applies every rule of `rules`.

A file may be in memory or be read in parts, and several processes or machines may check the parts. Each document is
first checked by itself (`document_checks`). The counts that are made there then decide the rules that compare
documents. Whether an annotation is medically or linguistically right is not checked.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from spantune.data.boundaries import Case, Cuts, Surface, add_cuts, cut_surfaces
from spantune.data.document_checks import Demands, Stated, Survey, repaired_documents, survey
from spantune.data.duplicates import Stack, check_ids, check_repetition
from spantune.data.engines import HERE, Engine, OnRay
from spantune.data.findings import Report, Tally, excerpt
from spantune.data.offsets import ENOUGH, Shift, Starts
from spantune.data.parts import Divided, Part, Source
from spantune.data.raw import faithful
from spantune.data.raw.corrections import Indivisible
from spantune.data.raw.document import RawDocument
from spantune.data.raw.text_files import BOM_NOTE, CRLF_NOTE
from spantune.data.rules import RARE, Rule

FILE_RULES = {BOM_NOTE: Rule.BYTE_ORDER_MARK, CRLF_NOTE: Rule.CRLF}
"""The rule for each note that a reader makes of a whole file."""

_MANY = 100  # a file with at least this many documents, all with entities, gets the finding NO_NEGATIVES


def check(
    sources: Sequence[Source | Divided], demands: Demands, tally: Tally | None = None, engine: Engine = HERE
) -> Report:
    """Check `sources`, the splits of one corpus, and report the findings.

    For a file that is read in parts, memory holds about 200 bytes per document, and each different entity text once.

    Args:
        sources: the files, in memory or divided into parts.
        demands: a label set and a token budget to check against.
        tally: where the findings are added; a new one if None.
        engine: where the parts are checked.

    Raises:
        DataError: a file that is read in parts cannot be read to its end, or it holds corrections and the engine is
            Ray.
    """
    tally = tally or Tally()
    sources = list(sources)
    shifts: list[Shift | None] = []
    surveys: list[Survey] = []
    stacks: list[Stack] = []
    for number, source in enumerate(sources):
        try:
            found, shift = _surveyed(source, demands, engine)
        except Indivisible:
            if isinstance(source, Source) or isinstance(engine, OnRay):
                raise
            sources[number] = source = source.held()
            found, shift = _surveyed(source, demands, engine)
        stack = Stack.of(source.whole, shift, found.rows)
        _add_file(source, found, shift, stack, tally)
        found.rows = []
        shifts.append(shift)
        surveys.append(found)
        stacks.append(stack)
    whole = Survey(tally)
    for found in surveys:
        found.tally = Tally()  # its findings are in the tally of the corpus already
        whole.add(found)
    if whole.composed:
        tally.add_all(whole.decomposed)
    _check_labels(whole, demands.labels)
    _check_spellings(whole)
    _check_files(surveys, tally)
    _check_boundaries(sources, shifts, whole, engine)
    check_repetition(stacks, tally, engine)
    paths = tuple(str(source.path) for source in sources)
    return Report(paths, whole.documents, whole.stated.entities, tally.findings())


def of_file(notes: Mapping[str, int]) -> Iterator[tuple[Rule, str, int]]:
    """Yield (rule, note, count) for each of a reader's `notes` that is a finding about the whole file."""
    for note, count in notes.items():
        rule = Rule.META_LEFT_OUT if note.startswith(faithful.NOTE) else FILE_RULES.get(note)
        if rule is not None and count:
            yield rule, note, count


def _surveyed(source: Source | Divided, demands: Demands, engine: Engine) -> tuple[Survey, Shift | None]:
    """Check each document of `source` by itself; if wrong offsets share a shift, check once more with that shift."""
    shift = None
    found = _joined(source, shift, demands, engine)
    if found.stated.astray:
        starts = Starts()
        for part_starts in engine.map(_starts, None, source.parts, "compare offsets"):
            starts.add(part_starts)
        if (shift := starts.shift()) is not None:
            found = _joined(source, shift, demands, engine)
    if isinstance(source, Source):
        found.notes = Counter(source.notes)
    return found, shift


def _joined(source: Source | Divided, shift: Shift | None, demands: Demands, engine: Engine) -> Survey:
    found = Survey()
    worker = HERE if isinstance(source, Source) else engine  # documents in memory are not sent to other processes
    for part_survey in worker.map(survey, demands, [(part, shift) for part in source.parts], "check"):
        found.add(part_survey)
    return found


def _starts(_: None, part: Part) -> Starts:
    starts = Starts()
    for _where, item in part.read(Counter()):
        if isinstance(item, RawDocument):
            starts.count(item)
    return starts


def _add_file(source: Source | Divided, found: Survey, shift: Shift | None, stack: Stack, tally: Tally) -> None:
    """Add to `tally` the findings in the documents of a file, and the findings about the file as a whole."""
    tally.add_all(found.tally)
    check_ids(stack, tally)
    for rule, note, count in of_file(found.notes):
        tally.add(rule, str(source.path), note, count)
    _explain(found.stated, shift, source.path.name, tally)
    if found.documents >= _MANY and found.annotated == found.documents:
        tally.add(Rule.NO_NEGATIVES, found.first, f"{found.documents} documents, all with entities")


def _explain(stated: Stated, shift: Shift | None, file: str, tally: Tally) -> None:
    """Add to the message of each rule how many entities it concerns, what they share and how many can be repaired."""

    def share(count: int) -> str:
        return f"{'all' if count == stated.entities else f'{count} of the'} {stated.entities} entities of {file}"

    for rule, count in stated.defects.items():
        tally.explain(rule, share(count))
    for rule in dict.fromkeys(rule for rule, _ in stated.faults):
        repairable = stated.faults[rule, True]
        count = repairable + stated.faults[rule, False]
        common = _shared_end(stated.ends) if rule is Rule.END_MISMATCH else str(shift or "")
        tally.explain(rule, f"{share(count)}{common and f' ({common})'}, --fix mends {repairable}")


def _shared_end(distances: Counter[int]) -> str:
    """Say how ends are wrong that are off by `distances`; "" if fewer than `ENOUGH` of them are off by the same."""
    by, count = distances.most_common(1)[0]
    is_shared = count >= ENOUGH * distances.total()
    return f"each end is {abs(by)} too {'small' if by < 0 else 'large'}" if is_shared else ""


def _check_labels(whole: Survey, schema: Collection[str]) -> None:
    """Count the labels of `schema` and of the corpus that have fewer than RARE entities."""
    for label in [*schema, *(label for label in whole.labels.counts if label not in schema)]:
        if whole.labels.counts[label] < RARE and whole.documents:
            where = whole.labels.first.get(label, whole.first)
            whole.tally.add(Rule.RARE_LABEL, where, f"{label}: {whole.labels.counts[label]}")


def _check_spellings(whole: Survey) -> None:
    """Count the labels that differ from a more frequent one in case, width or white space only."""
    counts = whole.labels.counts
    frequent: dict[str, str] = {}
    for label, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        other = frequent.setdefault(" ".join(unicodedata.normalize("NFKC", label).casefold().split()), label)
        if other != label:
            example = f"{label!r} {count} times, {other!r} {counts[other]} times"
            whole.tally.add(Rule.LABEL_SPELLING, whole.labels.first[label], example)


def _check_files(surveys: Sequence[Survey], tally: Tally) -> None:
    """Count the labels that occur in only one of several annotated files."""
    annotated = [found.labels for found in surveys if found.labels.counts]
    places: dict[str, list[str]] = {}
    for labels in annotated:
        for label, where in labels.first.items():
            places.setdefault(label, []).append(where)
    for label, where_of_label in places.items():
        if len(annotated) > 1 and len(where_of_label) == 1:
            tally.add(Rule.LABEL_IN_ONE_FILE, where_of_label[0], f"{label}: in one of {len(annotated)} files")


def _check_boundaries(
    sources: Sequence[Source | Divided], shifts: Sequence[Shift | None], whole: Survey, engine: Engine
) -> None:
    """Count the surfaces that are sometimes annotated with a word at their edge and sometimes without it."""
    tasks = [(part, shift) for source, shift in zip(sources, shifts, strict=True) for part in source.parts]
    cases: dict[Case, Cuts] = {}
    for part_cases in engine.map(_cut_surfaces, whole.surfaces, tasks, "compare boundaries"):
        add_cuts(cases, part_cases)
    for (label, surface, part), cuts in cases.items():
        times = f"{excerpt(surface)} {whole.surfaces[label, surface]} times"
        example = f"{times}, only {excerpt(part)} in it {cuts.count} times ({label})"
        whole.tally.add(Rule.BOUNDARY_INCONSISTENCY, cuts.where, example)


def _cut_surfaces(surfaces: Mapping[Surface, int], task: tuple[Part, Shift | None]) -> dict[Case, Cuts]:
    return cut_surfaces(repaired_documents(*task), surfaces)
