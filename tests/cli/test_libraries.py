"""`spantune.cli.libraries`: which imports are postponed, and that each is made when it is needed."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from spantune.cli.libraries import quiet
quiet()
import spantune.models
left_out = {"torch._dynamo", "torch.distributed.tensor", "scipy.optimize", "sympy"}
assert not left_out & sys.modules.keys(), left_out & sys.modules.keys()
import torch
from transformers.utils import is_torch_distributed_available
assert is_torch_distributed_available() == torch.distributed.is_available()
from transformers.masking_utils import sdpa_mask
mask = sdpa_mask(2, 3, 3, use_vmap=True, allow_is_causal_skip=False)  # asks for TorchDynamo
assert mask.shape == (2, 1, 3, 3)
assert "torch._dynamo" in sys.modules
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).sum() == 4
assert torch._dynamo.config.recompile_limit > 0
"""


def test_an_extracting_command_imports_half_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
