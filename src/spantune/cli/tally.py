"""The messages on stderr at the end of an extraction: its counts, its failures, and facts about the output file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spantune.cli.options import report_left_out
from spantune.core import number, say

if TYPE_CHECKING:
    from spantune.extraction import Tally, Target
    from spantune.metrics import Calibration


def report_tally(tally: Tally, calibration: Calibration | None, target: Target | None) -> None:
    """Print on stderr the counts of an extraction: dropped entities, notes, failures, and facts about the output file.

    Args:
        tally: the counts.
        calibration: the calibration of the engine; None if there is none.
        target: the output; None with Ray.
    """
    from spantune.extraction import SHOWN

    report_left_out(calibration, tally.below_threshold)
    for note, count in (+tally.notes).items():
        say(f"{count} × {note}")
    if tally.contradicted:
        say(f"{tally.contradicted} entities left out, which the next chunk of their text contradicts")
    for line in tally.failures:
        say(f"failed: {line}")
    if tally.failed > SHOWN:
        say(f"failed: {tally.failed - SHOWN} more")
    if target is not None:
        _report_file(tally, target)
    if tally.with_problem:
        say(f"{tally.with_problem} of {tally.documents} answers had a problem; see meta.problems of each")


def _report_file(tally: Tally, target: Target) -> None:
    """Print which documents are not in the output file, which were chosen, and what the user can do with the file."""
    from spantune.extraction import partial

    if tally.not_representable:
        say(
            f"{tally.not_representable} documents are not in {target.out}: {target.format} has no place for what failed"
        )
    if tally.chosen is not None:
        place = f": {target.out}" if target.out else ""
        say(f"{number(tally.chosen, 'document')} of {tally.documents:,}, the least sure first{place}")
    if target.interface is not None and target.interface.exists():
        say(
            f"in Label Studio: make a project, set {target.interface} as its labelling interface (Settings, Labeling "
            f"Interface, Code), import {target.out}, correct, and export as JSON; then: spantune data check EXPORT.json"
        )
    if target.out and partial(target.out).exists():
        say(f"{partial(target.out)} holds what is done; go on with --resume")


def close_tally(tally: Tally, seconds: float, written: Path | str | None) -> None:
    """Print in one line the result of this call: documents, entities, time, problems by kind, and the output.

    Args:
        tally: the counts.
        seconds: the time since the engine was loaded.
        written: the output file or folder; None if there is none.
    """
    documents, entities = number(tally.extracted, "document"), number(tally.entities, "entity", "entities")
    kinds = ", ".join(f"{count} {kind}" for kind, count in tally.problems.most_common())
    where = f"; written to {written}" if written else ""
    say(
        f"{documents}, {entities}, {seconds:.1f} s ({tally.extracted / max(seconds, 1e-9):.1f} documents/s), "
        f"problems: {kinds or 'none'}{where}"
    )
