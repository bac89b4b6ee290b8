"""The steps of the training benches: examples with the lengths of a corpus, and the step of `spantune train`."""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import torch

PREFIX, MIDDLE = 178, 5
CHARACTERS_A_TOKEN, ENTITIES, TYPES = 0.75, 4, 9
RATE = 1e-4
GIB = 2**30


class Steps:
    """The step of `spantune train`, with clipping and the NaN guard.

    The next batch is collated while the GPU computes.

    Args:
        model: the model, ready to be trained, on its device.
        work: the examples of one step after another.
        budget: most tokens of a pack.
        prefix: token ids that every example begins with; if not given, those that the examples of the first step share.
        **options: `head_rate` and `ranks` of the runner, `spans` of the collator, and `optimizer`.
    """

    def __init__(self, model: Any, work: Iterator[list[Any]], budget: int, prefix: Any = None, **options: Any):
        from spantune.core import config
        from spantune.encoding import shared_prefix
        from spantune.training import Collator, StepGuard, StepRunner

        few = list(itertools.islice(work, 8))
        first = few[0]
        self._work = itertools.chain(few, work)
        settings = config.Train(optimizer=options.pop("optimizer", "adamw"), learning_rate=RATE)
        prefix = first[0].ids[: shared_prefix(first)] if prefix is None else prefix
        self._collator = Collator(settings, prefix, budget, 0, options.pop("spans", None))
        self.runner = StepRunner(model.train(), self._collator, settings, StepGuard("stop"), **options)
        self.runner.align()
        self._numbers = itertools.count(1)
        own = sum(len(example.ids) - len(prefix) for examples in few for example in examples) / len(few)
        self.usual_tokens = len(prefix) + own
        """Mean tokens of a step, with the prefix once."""
        self._prepare()

    def __call__(self) -> int:
        """Take a step; return the tokens that this process computed."""
        batch = self._batch
        self.runner.run(batch, next(self._numbers), 1.0, self._prepare)
        return int(batch.tokens)

    def _prepare(self) -> None:
        self._batch = self.runner.ready(self._collator(next(self._work)))


class Memory:
    """The peak of a model's memory in training on a GPU, in bytes.

    The peak includes what the pools of CUDA graphs hold between two passes.
    """

    def __init__(self, model: Any):
        from spantune.models import causal_lm

        self._forward: Any = causal_lm(model).base_model.forward
        self._captured, self.peak = 0, 0

    def begin(self) -> None:
        """Begin a step: reset the peak of the allocator."""
        torch.cuda.reset_peak_memory_stats()

    def end(self) -> bool:
        """End a step; return whether it has captured a graph.

        In a step that captures a graph, the graph's pool is already part of the allocated memory.
        """
        held, captured = 0, getattr(self._forward, "captures", 0)
        has_captured = captured > self._captured
        if not has_captured:
            pools = [part for part in torch.cuda.memory_snapshot() if tuple(part["segment_pool_id"]) != (0, 0)]
            held = sum(part["total_size"] - part["allocated_size"] for part in pools)
        self._captured = captured
        self.peak = max(self.peak, torch.cuda.max_memory_allocated() + held)
        return has_captured


def steps_of(chosen: argparse.Namespace, share: float = 1.0) -> Iterator[list[Any]]:
    """Yield the examples of one step after another, with random ids; answers have `share` times their usual length."""
    from spantune.encoding import Example

    if chosen.lengths:
        lengths = json.loads(chosen.lengths.read_text())
    else:
        draw = random.Random(0)
        lengths = [[round(draw.lognormvariate(4.1, 0.55)), round(draw.lognormvariate(4.25, 0.65))] for _ in range(2000)]
    draw = random.Random(7)
    prefix = [draw.randrange(100000) for _ in range(PREFIX)]
    number = 0
    while True:
        step = []
        for _ in range(chosen.examples):
            text, answer = lengths[number % len(lengths)]
            answer = round(share * answer)
            ids = prefix + [draw.randrange(100000) for _ in range(text + MIDDLE + answer + 1)]
            step.append(Example(str(number), tuple(ids), PREFIX + text + MIDDLE))
            number += 1
        yield step


def read_steps_of(chosen: argparse.Namespace, prefix: tuple[int, ...]) -> Iterator[list[Any]]:
    """Yield the texts of `steps_of` as examples for reading spans."""
    from spantune.encoding import Characters, SpanExample

    draw = random.Random(7)
    for step in steps_of(chosen):
        examples = []
        for written in step:
            text = written.ids[PREFIX : written.answer_start - MIDDLE]
            size = max(1, round(CHARACTERS_A_TOKEN * len(text)))
            token = tuple(len(prefix) + place * len(text) // size for place in range(size))
            firsts = [draw.randrange(size) for _ in range(ENTITIES)]
            gold = tuple((first, min(size - 1, first + draw.randrange(6)), draw.randrange(TYPES)) for first in firsts)
            characters = Characters(token, (0,) * size, (0,) * size, tuple(draw.randrange(100000) for _ in range(size)))
            examples.append(SpanExample(written.id, (*prefix, *text), len(prefix), characters, gold))
        yield examples
