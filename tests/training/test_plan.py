"""Every audit of the plan passes on a sound recipe, fails on the flaw that it looks for, and says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.fakes import MERGES, save_model
from spantune.core import ConfigError, DataError, Document, Entity, ModelError, parse_config, to_record
from spantune.data import formats
from spantune.training import make_plan, prepare, train
from spantune.training.plan import MEMORY, Audit, Plan, require

NAMES = [
    "the run folder is free",
    "the trackers can be used",
    "the optimizer is installed",
    "this device can compute with the base",
    "the model's attention is supported",
    "every LoRA target matches",
    "the model is what its card says",
    "the stop token is in the loss",
    "no truncation",
    "the tokenizer's chat template is used",
    "dev shares no text with train",
    "test shares no text with train",
    "every example fits the model's window",
    "every dev and test text can be extracted",
    "gold is nested only where the task is",
    MEMORY,
    "disk",
]
TARGETS, DEV_LEAK, TEST_LEAK, WINDOW, EXTRACTABLE, NESTING = (NAMES[index] for index in (5, 10, 11, 12, 13, 14))
Planner = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path, tree: Callable[..., dict[str, Any]]) -> Planner:
    """A function that plans the tiny recipe, changed by section."""

    def make(**sections: dict[str, Any]) -> Plan:
        return make_plan(prepare(parse_config(tree(tmp_path / "runs", **sections))))

    return make


def audit(plan: Plan, name: str) -> Audit:
    (found,) = [audit for audit in plan.audits if audit.name == name]
    return found


def test_a_sound_recipe_passes_every_audit(plan: Planner, tmp_path: Path) -> None:
    found = plan()
    assert [item.name for item in found.audits] == NAMES
    assert found.failed == [] and all(item.ok and item.remedy and not item.waived for item in found.audits)
    require(found)
    assert not (tmp_path / "runs").exists()
    record = json.loads(json.dumps(found.as_dict()))
    assert record["ok"] is True and len(record["audits"]) == len(NAMES)
    assert {"total_gib", "tokens_per_step", "step_seconds", "minutes"} <= record["estimate"].keys()


def test_targets_that_match_nothing_fail(plan: Planner) -> None:
    found = plan(lora={"targets": ["q_proj", "o_proj"]})
    (failed,) = found.failed
    assert failed.name == TARGETS and "q_proj match no linear module" in failed.found
    with pytest.raises(
        ModelError, match=r"audit failed: every LoRA target matches: .*q_proj.*; set lora.targets=all-linear"
    ):
        require(found)
    waived = audit(plan(lora={"targets": ["q_proj", "o_proj"], "allow_unmatched": True}), TARGETS)
    assert not waived.ok and waived.waived == "lora.allow_unmatched"


def test_a_model_that_is_not_what_its_card_says_fails(plan: Planner, tmp_path: Path) -> None:
    from spantune.models import load_tokenizer

    folder = save_model(tmp_path / "model", "phi3", MERGES)
    tokenizer = load_tokenizer(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    found = plan(model={"source": str(folder)})
    assert [item.name for item in found.failed] == ["the model is what its card says"]
    assert "EOS and PAD are one token" in found.failed[0].found
    assert plan(model={"source": str(folder), "verify": False}).failed == []


def test_cut_samples_lose_their_stop_token_and_are_counted(plan: Planner, tree: Any, tmp_path: Path) -> None:
    cut = {"cut_tokens": 100, "pack": "none", "loss_on": "answer"}
    lengths = [len(example.ids) for example in prepare(parse_config(tree(tmp_path))).examples]
    long = sum(length > 100 for length in lengths)
    assert 0 < long < len(lengths)
    found = plan(train=cut)
    truncation, stop = audit(found, "no truncation"), audit(found, "the stop token is in the loss")
    assert not truncation.ok and truncation.found == f"{long} of {len(lengths)} samples are cut"
    assert not stop.ok and stop.found == f"{long} of {len(lengths)} samples lack it"
    assert truncation.waived == stop.waived == "train.cut_tokens" and found.failed == []
    whole = plan(train={**cut, "cut_tokens": max(lengths)})
    assert audit(whole, "no truncation").ok and audit(whole, "the stop token is in the loss").ok


def test_the_tutorials_template_is_named_a_flaw_that_the_recipe_asks_for(plan: Planner) -> None:
    found = audit(plan(task={"template": "tutorial", "answer": "jsonl_seed"}), "the tokenizer's chat template is used")
    assert not found.ok and "four ordinary tokens" in found.found and found.waived == "task.template"


@pytest.mark.parametrize(("split", "name"), [("dev", DEV_LEAK), ("test", TEST_LEAK)])
def test_a_text_on_both_sides_fails(plan: Planner, corpus: Path, tmp_path: Path, split: str, name: str) -> None:
    leaked = formats.read(corpus / "train.jsonl").documents[3]
    documents = [*formats.read(corpus / f"{split}.jsonl").documents, Document("again", leaked.text)]
    formats.write(tmp_path / "leaky.jsonl", documents)
    found = plan(data={split: str(tmp_path / "leaky.jsonl")})
    assert [item.name for item in found.failed] == [name]
    assert found.failed[0].found.startswith("1 shared texts, such as ") and leaked.text[:10] in found.failed[0].found
    with pytest.raises(ModelError, match=f"audit failed: {name}"):
        require(found)


@pytest.mark.no_cover
@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize(
    ("documents", "settings", "words"),
    [
        (
            [Document("short", "痛"), Document("long", "痛" * 300)],
            {"max_characters": 200},
            "document 'long' has 300 characters, over extract.max_characters=200; raise it",
        ),
        ([Document("a", "痛")], {"max_new_tokens": 4096}, "no room for a text beside the"),
    ],
)
def test_a_text_that_no_evaluation_could_take_fails_before_training(
    plan: Planner, tmp_path: Path, split: str, documents: list[Document], settings: dict[str, Any], words: str
) -> None:
    file = tmp_path / "held.jsonl"
    file.write_text("".join(json.dumps(to_record(document)) + "\n" for document in documents), encoding="utf-8")
    (failed,) = plan(data={split: str(file)}, extract=settings, train={"eval_before": False}).failed
    assert failed.name == EXTRACTABLE and f"{file}: " in failed.found and words in failed.found
    with pytest.raises(ModelError, match=f"audit failed: {EXTRACTABLE}: .*held.jsonl"):
        require(Plan((failed,), plan().estimate))


def test_a_text_of_which_not_one_character_fits_fails(plan: Planner, tree: Any, corpus: Path, tmp_path: Path) -> None:
    instruction = len(prepare(parse_config(tree(tmp_path))).encoder.prompt_ids(""))
    found = plan(extract={"max_new_tokens": 2048 - instruction - 1})
    assert [audit.name for audit in found.failed] == [EXTRACTABLE]
    assert "not even the character" in found.failed[0].found and str(corpus / "dev.jsonl") in found.failed[0].found


def test_examples_over_the_models_window_fail(plan: Planner, tmp_path: Path) -> None:
    formats.write(tmp_path / "train.jsonl", [Document("long", "a b " * 900), Document("b", "c d")])
    (failed,) = plan(data={"train": str(tmp_path / "train.jsonl")}, train={"max_tokens": 9999}).failed
    assert failed.name == WINDOW and "train.jsonl: document 'long' takes" in failed.found


def test_choices_without_the_grammar_and_unknown_labels_are_errors_of_prepare(tree: Any, tmp_path: Path) -> None:
    recipe = parse_config(tree(tmp_path / "runs"))
    free = recipe.model_copy(update={"extract": recipe.extract.model_copy(update={"grounded": False})})
    with pytest.raises(ConfigError, match=r"extract\.grounded is false .* train\.loss_on=choices"):
        prepare(free)
    formats.write(tmp_path / "odd.jsonl", [Document("x", "肺炎", (Entity(0, 2, "disease"),))])
    with pytest.raises(DataError, match=r"odd\.jsonl, field entities: document 'x': the label 'disease'"):
        prepare(parse_config(tree(tmp_path / "runs", data={"test": str(tmp_path / "odd.jsonl")})))


@pytest.mark.parametrize("split", ["train", "test"])
def test_gold_that_contradicts_a_task_without_overlaps_fails(plan: Planner, tmp_path: Path, split: str) -> None:
    nested = Document("nested", "肺炎咳", (Entity(0, 3, "dis"), Entity(0, 1, "bod"), Entity(1, 2, "bod")))
    formats.write(tmp_path / "nested.jsonl", [Document("flat", "肺癌", (Entity(0, 2, "dis"),)), nested])
    sections: dict[str, Any] = {"data": {split: str(tmp_path / "nested.jsonl")}, "task": {"nested": False}}
    found = audit(plan(**sections), NESTING)
    assert not found.ok and "entities overlap in " in found.found and "task.nested=true" in found.remedy
    assert "nested.jsonl: 1 documents, first 'nested'" in found.found
    assert audit(plan(data=sections["data"]), NESTING).ok


def test_a_flat_corpus_of_a_nested_task_is_noted(plan: Planner, tmp_path: Path) -> None:
    files = {}
    for name, text in (("train", "肺癌"), ("dev", "胃癌"), ("test", "肝癌")):
        formats.write(tmp_path / f"{name}.jsonl", [Document(name, text, (Entity(0, 1, "bod"), Entity(1, 2, "dis")))])
        files[name] = str(tmp_path / f"{name}.jsonl")
    found = audit(plan(data=files), NESTING)
    assert found.ok and "no entities overlap: task.nested=false would tell" in found.found
    assert audit(plan(data=files, task={"nested": False}), NESTING).found == "no entities overlap"


def test_gold_with_white_space_at_its_ends_is_said_and_refused_for_choices(
    plan: Planner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    formats.write(tmp_path / "train.jsonl", [Document("padded", "痛 了", (Entity(0, 2, "sym"),))])
    data = {"train": str(tmp_path / "train.jsonl")}
    with pytest.raises(DataError, match=r"'padded': '痛 ' at \[0, 2\) begins or ends with white space"):
        plan(data=data)
    plan(data=data, train={"loss_on": "answer"})
    assert "train.jsonl: 1 entities begin or end with white space, first '痛 ' in document 'padded'" in caplog.text


def test_memory_that_is_too_small_fails_the_plan_but_not_the_run(
    plan: Planner, caplog: pytest.LogCaptureFixture
) -> None:
    found = plan(train={"pack_tokens": 2**45})
    assert [item.name for item in found.failed] == [MEMORY] and "train.pack_tokens" in found.failed[0].remedy
    require(found)  # an estimate does not stop a run
    assert "the run fits into memory is in doubt: about" in caplog.text and "set train.pack_tokens=" in caplog.text


def test_ranks_for_modules_that_are_not_there_fail(plan: Planner) -> None:
    (failed,) = plan(lora={"rank_pattern": {"gate_proj": 4}, "allow_unmatched": True}).failed
    assert failed.name == TARGETS and "lora.rank_pattern: gate_proj match no module" in failed.found


def test_what_cannot_be_prepared_is_an_error_not_an_audit(plan: Planner, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.max_tokens=64.*data\.too_long=split"):
        plan(train={"max_tokens": 64})
    formats.write(tmp_path / "odd.jsonl", [Document("x", "肺炎", (Entity(0, 2, "disease"),))])
    with pytest.raises(DataError, match=r"'disease'.*not one of the task's"):
        plan(data={"train": str(tmp_path / "odd.jsonl")})


@pytest.mark.parametrize(
    ("sections", "name"),
    [
        ({"train": {"optimizer": "adamw_8bit"}}, "the optimizer is installed"),
        ({"model": {"base": "nf4"}}, "this device can compute with the base"),
        ({"track": {"also": ["wandb"]}}, "the trackers can be used"),
    ],
)
def test_a_missing_package_fails_the_plan_and_stops_the_run_with_the_same_words(
    plan: Planner, tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], name: str
) -> None:
    monkeypatch.setattr("spantune.core.extras.find_spec", lambda module: None)
    failed = {audit.name: audit for audit in plan(**sections).failed}
    assert failed.keys() == {name} and "which is not installed" in failed[name].found
    assert re.match(r"run pip install .*\[[a-z]+\]", failed[name].remedy)
    with pytest.raises(ConfigError) as refused:
        train(parse_config(tree(tmp_path / "runs", **sections)))
    assert str(refused.value) == f"{failed[name].found}; {failed[name].remedy}"


def test_a_run_folder_that_exists_fails_the_plan_of_a_new_run_only(tree: Any, tmp_path: Path) -> None:
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    prepared = prepare(parse_config(tree(tmp_path / "runs")))
    (failed,) = make_plan(prepared).failed
    assert failed.name == NAMES[0] and "exists" in failed.found and "--resume" in failed.remedy
    assert make_plan(prepared, is_new=False).failed == []


def warned(plan: Plan) -> dict[str, str]:
    return {warning.name: str(warning) for warning in plan.warnings}


def test_what_is_unlikely_to_work_is_warned_of(
    plan: Planner, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = Document("one", "疮", (Entity(0, 1, "dis"),))
    formats.write(tmp_path / "dev.jsonl", [one])
    train_documents = [Document(str(n), f"痛{n}", (Entity(0, 1, "sym"),)) for n in range(48)]
    formats.write(tmp_path / "train.jsonl", train_documents)
    data = {"train": str(tmp_path / "train.jsonl"), "dev": str(tmp_path / "dev.jsonl"), "test": None}
    settings = {"max_steps": None, "batch_examples": 16, "epochs": 1, "learning_rate": 0.5}
    found = plan(data=data, train=settings, task={"labels": ["dis", "sym"]})
    said = warned(found)
    assert found.failed == [] and len(said) == 5
    assert said["enough optimizer steps"] == "3 optimizer steps: too few to learn from; set train.epochs=67"
    assert "train.learning_rate=0.5 is so high" in said["a learning rate for LoRA"]
    assert "the dev set has 1 document with 1 entity:" in said["a dev set that says something"]
    assert audit(found, NAMES[11]).found == "1 document, none shared (there is no test set: the dev documents)"
    assert audit(found, EXTRACTABLE).found == "1 document of dev, none refused"
    assert "which choose the adapter" in said["a test set"] and "data.test" in said["a test set"]
    assert "no entity of dis: a model cannot learn them" in said["entities of every label"]
    require(found)
    assert "3 optimizer steps: too few" in caplog.text
    assert json.loads(json.dumps(found.as_dict()))["warnings"][0]["remedy"] == "set train.epochs=67"
    assert ", 5 warnings, " in repr(found) and "set train.epochs=67" in found._repr_html_()


def test_a_batch_that_is_too_large_and_a_clock_that_is_too_short_are_warned_of(plan: Planner) -> None:
    slow = {"max_steps": None, "batch_examples": 24, "epochs": 10, "learning_rate": 1e-5}
    said = warned(plan(train=slow))
    assert said["enough optimizer steps"].endswith("set train.epochs=200 or train.batch_examples=1")
    assert said.keys() == {"enough optimizer steps"} | (said.keys() - {"a learning rate for LoRA"})
    short = warned(plan(train={"max_steps": 100_000, "max_minutes": 1e-9, "learning_rate": 1e-3}))
    assert (
        "about 0 optimizer steps in train.max_minutes=1e-09: too few to learn from" in (short["enough optimizer steps"])
    )
    assert "enough optimizer steps" not in warned(plan(train={"max_steps": 200}))
    assert "a learning rate for LoRA" in warned(plan(train={"learning_rate": 1e-6}))


def test_the_minutes_are_those_of_all_steps_unless_the_clock_ends_them(plan: Planner) -> None:
    whole = plan(train={"max_steps": 600, "eval_share": 0.5}).estimate
    assert whole.minutes == pytest.approx(1.5 * 600 * whole.step_seconds / 60)
    assert plan(train={"max_steps": 10**9, "max_minutes": 2, "eval_share": 0.5}).estimate.minutes == 3
