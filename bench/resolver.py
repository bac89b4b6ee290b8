"""How many gold entities survive being written as mentions and read back: F1 of ways to anchor mentions to a text.

    python bench/resolver.py CORPUS [CORPUS …]

Each corpus is written by the `jsonl` format without offsets and read back; what is lost is lost to every model that
writes answers of this kind, so that the F1 is a ceiling. `first occurrence`, `k-th to k-th` (the k-th time a mention
is written is its k-th occurrence) and `cursor` (the next occurrence from the start of the entity before) need no more
than that entities are written as they stand; `spantune` is ours, which knows that answers
are sorted by (start, end, label). Prints a Markdown table of F1 in points.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from spantune.core import Document, Entity, TaskSpec
from spantune.data import formats
from spantune.encoding.answers import jsonl
from spantune.metrics import score

Way = Callable[[Document], list[Entity]]


def first_occurrence(document: Document) -> list[Entity]:
    """Every mention at its first occurrence."""
    return [_at(document.text.find(document.surface(one)), one) for one in document.entities]


def kth_to_kth(document: Document) -> list[Entity]:
    """The k-th time a mention is written at its k-th occurrence; past the last one at none."""
    written: Counter[str] = Counter()
    found = []
    for one in document.entities:
        mention = document.surface(one)
        places = list(_occurrences(document.text, mention))
        if written[mention] < len(places):
            found.append(_at(places[written[mention]], one))
        written[mention] += 1
    return found


def cursor(document: Document) -> list[Entity]:
    """Every mention at its next free occurrence from the start of the entity before, else at its first."""
    found: list[Entity] = []
    for one in document.entities:
        begin = found[-1].start if found else 0
        could = [_at(place, one) for place in _occurrences(document.text, document.surface(one))]
        later = (entity for entity in could if entity.start >= begin and entity not in found)
        found.append(next(later, could[0]))
    return found


def resolver(task: TaskSpec) -> Way:
    """What spantune reads of the answer that it would train on."""

    def read(document: Document) -> list[Entity]:
        return list(jsonl.parse(jsonl.render(document, task), document.text, task).entities)

    return read


def ceilings(documents: Sequence[Document]) -> dict[str, float]:
    """F1 in points of every way."""
    codes = sorted({entity.label for document in documents for entity in document.entities})
    task = TaskSpec.model_validate({"labels": [{"code": code} for code in codes], "instruction": "x"})
    ways: dict[str, Way] = {
        "first occurrence": first_occurrence,
        "k-th to k-th": kth_to_kth,
        "cursor": cursor,
        "spantune": resolver(task),
    }
    found = {}
    for name, way in ways.items():
        read = [document.with_entities(way(document)) for document in documents]
        found[name] = 100 * score(documents, read, codes, resamples=0).micro.f1
    return found


def _occurrences(text: str, mention: str) -> Iterator[int]:
    place = text.find(mention)
    while place >= 0:
        yield place
        place = text.find(mention, place + 1)


def _at(place: int, entity: Entity) -> Entity:
    return Entity(place, place + entity.end - entity.start, entity.label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", nargs="+", metavar="CORPUS")
    arguments = parser.parse_args()
    for number, path in enumerate(arguments.corpora):
        documents = formats.read(path).documents
        found = ceilings(documents)
        if not number:
            print("| corpus | documents | entities |", " | ".join(found), "|")
            print("|---" * (3 + len(found)) + "|")
        entities = sum(len(document.entities) for document in documents)
        print(f"| {path} | {len(documents)} | {entities} |", " | ".join(f"{f1:.2f}" for f1 in found.values()), "|")


if __name__ == "__main__":
    main()
