"""Progress, learning rates and the order of examples depend only on steps, clock and seed."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from spantune.core import config
from spantune.training.schedule import CLOCK_FILE, Clock, ExampleOrder, Schedule, read_clock


def train_settings(**changes: Any) -> config.Train:
    return config.Train(**changes)


class Hand(Clock):
    """A clock that the test sets."""

    def __init__(self, seconds: float = 0.0):
        super().__init__()
        self.now = seconds

    @property
    def seconds(self) -> float:
        return self.now


def factors(total: int = 10, **changes: Any) -> list[float]:
    schedule = Schedule(train_settings(**changes), total, Hand())
    return [schedule.factor(step) for step in range(total + 1)]


def test_cosine_and_linear_fall_to_nothing_and_constant_does_not() -> None:
    assert factors(warmup=0) == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(11)])
    assert factors(warmup=0, schedule="linear") == pytest.approx([1 - step / 10 for step in range(11)])
    assert factors(warmup=0, schedule="constant") == [1.0] * 11
    assert factors(warmup=0)[0] == 1.0 and factors(warmup=0)[-1] == pytest.approx(0.0)


def test_warm_up_is_a_share_below_one_and_steps_from_one_on() -> None:
    for warmup in (0.3, 3):
        found = factors(warmup=warmup, schedule="constant")
        assert found[:3] == pytest.approx([1 / 4, 2 / 4, 3 / 4]) and found[3:] == [1.0] * 8
    assert factors(warmup=3)[3:] == pytest.approx(factors(warmup=0)[3:])


def test_the_schedule_follows_whichever_is_further_steps_or_clock() -> None:
    clock = Hand()
    schedule = Schedule(train_settings(warmup=0, schedule="linear", max_minutes=2.0), 100, clock)
    assert schedule.progress(10) == pytest.approx(0.1)
    clock.now = 60.0
    assert schedule.progress(10) == pytest.approx(0.5) and schedule.factor(10) == pytest.approx(0.5)
    assert schedule.progress(80) == pytest.approx(0.8)
    clock.now = 500.0
    assert schedule.progress(10) == 1.0 and schedule.factor(10) == 0.0
    assert Schedule(train_settings(), 100, clock).progress(10) == pytest.approx(0.1)  # no limit of time, no clock


def test_a_run_that_the_clock_ends_is_not_all_warm_up() -> None:
    clock = Hand()
    schedule = Schedule(train_settings(warmup=0.1, max_minutes=1.0), 10**6, clock)
    assert schedule.factor(0) < 1e-4
    for now, factor in ((3.0, 0.5), (6.0, 0.5 * (1 + math.cos(math.pi * 0.1))), (60.0, 0.0)):
        clock.now = now
        assert schedule.factor(5) == pytest.approx(factor, abs=1e-4)


def test_a_clock_goes_on_where_the_checkpoint_left_it(tmp_path: Path) -> None:
    assert read_clock(None) == 0.0 and read_clock(tmp_path) == 0.0
    (tmp_path / CLOCK_FILE).write_text("12.5\n")
    clock = Clock(read_clock(tmp_path))
    assert 12.5 <= clock.seconds < 13.5
    time.sleep(0.01)
    assert clock.seconds > 12.505


def test_what_runs_while_the_clock_is_stopped_takes_no_time() -> None:
    clock = Clock(10.0)
    with clock.stopped():
        time.sleep(0.05)
    assert 10.0 <= clock.seconds < 10.04
    assert clock.expected(0.5) == pytest.approx(20.0, abs=0.1) and clock.expected(0.0) == math.inf


def test_every_epoch_takes_every_example_once_in_an_order_of_its_own() -> None:
    order = ExampleOrder(10, 4, seed=7)
    epochs = [[order.places(3 * epoch + index) for index in range(3)] for epoch in range(2)]
    for steps in epochs:
        assert [len(places) for places in steps] == [4, 4, 2]
        assert sorted(place for places in steps for place in places) == list(range(10))
    assert epochs[0] != epochs[1]
    assert ExampleOrder(10, 4, seed=7).places(4) == epochs[1][1], "a resumed run takes the same examples"
    assert ExampleOrder(10, 4, seed=8).places(0) != epochs[0][0]
    assert [order.epoch_after(step) for step in (1, 3, 4)] == pytest.approx([1 / 3, 1.0, 4 / 3])
