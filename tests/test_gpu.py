"""What only a GPU shows: the flash kernel, FP8 products, compiled steps, and memory that really runs out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.fakes import tiny_model
from spantune.core import Keep, config, parse_config
from spantune.encoding import Example, layout, shared_prefix
from spantune.models import NAME, attach, compile_layers, has_fp8, to_fp8
from spantune.models.kernels.lora_linear import Fp8Linear
from spantune.training import Collator, PackTensors, StepGuard, StepRunner, pack_loss, tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # compilers and kernels on their choices
]
GPU = torch.device("cuda")
SHAPE = {"hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 3}  # four heads of 64


@pytest.fixture
def fp8() -> None:
    """Skips where the GPU has no FP8 products."""
    if not has_fp8(GPU):
        pytest.skip("this GPU is older than Hopper")


def far(found: Tensor, wanted: Tensor) -> float:
    """‖found - wanted‖ / ‖wanted‖."""
    return (torch.linalg.norm(found.float() - wanted.float()) / torch.linalg.norm(wanted.float())).item()


def drawn(count: int, prefix: int = 40, longest: int = 90, seed: int = 0, ids: int = 280) -> list[Example]:
    """Examples with one prefix and random ids."""
    draw = random.Random(seed)
    shared = tuple(draw.randrange(3, ids) for _ in range(prefix))
    found = []
    for number in range(count):
        own = tuple(draw.randrange(3, ids) for _ in range(draw.randrange(20, longest)))
        found.append(Example(str(number), shared + own, prefix + len(own) // 2))
    return found


def packed(chosen: list[Example]) -> PackTensors:
    return PackTensors(**tensors(layout(chosen[0].ids[: shared_prefix(chosen)], chosen))).to(GPU)


def model(base: str = "bf16", family: str = "phi3", **changes: Any) -> Any:
    """A training model on the GPU whose weights are as narrow as a real one's and whose adapters are away from zero."""
    made: Any = tiny_model(family, vocabulary=280, **{**SHAPE, **changes})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 0.2 if parameter.dim() > 1 else 1
    made = made.to(torch.float32 if base == "fp32" else torch.bfloat16)
    made = to_fp8(made, GPU, made.lm_head) if base == "fp8" else made.to(GPU)
    made, _ = attach(made, config.Lora(rank=8, alpha=16))
    torch.manual_seed(3)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape).to(parameter) * 0.05
    return made.train()


def step(made: Any, pack: PackTensors) -> tuple[float, Tensor]:
    """Loss a token, and all gradients of the adapters in one row."""
    made.zero_grad()
    rough = made.get_input_embeddings().weight.dtype == torch.bfloat16
    with torch.autocast("cuda", torch.bfloat16, enabled=rough):
        loss = pack_loss(made, pack, torch.bfloat16 if rough else torch.float32) / len(pack.index)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])


HEADS = {"phi3": {}, "llama": {}, "qwen3": {"head_dim": 64}, "mistral": {"sliding_window": 16}}
HEADS |= {"gemma3_text": {"head_dim": 64, "sliding_window": 16, "num_hidden_layers": 2}}


@pytest.mark.parametrize("family", HEADS)
def test_the_flash_kernel_is_as_near_to_fp32_as_the_dense_mask(family: str) -> None:
    pack = packed(drawn(7))
    exact_loss, exact = step(model("fp32", family, **HEADS[family]), pack)
    made = model("bf16", family, **HEADS[family])
    assert pack.view(made.config, torch.bfloat16).keys() == {"attention_mask", "spans"}
    loss, found = step(made, pack)
    dense_loss, dense = step(made, replace(pack, spans=None))
    assert loss == pytest.approx(exact_loss, rel=5e-3) and loss == pytest.approx(dense_loss, rel=5e-3)
    assert far(found, exact) < 1.3 * far(dense, exact) < 0.1


def test_an_example_is_the_same_in_any_pack() -> None:
    chosen = drawn(6)
    made = model()
    _, whole = step(made, packed(chosen))
    counts = [len(example.ids) - example.answer_start for example in chosen]
    prefix = chosen[0].ids[: shared_prefix(chosen)]
    parts = torch.zeros_like(whole)
    for group in (chosen[:1], chosen[1:4], chosen[4:]):
        pack = PackTensors(**tensors(layout(prefix, group))).to(GPU)
        parts += step(made, pack)[1] * len(pack.index) / sum(counts)
    assert far(parts, whole) < 0.02


@pytest.mark.parametrize("rows", [1, 37, 300])
def test_fp8_products_on_the_gpu_are_near_bf16_and_equal_those_of_the_cpu(fp8: None, rows: int) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(512, 1024).to(torch.bfloat16)
    given = torch.randn(rows, 512).to(torch.bfloat16)
    dy = torch.randn(rows, 1024).to(torch.bfloat16)
    found = []
    for layer in (Fp8Linear(linear, GPU), Fp8Linear(linear, torch.device("cpu")), linear):
        left = given.to(layer.weight.device).detach().requires_grad_()
        output = layer(left)
        (dx,) = torch.autograd.grad(output, left, dy.to(output.device))
        found.append((output.cpu(), dx.cpu()))
    for ours, on_cpu, exact in zip(*found, strict=True):
        assert far(ours, exact) < 0.04 and far(ours, on_cpu) < 0.005


def test_a_model_becomes_fp8_without_a_second_copy_on_the_gpu(fp8: None) -> None:
    made = tiny_model("phi3", vocabulary=280, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8)
    made = made.to(torch.bfloat16)
    largest = max(p.numel() for name, p in made.named_parameters() if name.endswith("_proj.weight"))
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    to_fp8(made, GPU, made.lm_head)
    stored = torch.cuda.memory_allocated() - before
    linear = sum(p.numel() for p in made.parameters() if p.dtype == torch.uint8)
    assert stored < 1.1 * linear + 2 * sum(p.nbytes for p in made.parameters() if p.dtype != torch.uint8)
    assert torch.cuda.max_memory_allocated() - before - stored < 16 * largest  # of one weight: bf16, fp32 twice, e4m3


@pytest.mark.slow
@pytest.mark.parametrize(("base", "keep"), [("fp8", "none"), ("fp8", "some"), ("fp8", "most"), ("bf16", "some")])
def test_a_compiled_step_is_the_eager_one(fp8: None, base: str, keep: Keep) -> None:
    packs = [packed(drawn(count, seed=count)) for count in (3, 9, 17)]
    exact = [step(model("fp32"), pack) for pack in packs]
    made = model(base)
    eager = [step(made, pack) for pack in packs]
    torch._dynamo.reset()
    compile_layers(made, keep)
    made.enable_input_require_grads()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for (loss, gradient), (_, wanted), pack in zip(eager, exact, packs, strict=True):
        found = step(made, pack)
        assert found[0] == pytest.approx(loss, rel=5e-3)
        if base == "fp8":  # e4m3 rounds what differs in the last bit: the two need only be as near to the truth
            assert far(found[1], wanted) < 1.2 * far(gradient, wanted) < 0.3
        else:
            assert far(found[1], gradient) < 0.05
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2


def test_a_step_that_really_runs_out_of_memory_is_split_and_loses_nothing() -> None:
    """The limit lies between what the step reserves in one pack and in small ones."""
    chosen = drawn(120, longest=60)
    made = model(num_hidden_layers=8)

    def attempt(budget: int) -> tuple[float, int, int]:
        settings = config.Train(learning_rate=1e-4)
        collator = Collator(settings, chosen[0].ids[: shared_prefix(chosen)], budget, 0)
        runner = StepRunner(made, collator, settings, StepGuard("stop"))
        made.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        loss = runner.backward(collator(chosen), 1).item()
        return loss, torch.cuda.max_memory_reserved(), runner.memory_splits

    wanted, large, splits = attempt(1 << 20)
    assert splits == 0
    _, small, _ = attempt(600)
    assert small < 0.6 * large
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((small + large) / 2 / total)
    try:
        loss, _, splits = attempt(1 << 20)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert splits >= 1 and loss == pytest.approx(wanted, rel=1e-3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize("base", ["nf4", "int8"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # bitsandbytes casts
def test_bitsandbytes_bases_train_on_the_gpu(tiny_folder: Path, base: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes, of the extra of that name, is not installed")
    from spantune.models import load

    losses = {}
    for name in (base, "bf16"):
        made = load(config.Model(source=str(tiny_folder), base=name)).model
        assert made.config._attn_implementation == NAME
        adapted, _ = attach(made, config.Lora(rank=4, alpha=8))
        losses[name], gradient = step(adapted.train(), packed(drawn(4, ids=256)))
        assert gradient.isfinite().all() and gradient.norm() > 0
    assert losses[base] == pytest.approx(losses["bf16"], rel=0.2)


@pytest.mark.slow
def test_a_whole_job_over_fp8_with_compiled_layers(
    fp8: None, tree: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    pytest.importorskip("llguidance", reason="llguidance, which extraction needs, is not installed")
    from spantune.runs import read_metrics
    from spantune.training import train

    settings = {"max_steps": 8, "eval_steps": 8, "keep": "most"}
    recipe = parse_config(tree(tmp_path, model={"base": "fp8"}, train=settings, track={"swanlab": "off"}))
    records = read_metrics(train(recipe).folder)
    losses = [record["loss"] for record in records if record["split"] == "train"]
    assert len(losses) == 8 and losses[-1] < losses[0]
    (plan,) = [record for record in records if record["split"] == "plan"]
    assert plan["peak_gib"] > 0 and plan["predicted_gib"] > 0
