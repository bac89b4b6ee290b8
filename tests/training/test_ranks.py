"""Two real processes train as one does: same losses, weights and figures, also if one of them fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from helpers.several_ranks import run_jobs
from spantune.core import ConfigError, Document, parse_config
from spantune.data import read_extractions
from spantune.runs import RunFolder, resume_recipe
from spantune.training import make_plan, prepare, train
from spantune.training.ranks import ALONE, require_strategy

Tree = Callable[..., dict[str, Any]]
STEPS = 5
SETTINGS: dict[str, Any] = {
    "train": {"max_steps": STEPS, "eval_steps": STEPS, "learning_rate": 2e-3, "eval_before": False, "save_steps": 2},
    "data": {"test_limit": 5},
    "extract": {"max_new_tokens": 24},
    "track": {"swanlab": "off"},
    "model": {"device": "cpu"},
}
READ: dict[str, Any] = {"task": {"answer": "spans"}, "spans": {"size": 16, "convolution": 3, "dropout": 0.0}}


@pytest.fixture(scope="module")
def recipe(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """A function that makes a recipe as plain values: `recipe(name, {section: values}, …)`."""
    folder = tmp_path_factory.mktemp("ranks")

    def make(name: str, *changes: dict[str, Any], **train: Any) -> dict[str, Any]:
        sections: dict[str, Any] = {"run": {"name": name}}
        for part in (SETTINGS, *changes, {"train": train}):
            sections = {key: {**sections.get(key, {}), **part.get(key, {})} for key in {*sections, *part}}
        plain = tree(folder, **{key: values for key, values in sections.items() if key != "distributed"})
        return plain | {"distributed": sections.get("distributed", {})}

    return make


FSDP = {"distributed": {"strategy": "fsdp"}}


@pytest.fixture(scope="module")
def runs(recipe: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcomes of all jobs on both ranks, and the folder of the runs, with references of one process."""
    written, read = recipe("one"), recipe("one-read", READ, loss_on=None)
    folder = Path(written["run"]["folder"])
    train(parse_config(written))
    train(parse_config(read))
    jobs = [
        {"recipe": recipe("ddp"), "event": ["oom", 2]},
        {"recipe": recipe("fsdp", FSDP), "event": ["stop", 3]},
        {"resume": str(folder / "fsdp"), "copy": str(folder / "stopped")},
        {"recipe": recipe("ddp-read", READ, loss_on=None)},
        {"recipe": recipe("fsdp-read", READ, FSDP, loss_on=None)},
        {"recipe": recipe("other"), "rank_1": ["train.learning_rate=0.5"]},
        {"recipe": recipe("few", batch_examples=1)},
        {"recipe": recipe("killed"), "event": ["kill", 4], "command": True},
    ]
    return folder, run_jobs(jobs, tmp_path_factory.mktemp("jobs"))


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return the training lines of a run."""
    return [record for record in RunFolder(folder).metrics() if record["split"] == "train"]


def assert_same(run: Path, reference: Path, within: float = 1e-5) -> None:
    """Check that losses, gradient norms, adapter, head and extractions are equal."""
    for ours, theirs in zip(lines(run), lines(reference), strict=True):
        for key in ("step", "loss", "grad_norm", "learning_rate", "epoch"):
            assert ours[key] == pytest.approx(theirs[key], abs=within), (key, ours["step"])
    for path in (reference / "adapter").glob("*.safetensors"):
        own = load_file(run / "adapter" / path.name)
        for name, weight in load_file(path).items():
            assert float((weight - own[name]).abs().max()) < within, name
    texts = [[e.document for e in read_extractions(RunFolder(f).last_predictions("test"))] for f in (run, reference)]
    assert [(d.text, spans(d)) for d in texts[0]] == [(d.text, spans(d)) for d in texts[1]]


def spans(document: Document) -> list[tuple[int, int, str]]:
    """Return the entities of a document without their scores."""
    return [(entity.start, entity.end, entity.label) for entity in document.entities]


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp-read", "fsdp-read"])
def test_two_ranks_train_as_one_does(name: str, runs: Any) -> None:
    folder, ranks = runs
    for _, outcomes, errors in ranks:
        assert all("f1" in outcomes[place] for place in (0, 2, 3, 4)), errors
    assert_same(folder / name, folder / ("one-read" if name.endswith("read") else "one"))
    assert RunFolder(folder / name).environment()["ranks"] == "2"
    place = {"ddp": 0, "fsdp": 2, "ddp-read": 3, "fsdp-read": 4}[name]
    assert [outcomes[place]["extracted"] for _, outcomes, _ in ranks] == [5, 4]  # of 4 dev and 5 test documents
    log = RunFolder(folder / name).log_file.read_text(encoding="utf-8")
    assert ("weights of the layers are divided over 2 ranks" in log) == name.startswith("fsdp")


def test_a_rank_that_is_out_of_memory_splits_alone_and_lowers_the_limit_of_all(runs: Any) -> None:
    folder, _ = runs
    split = [line for line in lines(folder / "ddp") if "memory_splits" in line]
    assert [(line["step"], line["memory_splits"]) for line in split] == [(2, 1)]
    assert split[0]["pack_tokens"] < 1024


def test_a_signal_to_one_rank_ends_all_at_the_same_step_and_any_number_resumes(runs: Any) -> None:
    folder, ranks = runs
    assert [outcomes[1] for _, outcomes, _ in ranks] == [{"error": "SIGTERM"}] * 2
    assert [line["step"] for line in lines(folder / "stopped")] == [1, 2, 3]
    train(resume_recipe(folder / "stopped"), resume=folder / "stopped")
    assert_same(folder / "stopped", folder / "one")


def test_ranks_with_other_recipes_or_without_examples_are_refused(runs: Any) -> None:
    folder, ranks = runs
    for _, outcomes, _ in ranks:
        assert "rank 1 has not the same as rank 0: the section train of the recipe differ" in outcomes[5]["error"]
        assert "1 example a step for 2 ranks; start fewer" in outcomes[6]["error"]
    assert not (folder / "other").exists() and not (folder / "few").exists()


def test_a_killed_rank_ends_the_run_with_one_error_and_it_resumes(runs: Any) -> None:
    folder, ranks = runs
    (code, _, errors), (killed, _, _) = ranks
    assert (code, killed) == (2, -9)
    (error,) = [line for line in errors.splitlines() if "error" in line]
    assert error.startswith("rank 0: error: another rank has ended or does not answer") and "--resume" in error
    assert RunFolder(folder / "killed").state == "stopped"
    train(resume_recipe(folder / "killed"), resume=folder / "killed")
    assert_same(folder / "killed", folder / "one")


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_train_as_one_does(
    strategy: str, recipe: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("there are no two GPUs")
    cuda = {"model": {"device": "cuda"}, "distributed": {"strategy": strategy}}
    alone, both = (recipe(f"{name}-{strategy}", cuda, compile="off") for name in ("gpu", "gpus"))
    train(parse_config(alone))
    for code, outcomes, errors in run_jobs([{"recipe": both}], tmp_path_factory.mktemp("gpus")):
        assert code == 0 and "f1" in outcomes[0], errors
    folder = Path(alone["run"]["folder"])
    assert_same(folder / f"gpus-{strategy}", folder / f"gpu-{strategy}", within=1e-4)


@pytest.mark.parametrize("base", ["fp8", "nf4", "int8"])
def test_a_quantised_base_is_not_divided(base: str, recipe: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=f"cannot divide a base of model.base={base}; set distributed.strategy=ddp"):
        require_strategy(parse_config(recipe("x", FSDP, {"model": {"base": base}})))


def test_deepspeed_and_a_trained_base_are_refused_by_name(
    recipe: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="divides a frozen base"):
        require_strategy(parse_config({**recipe("x", FSDP), "lora": "full"}))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match=r"DeepSpeed \(ZeRO\) is not supported; start with accelerate launch"):
        require_strategy(parse_config(recipe("x")))


def test_a_plan_for_several_gpus_has_their_share_and_what_they_send(recipe: Callable[..., dict[str, Any]]) -> None:
    prepared = prepare(parse_config(recipe("planned")))
    one, two = (make_plan(prepared, ranks=ranks).estimate for ranks in (1, 2))
    trained = two.memory.optimizer_gib * 2**30 / 8
    assert two.sent_gib * 2**30 == pytest.approx(4 * trained) and one.sent_gib == 0
    assert one.tokens_per_step / 2 <= two.tokens_per_step < one.tokens_per_step
    assert two.memory.adapters_gib == pytest.approx(1.5 * one.memory.adapters_gib)
    divided = make_plan(prepare(parse_config(recipe("planned", FSDP))), ranks=2).estimate
    assert divided.sent_gib > two.sent_gib
    (refused,) = make_plan(prepared, ranks=7).failed
    assert "6 examples a step for 7 ranks" in refused.found


def test_alone_nothing_is_sent() -> None:
    assert ALONE.table([1, 2]) == [[1, 2]] and ALONE.gather("a") == ["a"] and ALONE.from_main(lambda: 3) == 3
