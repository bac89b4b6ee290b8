"""Compiled layers train as plain ones do, keep what the setting says, and do not change extraction."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import dense_kernel, row_kernel
from helpers.fakes import tiny_model
from helpers.packs import examples, gradients, packed
from spantune.core import Keep, config, parse_config
from spantune.extraction.slot_cache import SlotCache
from spantune.models import (
    attach,
    compile_for_extraction,
    compile_layers,
    decoder_layers,
    plain_in_extraction,
    to_fp8,
    windows,
)
from spantune.models.compilation import _contexts, _keeping
from spantune.training import PackTensors, pack_loss
from spantune.training.memory import _stored_bytes

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": 3}  # gate_up is wide, as in Phi-4


@pytest.fixture(scope="module", autouse=True)
def _on_cpu() -> Iterator[None]:
    with dense_kernel.on_cpu():
        yield


def model(base: str, dropout: float = 0.0) -> Any:
    """Return a training model of three layers whose adapters are not zero."""
    made: Any = tiny_model("phi3", vocabulary=280, **SHAPE)
    made = to_fp8(made, CPU, made.lm_head) if base == "fp8" else made
    made, _ = attach(made, config.Lora(rank=4, alpha=8, dropout=dropout))
    torch.manual_seed(3)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    made.enable_input_require_grads()
    return made.train()


def step(made: Any, pack: PackTensors) -> tuple[float, torch.Tensor]:
    """Return the loss, and all gradients in one vector."""
    loss = pack_loss(made, pack, torch.float32)
    loss.backward()
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients(made).values()])


class Counted(TorchDispatchMode):
    """Counts the calls of spantune's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "spantune":
            self.calls[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("keep", "products", "attentions"), [("none", 4, 1), ("some", 1, 0), ("most", 0, 0)])
def test_what_is_not_kept_is_computed_again_and_nothing_else(keep: Keep, products: int, attentions: int) -> None:
    """The expected counts are for each of three layers."""
    made, pack = model("fp32"), packed(examples())
    wanted = step(made, pack)
    for layer in decoder_layers(made):
        layer.forward = _keeping(layer.forward, keep)
    loss = pack_loss(made, pack, torch.float32)
    with Counted() as counted:
        loss.backward()
    found = torch.cat([gradient.flatten() for gradient in gradients(made).values()])
    assert loss.item() == wanted[0] and torch.equal(found, wanted[1])
    assert counted.calls["linear.default"] == 3 * products
    assert counted.calls["product.default"] == 3 * 4  # the gradients of the inputs
    assert counted.calls["pack_attention.default"] == 3 * attentions
    assert counted.calls["pack_attention_backward.default"] == 3


def test_torchs_cache_tells_what_is_kept_apart() -> None:
    hashes = [_contexts(keep).cache_hash for keep in get_args(Keep)]
    assert len(set(hashes)) == 4 and _contexts("some").cache_hash in hashes


def test_extraction_goes_through_the_layers_as_they_are() -> None:
    made = model("fp32")
    assert compile_layers(made, "some") == 3
    counters = torch._dynamo.utils.counters
    before = counters["stats"]["unique_graphs"]
    with torch.no_grad():
        made.eval()(input_ids=torch.arange(20)[None], use_cache=False)
    assert counters["stats"]["unique_graphs"] == before


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="a compiler for the CPU is needed")


@pytest.mark.no_cover
@pytest.mark.slow
@needs_compiler
def test_dropout_is_the_same_when_it_is_computed_again() -> None:
    import torch._inductor.config

    found = []
    for keep in (None, "none"):
        made = model("fp32", dropout=0.3)
        torch._dynamo.reset()
        if keep is not None:
            compile_layers(made, keep)
        torch.manual_seed(5)
        with torch._inductor.config.patch(fallback_random=True):  # use the random numbers of an eager step
            found.append(step(made, packed(examples())))
    (wanted_loss, wanted), (loss, gradient) = found
    assert loss == pytest.approx(wanted_loss, rel=1e-5) and (gradient - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.no_cover
@pytest.mark.slow
@needs_compiler
def test_a_compiled_step_is_the_eager_one_for_packs_of_any_size_and_keeps_what_is_predicted() -> None:
    made = model("fp8")
    packs = [packed(examples()), packed(examples()[:2]), packed(examples()[1:])]
    eager = [step(made, pack) for pack in packs]
    torch._dynamo.reset()
    compile_layers(made, "some")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    cached = Counter(torch._dynamo.utils.counters["aot_autograd"])
    for (loss, gradient), pack in zip(eager, packs, strict=True):
        found = step(made, pack)
        assert found[0] == pytest.approx(loss, rel=2e-3)  # e4m3 rounding enlarges differences in the last bit
        assert (found[1] - gradient).norm() < 0.02 * gradient.norm()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2
    cached = Counter(torch._dynamo.utils.counters["aot_autograd"]) - cached
    assert cached["autograd_cache_bypass"] == 0 < cached["autograd_cache_hit"] + cached["autograd_cache_miss"]
    plain = {"model": {"source": "x", "base": "fp32"}, "task": {"labels": ["a"]}, "data": {"train": "t"}}
    recipe = parse_config({**plain, "lora": {"rank": 4}, "train": {"keep": "some", "compile": "on"}})
    predicted = len(packs[0].ids) * _stored_bytes(tiny_model("phi3", **SHAPE), recipe, CPU)
    assert saved_bytes(made, packs[0]) == predicted


@pytest.mark.no_cover
@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("base", "keep"), [("fp8", "some"), ("fp32", "none")])
def test_layers_with_dropout_draw_once_and_keep_what_is_predicted(base: str, keep: Keep) -> None:
    """Drawing the dropout again in the backward pass would need the saved state of its generator."""
    made, pack = model(base, dropout=0.3), packed(examples())
    torch._dynamo.reset()
    compile_layers(made, keep)
    step(made, pack)
    changes: dict[str, Any] = {"lora": {"rank": 4, "dropout": 0.3}, "train": {"keep": keep, "compile": "on"}}
    model_section = {"model": {"source": "x", "base": base}, "task": {"labels": ["a"]}, "data": {"train": "t"}}
    predicted = len(pack.ids) * _stored_bytes(tiny_model("phi3", **SHAPE), parse_config(model_section | changes), CPU)
    assert saved_bytes(made, pack) == predicted
    made.zero_grad()
    torch.manual_seed(7)
    pack_loss(made, pack, torch.float32)
    drawn = torch.get_rng_state()
    torch.manual_seed(7)
    step(made, pack)
    assert torch.equal(torch.get_rng_state(), drawn)


def saved_bytes(made: Any, pack: PackTensors) -> int:
    """Return the bytes that three layers save for the backward pass of a pack."""
    weights = {p.untyped_storage().data_ptr() for p in [*made.parameters(), *made.buffers()]}
    saved: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage().data_ptr()
        if tensor.is_floating_point() and len(pack.ids) in tensor.shape and storage not in weights:
            saved[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        pack_loss(made, pack, torch.float32)
    sizes = Counter((tensor.shape, tensor.nbytes) for tensor in saved.values())
    return sum(count // 3 * 3 * size for (_, size), count in sizes.items())  # only the layers save three of a size


def test_layers_train_as_they_are_where_the_compiler_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, pack = model("fp32"), packed(examples())
    wanted = step(made, pack)
    made.zero_grad()
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/no/such/compiler",))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    monkeypatch.setattr("torch._functorch.config.enable_autograd_cache", False)
    compile_layers(made, "some")
    found = step(made, pack)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    made.zero_grad()
    torch.testing.assert_close(step(made, pack), wanted, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("spantune")]
    assert len(messages) == 1 and "the layers are not compiled" in messages[0] and "compiler" in messages[0].lower()


@pytest.mark.parametrize("family", ["phi3", "gemma3_text"])
def test_layers_compiled_for_extraction_write_as_plain_ones_and_share_their_code(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_model(family).requires_grad_(False)
    cache = SlotCache(2, 16, 24, CPU)
    wanted = row_kernel.written(made, cache, compiled=False)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compile_for_extraction(made)
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.inference_mode():
        for store in sum(cache.stores, ()):
            store.fill_(9)
    with row_kernel.on_cpu():
        found = row_kernel.written(made, cache, compiled=True)
    torch.testing.assert_close(found, wanted)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    assert 1 <= graphs <= len(set(windows(made.config)))  # two layers, and passes of two widths
    plain_in_extraction(made)
    assert not any(hasattr(layer.forward, "plain") for layer in decoder_layers(made))
