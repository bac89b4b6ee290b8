"""Estimate the cost of training and extraction on many machines, with a simulator whose constants are measured.

    python bench/scale.py                       the measured points beside what the simulator says, and two plans
    python bench/scale.py --lengths lengths.json --gpus 8 64 --examples 512 --pack-tokens 8192

A step is simulated pack by pack. Its examples, with lengths drawn from `--lengths` or from CMeEE's means, are divided
over the ranks and packed by the code that training uses. A pack takes a constant time plus a time for each token, but
at least the time that the host needs to launch it. Gradients are summed once per step by a ring all-reduce. With FSDP,
the base is gathered twice for each pack. Everything is for Phi-4's shape; docs/scale.md gives the conclusions.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spantune.encoding import divide, fill
from spantune.training import DEFAULT_PACK_TOKENS
from spantune.training.pack_size import Load, largest_packs

PREFIX, AROUND = 178, 6
"""Tokens of the instruction, and tokens around the text and the answer."""
TRAINED_GB, BASE_GB = 0.89, 28.0
"""Gigabytes of the gradients of rank 64 on all linear layers in fp32, and of the bf16 base."""
LEAST = DEFAULT_PACK_TOKENS["cuda"]
STEPS = 50
SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Speed:
    """Milliseconds of a pack: a constant, the time of each token, and the least time that the host needs."""

    pack_ms: float
    token_ms: float
    host_ms: float = 167.0


@dataclass(frozen=True)
class Network:
    """Gigabytes per second that a rank sends while all ranks send."""

    within_host: float = 150.0
    between_hosts: float = 25.0
    gpus_a_host: int = 8

    def of(self, ranks: int) -> float:
        """Return the speed of the slowest link of a ring over `ranks` ranks."""
        return self.within_host if ranks <= self.gpus_a_host else self.between_hosts


@dataclass(frozen=True)
class Point:
    """A measured step in milliseconds and its setting; `fitted` if constants of the simulator were taken from it."""

    name: str
    examples: int
    ranks: int
    measured_ms: float
    base: str = "fp8"
    fitted: bool = False
    pack_tokens: int = 4096


FP8, BF16 = Speed(68.8, 0.0856), Speed(68.8, 0.1347)
SPEEDS = {"fp8": FP8, "bf16": BF16}
POINTS = (
    Point("H100, 16 examples", 16, 1, 307.7, fitted=True),
    Point("H100, 256 examples", 256, 1, 4830, fitted=True),
    Point("H100, 16 examples", 16, 1, 445, "bf16", fitted=True),
    Point("H200, 64 examples", 64, 1, 1185),
    Point("two H200, 64 examples", 64, 2, 678),
    Point("two H200, 64 examples, FSDP2", 64, 2, 1167, "bf16"),
    Point("H200, 64 examples, packs of 8,192", 64, 1, 1042.3, pack_tokens=8192),
    Point("two H200, 64 examples, packs of 8,192", 64, 2, 520.8, pack_tokens=8192),
)
EXTRACTION = {"writing, bf16": 84.7, "reading, bf16": 316.0, "reading, the embedded model": 2000.0}
"""Documents per second of one H200; a document has about 70 tokens."""
CPU_MS = {"writing, bf16": 3.3, "reading, bf16": 0.5, "reading, the embedded model": 0.5}
"""Milliseconds of one CPU core per document, for tokenising, reading the answer and writing the line."""
LINE_BYTES = 450


def main() -> None:
    """Print the measured points, then training and extraction for each number of GPUs."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--lengths", type=Path, help="a JSON list of [text, answer] token counts")
    options.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 8, 64])
    options.add_argument("--examples", type=int, nargs="+", default=[64, 512, 2048], help="of a step, over all GPUs")
    options.add_argument(
        "--pack-tokens", type=int, nargs="+", help="if not given, as training chooses with room for it"
    )
    options.add_argument("--sentences", type=float, default=10e6, help="to train on, once")
    options.add_argument("--documents", type=float, default=1e9, help="to extract from")
    chosen = options.parse_args()
    lengths = _lengths(chosen.lengths)
    print("| step | measured ms | simulated | off by |\n|---|---|---|---|")
    for point in POINTS:
        simulated = step_ms(lengths, point.examples, point.ranks, point.pack_tokens, point.base)
        note = ", fitted" if point.fitted else ""
        off = f"{simulated / point.measured_ms - 1:+.1%}"
        print(f"| {point.name}, {point.base}{note} | {point.measured_ms:,.0f} | {simulated:,.0f} | {off} |")
    print(f"\n{chosen.sentences:,.0f} sentences, once, FP8 base:\n")
    print("| GPUs | examples a step | pack tokens | ms a step | examples/s | of linear | hours |")
    print("|---" * 7 + "|")
    for gpus in chosen.gpus:
        for examples in chosen.examples:
            if examples >= gpus:
                usual = largest_packs(Load(lengths, PREFIX, examples, gpus), LEAST, lambda size: True)
                for tokens in chosen.pack_tokens or [usual]:
                    _training_row(lengths, gpus, examples, tokens, chosen.sentences)
    print(f"\n{chosen.documents:,.0f} documents:\n")
    print("| way | GPUs | days | CPU cores a GPU | TB written |\n|---|---|---|---|---|")
    for way, rate in EXTRACTION.items():
        for gpus in chosen.gpus:
            days = chosen.documents / rate / gpus / SECONDS_A_DAY
            cores = rate * CPU_MS[way] / 1000
            print(f"| {way} | {gpus} | {days:,.1f} | {cores:.2f} | {chosen.documents * LINE_BYTES / 1e12:.2f} |")


def step_ms(lengths: Sequence[int], examples: int, ranks: int, pack_tokens: int, base: str = "fp8") -> float:
    """Return the simulated milliseconds of a step: the mean over several steps of the slowest rank's time."""
    return statistics.mean(
        max(_rank_ms(part, pack_tokens, base, ranks) for part in divided) + _reduce_ms(ranks)
        for divided in _steps(lengths, examples, ranks)
    )


def _rank_ms(lengths: Sequence[int], pack_tokens: int, base: str, ranks: int) -> float:
    speed = SPEEDS[base]
    gathered = 0.0
    if base == "bf16" and ranks > 1:  # FSDP2 gathers the other ranks' layers in the forward and in the backward pass
        gathered = 2 * 1000 * BASE_GB * (ranks - 1) / ranks / Network().of(ranks)
    packs = fill(lengths, pack_tokens - PREFIX)
    tokens = [PREFIX + sum(lengths[index] for index in pack) for pack in packs]
    return sum(max(speed.host_ms, speed.pack_ms + speed.token_ms * count) + gathered for count in tokens)


def _reduce_ms(ranks: int) -> float:
    return 1000 * 2 * TRAINED_GB * (ranks - 1) / ranks / Network().of(ranks)


def _steps(lengths: Sequence[int], examples: int, ranks: int) -> Iterator[list[list[int]]]:
    """Yield the lengths of each rank's examples, for several steps."""
    draw = random.Random(0)
    for _ in range(max(3, STEPS * 64 // max(64, examples))):
        chosen = [draw.choice(lengths) for _ in range(examples)]
        yield [[chosen[index] for index in part] for part in divide(chosen, ranks)]


def _lengths(path: Path | None) -> list[int]:
    if path is not None:
        return [text + answer + AROUND for text, answer in json.loads(path.read_text(encoding="utf-8"))]
    return drawn_lengths()


def drawn_lengths() -> list[int]:
    """Return random lengths of examples in tokens, without the instruction; their means are those of CMeEE."""
    draw = random.Random(0)
    return [
        round(draw.lognormvariate(4.1, 0.55)) + round(draw.lognormvariate(4.25, 0.65)) + AROUND for _ in range(2000)
    ]


def _training_row(lengths: Sequence[int], gpus: int, examples: int, tokens: int, sentences: float) -> None:
    milliseconds = step_ms(lengths, examples, gpus, tokens)
    rate = 1000 * examples / milliseconds
    best = 1000 * 64 / step_ms(lengths, 64, 1, 8192)
    row = (gpus, f"{examples:,}", f"{tokens:,}", f"{milliseconds:,.0f}", f"{rate:,.0f}", f"{rate / best / gpus:.0%}")
    print(f"| {' | '.join(map(str, row))} | {sentences / rate / 3600:,.1f} |")


if __name__ == "__main__":
    main()
