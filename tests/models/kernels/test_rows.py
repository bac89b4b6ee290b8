"""Rows that are computed together attend as each alone, by spans and by the kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fakes import tiny_model
from helpers.interpreted import check_interpreted
from spantune.extraction.model_runner import KERNEL_ERROR
from spantune.models import RowView, Run, Runs, Span, kernel_error, windows

SPANS = [Span(1, 0, 1, 5), Span(2, 1, 9, 200), Span(4, 10, 3, 0), Span(3, 13, 20, 63), Span(5, 33, 1, 0)]

MANY = [*SPANS, Span(6, 34, 40, 10)]


def drawn(
    spans: list[Span], heads: tuple[int, int], size: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[torch.Tensor, ...]:
    """Draw queries, keys, values, and a slot map in which the slots of every row are scattered."""
    torch.manual_seed(0)
    tokens, rows = sum(span.queries for span in spans), max(span.row for span in spans) + 2
    longest = max(span.position + span.queries for span in spans) + 3
    query = torch.randn(1, heads[0], tokens, size, dtype=dtype, device=device)
    key, value = (torch.randn(3 * longest, heads[1], size, dtype=dtype, device=device) for _ in range(2))
    slots = torch.stack([torch.randperm(3 * longest)[:longest] for _ in range(rows)]).to(device, torch.int32)
    return query, key, value, slots


def plainly(span: Span, window: int | None, query: Any, key: Any, value: Any, slots: Any) -> torch.Tensor:
    """Compute the attention of one row, head by head and query by query."""
    group = query.shape[1] // key.shape[1]
    found = torch.zeros(span.queries, query.shape[1], query.shape[3])
    for number in range(span.queries):
        place = span.position + number
        seen = slots[span.row, max(0, place + 1 - window) if window else 0 : place + 1].long()
        for head in range(query.shape[1]):
            weights = (query[0, head, span.first + number] @ key[seen, head // group].T * 0.3).softmax(-1)
            found[number, head] = weights @ value[seen, head // group]
    return found


@pytest.mark.parametrize(("heads", "size"), [((4, 4), 8), ((6, 2), 24), ((4, 1), 16)])
@pytest.mark.parametrize("window", [None, 7, 64])
def test_each_row_sees_its_own_up_to_itself(heads: tuple[int, int], size: int, window: int | None) -> None:
    inputs = drawn(SPANS, heads, size)
    found = RowView(inputs[3], [None, window], SPANS).attend(1, *inputs[:3], 0.3)
    wanted = torch.cat([plainly(span, window, *inputs) for span in SPANS])
    torch.testing.assert_close(found[0], wanted)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 20)), min_size=1, max_size=5), st.sampled_from([None, 1, 3])
)
@settings(max_examples=50, deadline=None)
def test_any_layout(rows: list[tuple[int, int]], window: int | None) -> None:
    spans, first = [], 0
    for row, (queries, position) in enumerate(rows, start=1):
        spans.append(Span(row, first, queries, position))
        first += queries
    inputs = drawn(spans, (2, 1), 4)
    found = RowView(inputs[3], [window], spans).attend(0, *inputs[:3], 0.3)
    torch.testing.assert_close(found[0], torch.cat([plainly(span, window, *inputs) for span in spans]))


SHARED = 20  # tokens of the instruction
BEHIND = [Span(1, 0, 1, 85), Span(2, 1, 9, 200), Span(4, 10, 3, 20), Span(3, 13, 20, 63), Span(6, 33, 40, 25)]


def paged(spans: list[Span], page: int, slots: torch.Tensor) -> Runs:
    """Put the keys of each row into pages of consecutive slots, and write the slot map."""
    free = torch.randperm(3 * slots.shape[1] // page).mul(page).tolist()

    def taken(row: int, begin: int, end: int) -> list[Run]:
        runs = [Run(place, min(place + page, end), free.pop()) for place in range(begin, end, page)]
        for run in runs:
            slots[row, run.position : run.end] = torch.arange(run.slot, run.slot + run.end - run.position)
        return runs

    shared = taken(0, 0, SHARED)
    slots[:, :SHARED] = slots[0, :SHARED].clone()
    return Runs(shared, [taken(span.row, SHARED, span.position + span.queries) for span in spans])


@pytest.mark.parametrize(("heads", "size"), [((4, 4), 8), ((6, 2), 24), ((4, 1), 16)])
@pytest.mark.parametrize("window", [None, 7, 64])
def test_rows_are_computed_jointly_where_their_keys_lie_in_runs(
    heads: tuple[int, int], size: int, window: int | None
) -> None:
    """The last span has too many queries and is computed alone; slots that no row has taken may contain anything."""
    query, key, value, slots = drawn(BEHIND, heads, size)
    runs = paged(BEHIND, 16, slots)
    written = torch.zeros(len(key), dtype=torch.bool)
    for run in [*runs.shared, *(run for own in runs.own for run in own)]:
        written[run.slot : run.slot + run.end - run.position] = True
    key[~written], value[~written] = float("nan"), float("nan")
    for spans in (BEHIND, BEHIND[:4]):
        view = RowView(slots, [None, window], spans, runs=Runs(runs.shared, runs.own[: len(spans)]))
        count = spans[-1].first + spans[-1].queries
        for _ in range(2):  # the layers of a pass share the masks
            found = view.attend(1, query[:, :, :count], key, value, 0.3)
            wanted = torch.cat([plainly(span, window, query, key, value, slots) for span in spans])
            torch.testing.assert_close(found[0], wanted)


def check_kernel(device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Compare the kernel with attention by spans; the last block belongs to no row."""
    from spantune.models import queries_per_block

    cases = [((8, 2), 64, None, SPANS), ((4, 4), 16, None, SPANS[:3]), ((14, 2), 32, 7, SPANS), ((4, 1), 24, 100, MANY)]
    for heads, size, window, spans in cases:  # with few tokens, the keys of a row are divided
        inputs = drawn(spans, heads, size, dtype, device)
        per = queries_per_block(heads[0] // heads[1])
        blocks = [
            (span.row, span.first + done, min(per, span.queries - done), span.position + done)
            for span in spans
            for done in range(0, span.queries, per)
        ]
        table = torch.tensor([*blocks, (0, 0, 0, 0)], device=device)
        found = RowView(inputs[3], [window], (), table).attend(0, *inputs[:3], 0.3)
        wanted = RowView(inputs[3], [window], spans).attend(0, *inputs[:3], 0.3)
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


def test_the_kernel_interpreted() -> None:
    """Run the kernel on a CPU with Triton's interpreter, if Triton is installed."""
    check_interpreted(__file__, "test.check_kernel('cpu', torch.float32, 1e-4)")


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_the_kernel_compiled(dtype: torch.dtype, tolerance: float) -> None:
    check_kernel("cuda", dtype, tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_is_found_to_agree_before_it_is_used(dtype: torch.dtype) -> None:
    assert kernel_error(40, 10, 128, dtype, torch.device("cuda")) < KERNEL_ERROR


def test_windows_are_those_of_the_layers() -> None:
    assert windows(tiny_model("phi3").config) == [None, None]
    assert windows(tiny_model("mistral").config) == [8, 8]
    assert windows(tiny_model("gemma3_text").config) == [8, None]
    assert windows(tiny_model("qwen2", sliding_window=8, use_sliding_window=False).config) == [None, None]
