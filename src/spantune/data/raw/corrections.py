"""Corrections as the service stores them in native JSONL; of several corrections of one text, the last one counts.

The service only appends to its file. A text that is corrected again is therefore in the file twice, and a record that
withdraws an annotation follows when it was deleted in Label Studio. Reading yields the corrections that are valid at
the end of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from spantune.core import DataError
from spantune.data.raw.document import Item, RawDocument

FIELDS = ("model", "fingerprint", "time", "source")
"""The fields in the meta of a correction, each a string, by which it is recognised."""


def is_correction(meta: Mapping[str, object]) -> bool:
    """Return whether a document with this `meta` is a correction that a service stored."""
    return all(isinstance(meta.get(field), str) for field in FIELDS)


class Indivisible(DataError):
    """The error for a file that must be read as a whole, where it was to be read in parts."""


def uncorrected(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items of a part of a file, after checking that none is a correction.

    Raises:
        Indivisible: an item is a correction. Which corrections are valid is known only at the end of the whole file.
    """
    for item in items:
        if isinstance(item, RawDocument) and is_correction(item.meta):
            raise Indivisible(
                "holds corrections that `spantune serve` stored, so that it cannot be read in parts; convert it first: "
                "spantune data convert",
                path=item.path,
                line=item.line,
            )
        yield item


def in_force(items: Iterable[Item], notes: Counter[str]) -> Iterator[Item]:
    """Yield the items that are no corrections, and then the corrections that are valid, in their order.

    The last correction of a text replaces earlier ones. A record with `meta.annotation` replaces earlier records of the
    same annotation; with `meta.withdrawn`, it only removes them. Ids that corrections of several texts share are made
    unique. `notes` counts what is left out or changed. Corrections are held in memory, other documents are not.
    """
    held: dict[int, RawDocument] = {}
    index_of: dict[str, int] = {}
    for index, item in enumerate(items):
        if isinstance(item, RawDocument) and is_correction(item.meta):
            annotation = item.meta.get("annotation")
            if isinstance(annotation, str):
                earlier = held.pop(index_of.pop(annotation, -1), None)
                if item.meta.get("withdrawn") is True:
                    notes["correction withdrawn"] += earlier is not None
                    continue
                notes["correction replaced by a later one of the same annotation"] += earlier is not None
                index_of[annotation] = index
            held[index] = item
        else:
            yield item
    last = {document.text: index for index, document in held.items()}
    notes["correction replaced by a later one of the same text"] += len(held) - len(last)
    used: set[str] = set()
    for index in sorted(last.values()):
        document = held[index]
        id, number = document.id, 2
        while id in used:
            id, number = f"{document.id}-{number}", number + 1
        notes["id of a correction made unique, since another text has it"] += id != document.id
        used.add(id)
        yield document if id == document.id else replace(document, id=id)
