"""Passes through a base that is divided over ranks: a failed pass ends the run (test_ranks.py tests several ranks)."""

from __future__ import annotations

import pytest
import torch

from helpers.fakes import tiny_model
from spantune.core import RunError, StopRequest
from spantune.training.lockstep import in_lockstep
from spantune.training.ranks import ALONE


def test_a_pass_that_fails_is_not_repeated_and_ends_the_run() -> None:
    model = tiny_model("phi3")
    ids, beyond = torch.tensor([[1, 2]]), torch.tensor([[10**6]])
    with in_lockstep(model, ALONE, StopRequest()):
        model(input_ids=ids)
        model(input_ids=ids)
    with pytest.raises(RunError, match="set a lower extract"), in_lockstep(model, ALONE, StopRequest()):
        with pytest.raises(IndexError):  # in the pass, as if memory ran out there
            model(input_ids=beyond)
        with pytest.raises(RunError, match="failed on this rank"):  # the next pass on this rank reports it
            model(input_ids=ids)
    model(input_ids=ids)
