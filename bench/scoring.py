"""Measure the seconds of scoring and comparing on random documents with nested entities.

    python bench/scoring.py [--documents 5000] [--resamples 10000]

Half of the entities are inside others, there are nine labels, and 30 % of the predictions are wrong. Prints a Markdown
table; each value is the best of three runs.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import numpy as np

from spantune.core import Document, Entity
from spantune.metrics import System, bootstrap, compare, counts, pair, score

LABELS = ("bod", "dep", "dis", "dru", "equ", "ite", "mic", "pro", "sym")


def corpus(size: int) -> tuple[list[Document], list[Document], list[Document]]:
    """Return gold documents and two predictions of them."""
    rng = random.Random(0)
    gold, first, second = [], [], []
    for number in range(size):
        text = "x" * rng.randint(20, 120)
        entities = []
        for _ in range(rng.randint(0, 5)):
            start = rng.randrange(len(text) - 10)
            entities += [
                Entity(start, start + size, rng.choice(LABELS)) for size in (rng.randint(2, 4), rng.randint(4, 9))
            ]
        gold.append(Document(str(number), text, tuple(entities)))
        for side in (first, second):
            moved = [e if rng.random() < 0.7 else Entity(e.start, e.end + 1, rng.choice(LABELS)) for e in entities]
            side.append(gold[-1].with_entities(moved))
    return gold, first, second


def seconds(job: Callable[[], object]) -> float:
    """Return the seconds of the fastest of three calls."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        job()
        taken.append(time.perf_counter() - began)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--resamples", type=int, default=10_000)
    arguments = parser.parse_args()
    gold, first, second = corpus(arguments.documents)
    resamples = arguments.resamples
    strict = counts.strict(*counts.sides(pair(gold, first), LABELS), len(gold), len(LABELS)).reshape(len(gold), -1)
    systems = [System("first", gold, first), System("second", gold, second)]
    rows = {
        "every figure and slice, no interval": lambda: score(gold, first, LABELS, train=gold[:500], resamples=0),
        "the same with intervals": lambda: score(gold, first, LABELS, train=gold[:500], resamples=resamples),
        "intervals of the strict figures": lambda: np.percentile(
            bootstrap.resample(strict, resamples, 0), (2.5, 97.5), 0
        ),
        "compare two, with their intervals": lambda: compare(systems, LABELS, resamples=resamples),
    }
    print(f"{len(gold)} documents, {sum(len(one.entities) for one in gold)} entities, {resamples} resamples\n")
    print("| | seconds |\n|---|---|")
    for name, job in rows.items():
        print(f"| {name} | {seconds(job):.2f} |")


if __name__ == "__main__":
    main()
