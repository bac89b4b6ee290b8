"""Compare ways to find written mentions in a text: how many gold entities survive being written and read back?

    python bench/resolver.py CORPUS [CORPUS …]

Each corpus is written in the `jsonl` answer format, which has no offsets, and read back. An entity that is lost here is
lost for every model that writes such answers, so that the F1 is an upper bound. The ways are:
- `first occurrence`: each mention is at its first occurrence;
- `k-th to k-th`: the k-th time that a mention is written, it is at its k-th occurrence;
- `cursor`: each mention is at its next occurrence from the start of the previous entity;
- `spantune`: our way, which uses that answers are sorted by (start, end, label).

The first three need only the mentions in their written order. Prints a Markdown table of F1 in points (0 to 100).
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
    """Place every mention at its first occurrence."""
    return [_at(document.text.find(document.surface(one)), one) for one in document.entities]


def kth_to_kth(document: Document) -> list[Entity]:
    """Place the k-th writing of a mention at its k-th occurrence; drop the mention if there is none."""
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
    """Place every mention at its next free occurrence from the start of the previous entity, else at its first one."""
    found: list[Entity] = []
    for one in document.entities:
        begin = found[-1].start if found else 0
        could = [_at(place, one) for place in _occurrences(document.text, document.surface(one))]
        later = (entity for entity in could if entity.start >= begin and entity not in found)
        found.append(next(later, could[0]))
    return found


def resolver(task: TaskSpec) -> Way:
    """Return the way of spantune: read the answer that it would train on."""

    def read(document: Document) -> list[Entity]:
        return list(jsonl.parse(jsonl.render(document, task), document.text, task).entities)

    return read


def ceilings(documents: Sequence[Document]) -> dict[str, float]:
    """Return F1 in points (0 to 100) by the name of each way."""
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
