"""Tests that need a GPU: the flash kernel, FP8 products, compiled steps, CUDA graphs and running out of memory."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.dense_kernel import by_mask
from helpers.extractors import DOCUMENTS, encoder, lively_model
from helpers.fakes import tiny_model
from helpers.reading import (
    by_example,
    drawn_texts,
    gradients_far,
    learnt,
    logits_of,
    span_encoder,
    span_pack,
    span_step,
    spans_settings,
    with_head,
)
from spantune.core import Document, Keep, config, parse_config
from spantune.encoding import PREFIX, Example, layout, shared_prefix
from spantune.extraction import Extractor
from spantune.models import (
    NAME,
    Places,
    SpanPack,
    attach,
    causal_lm,
    compile_for_extraction,
    compile_layers,
    graph_packs,
    has_fp8,
    release_graphs,
    require_head,
    spans,
    to_fp8,
)
from spantune.models.attention import attention_mask
from spantune.models.kernels.lora_linear import Fp8Linear
from spantune.models.kernels.packs import Spans, pack_attention
from spantune.training import Collator, PackTensors, StepGuard, StepRunner, pack_loss, tensors
from spantune.training.span_loss import zlpr

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # compilers and kernels warn about their choices
]
GPU = torch.device("cuda")
SHAPE = {"hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 3}  # four heads of 64


@pytest.fixture
def fp8() -> None:
    """Skip the test if the GPU has no FP8 matrix products."""
    if not has_fp8(GPU):
        pytest.skip("this GPU is older than Hopper")


def far(found: Tensor, wanted: Tensor) -> float:
    """Return the relative error ‖found - wanted‖ / ‖wanted‖."""
    return (torch.linalg.norm(found.float() - wanted.float()) / torch.linalg.norm(wanted.float())).item()


def drawn(count: int, prefix: int = 40, longest: int = 90, seed: int = 0, ids: int = 280) -> list[Example]:
    """Draw examples with a common prefix and random ids."""
    draw = random.Random(seed)
    shared = tuple(draw.randrange(3, ids) for _ in range(prefix))
    found = []
    for number in range(count):
        own = tuple(draw.randrange(3, ids) for _ in range(draw.randrange(20, longest)))
        found.append(Example(str(number), shared + own, prefix + len(own) // 2))
    return found


def packed(chosen: list[Example]) -> PackTensors:
    return PackTensors(**tensors(layout(chosen[0].ids[: shared_prefix(chosen)], chosen))).to(GPU)


def model(base: str = "bf16", family: str = "phi3", dropout: float = 0.0, **changes: Any) -> Any:
    """Return a training model on the GPU with weights as small as in a real model, and adapters that are not zero."""
    made: Any = tiny_model(family, vocabulary=280, **{**SHAPE, **changes})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 0.2 if parameter.dim() > 1 else 1
    made = made.to(torch.float32 if base == "fp32" else torch.bfloat16)
    made = to_fp8(made, GPU, made.lm_head) if base == "fp8" else made.to(GPU)
    made, _ = attach(made, config.Lora(rank=8, alpha=16, dropout=dropout))
    torch.manual_seed(3)
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape).to(parameter) * 0.05
    return made.train()


def step(made: Any, pack: PackTensors) -> tuple[float, Tensor]:
    """Return the loss per token, and the gradients of all adapters in one vector."""
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


@pytest.mark.parametrize("shape", [(1, 1), (128, 256), (200, 130), (16, 400), (7680, 5120)])
def test_a_turned_matrix_is_the_transposed_one(shape: tuple[int, int]) -> None:
    matrix = torch.randint(0, 256, shape, dtype=torch.uint8, device=GPU)
    found = torch.ops.spantune.turned(matrix.view(torch.float8_e4m3fn))
    assert found.is_contiguous() and torch.equal(found.view(torch.uint8), matrix.t())


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
    assert torch.cuda.max_memory_allocated() - before - stored < 16 * largest  # one weight: bf16, fp32 twice, e4m3


@pytest.mark.slow
@pytest.mark.parametrize("base", ["bf16", "fp8"])
def test_layers_with_dropout_compile(fp8: None, base: str, caplog: pytest.LogCaptureFixture) -> None:
    """There must be no warning that the layers could not be compiled."""
    made = model(base, dropout=0.2)
    torch._dynamo.reset()
    compile_layers(made, "some")
    made.enable_input_require_grads()
    for count in (3, 9):
        loss, gradient = step(made, packed(drawn(count, seed=count)))
        assert loss == pytest.approx(step(model(base), packed(drawn(count, seed=count)))[0], rel=0.1)
        assert gradient.isfinite().all()
    assert not [record for record in caplog.records if record.name.startswith("spantune")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "keep"), [("fp8", "none"), ("fp8", "some"), ("fp8", "fp8"), ("fp8", "most"), ("bf16", "some")]
)
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
        if base == "fp8":  # e4m3 rounding enlarges differences in the last bit, so both are compared with fp32
            assert far(found[1], wanted) < 1.2 * far(gradient, wanted) < 0.3
        else:
            assert far(found[1], gradient) < 0.05
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2


@pytest.mark.parametrize(
    ("family", "dropout", "compiled"),
    [*((family, dropout, False) for family in HEADS for dropout in (0.0, 0.2)), ("gemma3_text", 0.2, True)],
)
def test_graphs_of_packs_are_the_plain_passes(family: str, dropout: float, compiled: bool) -> None:
    """The first pack runs without a graph, the others with graphs; a step's packs add up to the same gradients."""
    made = model("bf16", family, dropout, **HEADS[family])
    if compiled:
        torch._dynamo.reset()
        compile_layers(made, "some")
        made.enable_input_require_grads()
    packs = [packed(drawn(count, seed=count)) for count in (3, 9, 5)]
    graph_packs(made, 2048)
    forward = causal_lm(made).base_model.forward
    rounds = []
    for number in range(4):
        if number == 3:
            release_graphs(made)
        torch.manual_seed(11)
        made.zero_grad()
        losses = []
        for pack in packs:
            with torch.autocast("cuda", torch.bfloat16):
                loss = pack_loss(made, pack, torch.bfloat16) / len(pack.index)
            loss.backward()
            losses.append(loss.item())
            del loss  # the loss holds memory of the default stream
        rounds.append((losses, torch.cat([p.grad.flatten().clone() for p in made.parameters() if p.grad is not None])))
        assert len(forward.graphs) == (2, 3, 3, 2)[number]  # in the last round the second pack is larger than the first
    (losses, wanted), *others = rounds
    for found_losses, found in others:
        assert found_losses == pytest.approx(losses, rel=1e-3) and far(found, wanted) < 0.01
    alone = [step(made, pack) for pack in packs]
    assert dropout or [loss for loss, _ in alone] == pytest.approx(losses, rel=1e-3)


def test_a_graph_larger_than_usual_comes_first_so_that_the_others_stay() -> None:
    made = model("bf16")
    packs = [packed(drawn(count, seed=count)) for count in (3, 4, 9)]
    graph_packs(made, 2048, usual=len(packs[2].ids))
    forward = causal_lm(made).base_model.forward
    counts = []
    for pack in packs:
        forward.pad_ahead(pack.ids, pack.positions, Spans(**pack.spans))
        step(made, pack)
        counts.append(len(forward.graphs))
    assert counts == [0, 2, 3]
    assert max(shape.tokens for shape in forward.graphs) > len(packs[2].ids)
    wanted = step(model("bf16"), packs[2])
    found = step(made, packs[2])
    assert found[0] == pytest.approx(wanted[0], rel=1e-3) and far(found[1], wanted[1]) < 0.01


def test_a_step_that_really_runs_out_of_memory_is_split_and_loses_nothing() -> None:
    """The limit is between the memory of the step in one pack and in small packs, plus what other tests hold."""
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

    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    wanted, large, splits = attempt(1 << 20)
    assert splits == 0
    _, small, _ = attempt(600)
    assert small - held < 0.6 * (large - held)
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((small + large) / 2 / total)
    try:
        loss, _, splits = attempt(1 << 20)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert splits >= 1 and loss == pytest.approx(wanted, rel=1e-3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize("base", ["nf4", "int8"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # bitsandbytes warns about casts
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


EMPTY = Document("empty", "")
TEXTS = [*drawn_texts(5), EMPTY, *drawn_texts(2, longest=700, seed=1)]


@pytest.mark.parametrize("prefix", [0, 1, 6])
@pytest.mark.parametrize("window", [None, 1, 16])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_the_flash_kernel_reads_whole_texts_as_the_dense_mask_does(
    prefix: int, window: int | None, heads: tuple[int, int]
) -> None:
    lengths = [1, 37, 0, 600, 2, 150]
    owner = [PREFIX] * prefix + [number for number, length in enumerate(lengths, 1) for _ in range(length)]
    position = [*range(prefix), *(prefix + place for length in lengths for place in range(length))]
    reach = [*range(prefix), *(prefix + length - 1 for length in lengths for _ in range(length))]
    torch.manual_seed(prefix)
    sizes = (heads[0], heads[1], heads[1], heads[0])
    *inputs, dy = (torch.randn(len(owner), count, 64, device=GPU).to(torch.bfloat16) for count in sizes)
    made = tiny_model("phi3").config
    made.sliding_window = window
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    layout = spans(owner, is_causal=False)
    on_gpu = layout._replace(**{name: t.to(GPU) for name, t in layout._asdict().items() if isinstance(t, Tensor)})
    found = pack_attention(*ours, on_gpu, 0.125, window)
    found.backward(dy)
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    places = Places(*(torch.tensor(values, device=GPU) for values in (owner, position, reach)))
    mask: Any = attention_mask(made, places, places, torch.float64)
    wanted = by_mask(*exact, mask, 0.125)
    wanted.backward(dy.double())
    assert far(found, wanted) < 0.01
    pairs = [(mine.grad, its.grad) for mine, its in zip(ours, exact, strict=True)]
    for mine, its in pairs if window != 1 else pairs[2:]:  # only itself seen: q and k have no gradient
        assert mine is not None and its is not None and far(mine, its) < 0.02


def read_by(base: str = "bf16", family: str = "phi3", settings: Any = None, **changes: Any) -> Any:
    """Return a training model on the GPU with a head."""
    return with_head(model(base, family, **changes), settings or spans_settings())


@pytest.mark.parametrize("instruction", [False, True])
@pytest.mark.parametrize("family", HEADS)
def test_logits_of_spans_on_the_gpu_are_those_of_the_cpu(
    family: str, instruction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = spans_settings(instruction=instruction)
    pack = span_pack(span_encoder(settings), TEXTS)
    exact_model = read_by("fp32", family, settings, **HEADS[family]).eval()
    in_fp32 = found_logits(exact_model, pack.to(GPU))
    exact = found_logits(exact_model.cpu(), pack)
    assert far(in_fp32, exact) < 1e-4  # with TF32 it would be 1e-3
    made = read_by("bf16", family, settings, **HEADS[family]).eval()
    by_kernel = found_logits(made, pack.to(GPU))
    monkeypatch.setattr("spantune.models.attention.can_flash", lambda *_: False)
    by_dense_mask = found_logits(made, pack.to(GPU))
    assert far(by_kernel, exact) < 1.3 * far(by_dense_mask, exact) < 0.1


def found_logits(made: Any, pack: SpanPack) -> Tensor:
    """Return the logits without the bias, for the spans inside a text, on the CPU."""
    with torch.no_grad():
        logits = logits_of(made, pack) - require_head(made).bias
    return logits[pack.band.inside].float().cpu()


def test_the_host_does_not_wait_for_the_loss_of_reading() -> None:
    settings = spans_settings()
    made, pack = read_by(settings=settings), span_pack(span_encoder(settings), TEXTS).to(GPU)
    for mode in ("default", "error"):  # the first pass may wait, because libraries are loaded
        torch.cuda.set_sync_debug_mode(mode)
        try:
            zlpr(logits_of(made, pack), pack).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("view", ["whole", "twice", "causal"])
def test_a_text_that_is_read_is_the_same_in_any_pack(view: Any) -> None:
    settings = spans_settings(view=view)
    encoder, made = span_encoder(settings), read_by(settings=settings)
    sizes = [len(document.text) for document in TEXTS]
    loss, whole = span_step(made, span_pack(encoder, TEXTS).to(GPU))
    logits = by_example(logits_of(made, pack := span_pack(encoder, TEXTS).to(GPU)), pack, sizes)
    parts = {name: torch.zeros_like(gradient) for name, gradient in whole.items()}
    summed = 0.0
    for group in (TEXTS[:1], TEXTS[1:5], TEXTS[5:]):
        pack = span_pack(encoder, group).to(GPU)
        part, gradients = span_step(made, pack)
        summed += part
        for name, gradient in gradients.items():
            parts[name] += gradient
    alone = by_example(logits_of(made, pack := span_pack(encoder, TEXTS[2:3]).to(GPU)), pack, sizes[2:3])
    width = min(alone[0].shape[1], logits[2].shape[1])
    assert far(alone[0][:, :width], logits[2][:, :width]) < 0.02
    assert summed == pytest.approx(loss, rel=1e-2) and gradients_far(parts, whole) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("base", "instruction"), [("bf16", False), ("bf16", True), ("fp8", False)])
def test_compiled_layers_read_as_plain_ones_do(fp8: None, base: str, instruction: bool) -> None:
    settings = spans_settings(instruction=instruction)
    encoder = span_encoder(settings)
    packs = [span_pack(encoder, drawn_texts(count, seed=count)).to(GPU) for count in (3, 9, 17)]
    exact = [span_step(read_by("fp32", settings=settings), pack) for pack in packs]
    made = read_by(base, settings=settings)
    eager = [span_step(made, pack) for pack in packs]
    torch._dynamo.reset()
    compile_layers(made, "some")
    made.enable_input_require_grads()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for (loss, plain), (_, wanted), pack in zip(eager, exact, packs, strict=True):
        found_loss, found = span_step(made, pack)
        assert found_loss == pytest.approx(loss, rel=1e-2)
        assert gradients_far(found, wanted) < max(0.02, 1.3 * gradients_far(plain, wanted)) < 0.4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2


@pytest.mark.parametrize("base", ["bf16", "fp8"])
def test_steps_of_reading_learn_on_the_gpu(fp8: None, base: str) -> None:
    recipe = spans_settings()
    encoder, made = span_encoder(recipe), read_by(base)
    chosen = [encoder.example(document) for document in [EMPTY, *drawn_texts(7)]]
    settings = config.Train(learning_rate=2e-3)
    collator = Collator(settings, encoder.prefix, 256, 0, recipe)  # small enough for several packs
    runner = StepRunner(made, collator, settings, StepGuard("stop"), head_rate=5e-3)
    losses = [runner.run(collator(chosen), step, 1.0).loss.item() for step in range(1, 41)]
    assert len(collator(chosen).parts) > 1
    assert losses[-1] < 0.5 * losses[0] and runner.memory_splits == 0


def test_what_the_gpu_has_learnt_the_cpu_reads_as_well() -> None:
    documents = [*drawn_texts(12, longest=40), EMPTY]
    settings = spans_settings()
    encoder, made = span_encoder(settings), read_by()
    packs = [span_pack(encoder, documents).to(GPU)]
    first, last = learnt(made, packs, steps=200)
    assert last < 0.2 * first
    entities = []
    for device in (GPU, torch.device("cpu")):
        made = made.to(device) if device == GPU else made.float().to(device)
        read = Extractor(made, encoder).extract(documents)
        entities.append({(d.id, e.start, e.end, e.label) for d in read for e in d.entities})
    gold = {(d.id, e.start, e.end, e.label) for d in documents for e in d.entities}
    on_gpu, on_cpu = entities
    assert len(on_gpu & on_cpu) >= 0.95 * len(on_gpu | on_cpu) and len(on_gpu & gold) >= 0.8 * len(gold)


def test_compiled_layers_write_what_plain_ones_write() -> None:
    made = lively_model("phi3", 2).to(GPU).requires_grad_(False)
    answers = []
    for way in ("off", "on"):
        settings = config.Extract(batch_size=4, max_new_tokens=120, compile=way)
        answers.append([extraction.answer for extraction in Extractor(made, encoder(), settings).stream(DOCUMENTS)])
    assert hasattr(made.model.layers[0].forward, "plain"), "the layers were not compiled"
    assert answers[0] == answers[1] and any(answers[0])


@pytest.mark.parametrize("base", ["bf16", "fp8"])
def test_layers_compiled_for_extraction_read_what_plain_ones_read(fp8: None, base: str) -> None:
    settings = spans_settings()
    made = read_by(base, settings=settings).eval().requires_grad_(False)
    packs = [span_pack(span_encoder(settings), TEXTS[:count]).to(GPU) for count in (8, 3)]
    wanted = [found_logits(made, pack) for pack in packs]
    compile_for_extraction(made)
    for pack, plain in zip(packs, wanted, strict=True):
        assert far(found_logits(made, pack), plain) < (0.02 if base == "bf16" else 0.1)


def test_packs_that_follow_each_other_are_read_as_each_alone() -> None:
    settings = spans_settings()
    made = read_by(settings=settings).eval().requires_grad_(False)
    documents = [document for document in drawn_texts(60) if document.text]
    entities = []
    for batch in (60, 7):
        tool = Extractor(made, span_encoder(settings), config.Extract(batch_size=batch))
        tool.keeps_candidates = True
        entities.append([{(e.start, e.end, e.label) for e in d.entities} for d in tool.extract(documents)])
    same = sum(len(one & other) for one, other in zip(*entities, strict=True))
    assert same >= 0.95 * sum(len(one | other) for one, other in zip(*entities, strict=True)) > 0
