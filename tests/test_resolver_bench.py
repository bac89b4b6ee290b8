"""bench/resolver.py: the ways to find written mentions in a text, on an example and on CMeEE."""

from __future__ import annotations

from types import ModuleType

import pytest

from helpers import real
from spantune.core import Document, Entity
from spantune.data import formats


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return real.bench("resolver")


def test_ways_differ_where_a_mention_stands_unannotated(bench: ModuleType) -> None:
    # 痛 at 0 is not annotated, 头痛 at 2 contains 痛 at 3, and 痛 at 5 is the last one
    text = "痛，头痛，痛"
    document = Document("1", text, (Entity(2, 4, "sym"), Entity(3, 4, "sym"), Entity(5, 6, "sym")))
    assert text[5] == "痛" and text[3] == "痛"

    def places(way: str) -> list[int]:
        return [entity.start for entity in getattr(bench, way)(document)]

    assert places("first_occurrence") == [2, 0, 0]
    assert places("kth_to_kth") == [2, 0, 3]
    assert places("cursor") == [2, 3, 5]
    assert bench.ceilings([document])["spantune"] == 100
    assert bench.ceilings([document])["k-th to k-th"] == pytest.approx(200 * 2 / 6)


@pytest.mark.parametrize(
    ("file", "first", "kth", "cursor"),
    [("cmeee_v1/dev.jsonl", 92.7, 96.1, 98.2), ("cmeee_v2_few_shot/cmeee.jsonl", 93.1, 96.1, 98.4)],
)
def test_ceilings_on_cmeee_are_the_known_ones_and_ours_is_higher(
    bench: ModuleType, file: str, first: float, kth: float, cursor: float
) -> None:
    if not (real.SHARED / file).is_file():
        pytest.skip(f"{real.SHARED / file} is not here")
    found = bench.ceilings(formats.read(real.SHARED / file).documents)
    wanted = {"first occurrence": first, "k-th to k-th": kth, "cursor": cursor}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=0.3)
    assert found["spantune"] > found["cursor"] + 0.3
