"""What the command line prints, on which stream, with which exit code; an error is one sentence and no traceback."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.command import fresh, last_object, one_line_error
from helpers.fakes import write_jsonl
from helpers.forked import spantune
from spantune import __version__
from spantune.core import Document, Entity
from spantune.data import formats

Command = Callable[..., Any]
RecipeFile = Callable[..., Path]
GOLD = {"id": "a", "text": "肺炎患者", "entities": [{"start": 0, "end": 2, "label": "dis", "text": "肺炎"}]}


@pytest.fixture
def run(trained: Any, tmp_path: Path) -> Path:
    """A copy of the trained run, to which the test may write."""
    return Path(
        shutil.copytree(trained.folder, tmp_path / "run", ignore=shutil.ignore_patterns("swanlab", "checkpoints"))
    )


# --- in a process of its own -------------------------------------------------------------------------------------


def test_version_and_help_start_without_torch() -> None:
    code = (
        "import sys; from spantune.cli import main; sys.argv = ['spantune', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as ended: assert not {'torch', 'transformers', 'numpy', 'swanlab'} & set(sys.modules); raise"
    )
    for arguments, words in ((["--version"], [__version__]), (["--help"], ["train", "extract", "data", "plan"])):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and all(word in done.stdout for word in words), done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["nothing"], "nothing"),
        (["train", "--nothing"], "--nothing"),
        (["data", "convert"], "source"),
    ],
)
def test_wrong_use_of_the_command_line_is_2(arguments: list[str], word: str) -> None:
    done = fresh(*arguments)
    assert done.returncode == 2 and word in done.stderr.lower() and done.stdout == "" and "Traceback" not in done.stderr


# --- recipes that cannot be right ----------------------------------------------------------------------------------


def test_a_misspelt_key_names_the_nearest(command: Command, recipe_file: RecipeFile) -> None:
    one_line_error(
        command("train", recipe_file(train={"max_step": 3})),
        "unknown key 'train.max_step'",
        "did you mean 'max_steps'?",
    )
    one_line_error(
        command("train", recipe_file(), "train.learning_rat=1"), "train.learning_rat", "did you mean 'learning_rate'?"
    )
    one_line_error(
        command("plan", recipe_file(), "trian.max_steps=1"), "unknown section 'trian'", "did you mean 'train'?"
    )
    one_line_error(command("train", recipe_file(), "train.max_steps"), "expected section.key=value")
    one_line_error(command("train", recipe_file(), "train.max_steps=few"), "train.max_steps", "found 'few'")


def test_a_recipe_that_is_not_there(command: Command, tmp_path: Path) -> None:
    one_line_error(command("train", tmp_path / "none.yaml"), "none.yaml: no such recipe")
    one_line_error(command("train"), "either a recipe, or --resume")


def test_a_label_outside_the_task(command: Command, recipe_file: RecipeFile, tmp_path: Path) -> None:
    entity = {**GOLD["entities"][0], "label": "diss"}  # type: ignore[index, dict-item]
    data = write_jsonl(tmp_path / "bad.jsonl", [{**GOLD, "entities": [entity]}])
    one_line_error(command("train", recipe_file(data={"train": str(data)})), "'a'", "'diss'", "did you mean 'dis'?")


def test_a_file_that_is_not_jsonl(command: Command, recipe_file: RecipeFile, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps(GOLD) + "\n{not json\n")
    one_line_error(command("train", recipe_file(data={"train": str(tmp_path / "bad.jsonl")})), "bad.jsonl:2")
    one_line_error(command("data", "inspect", tmp_path / "bad.jsonl"), "bad.jsonl:2")


def test_a_model_without_its_tokenizer(
    command: Command, recipe_file: RecipeFile, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*")))
    for name in ("train", "plan"):
        one_line_error(command(name, recipe_file(model={"source": str(folder)})), str(folder), "tokenizer")


@pytest.mark.no_cover
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(
    command: Command, recipe_file: RecipeFile, run: Path, corpus: Path, tmp_path: Path
) -> None:
    one_line_error(command("train", recipe_file(), "model.device=cuda"), "model.device=cuda", "no CUDA GPU")
    one_line_error(command("extract", run, corpus / "test.jsonl", "--device", "cuda"), "no CUDA GPU")
    assert not (tmp_path / "runs").exists()


def test_a_device_that_does_not_exist_is_not_taken_for_another(command: Command, run: Path, corpus: Path) -> None:
    outcome = command("extract", run, corpus / "test.jsonl", "--device", "cud")
    assert outcome.code == 2 and "cud" in outcome.err and outcome.out == ""


def test_a_run_folder_that_exists(command: Command, recipe_file: RecipeFile, tmp_path: Path) -> None:
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    one_line_error(command("train", recipe_file()), "exists", "--resume")
    assert list((tmp_path / "runs" / "tiny").iterdir()) == []


def test_a_folder_that_is_no_run(command: Command, corpus: Path, tmp_path: Path) -> None:
    one_line_error(command("extract", tmp_path, corpus / "test.jsonl"), "no config.yaml here")
    one_line_error(command("evaluate", tmp_path, "--data", corpus / "test.jsonl"), "no config.yaml here")
    one_line_error(command("train", "--resume", tmp_path), "no config.yaml here")


def test_a_damaged_run(command: Command, run: Path, corpus: Path) -> None:
    (run / "config.yaml").write_text("a: [")
    outcome = command("extract", run, corpus / "test.jsonl")
    assert outcome.code == 2 and "config.yaml is damaged" in outcome.err and "Traceback" not in outcome.err


# --- what they do ------------------------------------------------------------------------------------------------


def test_train_ends_with_one_json_line(command: Command, recipe_file: RecipeFile, run: Path, tmp_path: Path) -> None:
    settings = ("train.max_steps=2", "train.eval_steps=2", "track.swanlab=off", f"train.from={run}")
    outcome = command("train", recipe_file(), *settings)
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.splitlines()) == 1
    assert set(last_object(outcome)) == {"run", "f1_before", "f1", "f1_low", "f1_high", "f1_on", "seconds"}
    assert last_object(outcome)["run"] == str(tmp_path / "runs" / "tiny")
    assert "report: " in outcome.err and "all (micro)" in outcome.err and "dashboard" not in outcome.err
    assert f"compare: spantune compare {run} {tmp_path / 'runs' / 'tiny'}\n" in outcome.err


def test_plan_prints_every_audit_and_exits_with_1_on_a_leak(
    command: Command, recipe_file: RecipeFile, corpus: Path, tmp_path: Path
) -> None:
    outcome = command("plan", recipe_file())
    assert outcome.code == 0, outcome.err
    assert "every LoRA target matches" in outcome.out and "FAILED" not in outcome.out and "total gib" in outcome.out
    leak = formats.read(corpus / "train.jsonl").documents
    formats.write(tmp_path / "leak.jsonl", leak[:2])
    sections = {"data": {"test": str(tmp_path / "leak.jsonl")}}
    failed = command("plan", recipe_file(**sections), "--json")
    assert failed.code == 1
    found = last_object(failed)
    assert found["ok"] is False
    assert [audit["name"] for audit in found["audits"] if not audit["ok"]] == ["test shares no text with train"]
    assert "FAILED" in command("plan", recipe_file(**sections)).out
    one = command("train", recipe_file(**sections))
    one_line_error(one, "audit failed: test shares no text with train")


def test_evaluate_agrees_with_the_runs_own_figures(command: Command, run: Path, trained: Any, corpus: Path) -> None:
    outcome = command("evaluate", run, "--data", corpus / "test.jsonl", "--json")
    assert outcome.code == 0, outcome.err
    found = last_object(outcome)
    assert found["strict"] == trained.after.scores.as_dict()["strict"] and found["documents"] == 8
    assert {"invalid_rate", "ungrounded_rate", "non_stop_rate"} <= found.keys()
    assert (run / "predictions" / "test.jsonl").is_file()
    table = command("evaluate", run, "--data", corpus / "test.jsonl", "--limit", 2)
    assert table.code == 0 and "all (micro)" in table.out and "dis" in table.out
    free = command("evaluate", run, "--data", corpus / "test.jsonl", "--free", "--limit", 2, "--json")
    one_line_error(free, "extract.grounded is false (--free), and train.loss_on=choices")
    assert "f1" not in free.out


def test_evaluate_refuses_labels_of_another_task(command: Command, run: Path, tmp_path: Path) -> None:
    formats.write(tmp_path / "other.jsonl", [Document("a", "肺炎", (Entity(0, 2, "disease"),))])
    one_line_error(command("evaluate", run, "--data", tmp_path / "other.jsonl"), "'disease'")


def test_data_inspect_a_file(command: Command, corpus: Path) -> None:
    outcome = command("data", "inspect", corpus / "train.jsonl", "--json")
    found = last_object(outcome)
    assert (
        outcome.code == 0
        and found["documents"] == 24
        and found["format"] == "native"
        and found["entities"]["dis"] >= 12
    )
    assert found["sentences"] >= 24 and sum(one["count"] for one in found["characters"]) == 24
    table = command("data", "inspect", corpus / "train.jsonl")
    assert table.code == 0 and "nested in a longer one" in table.out and "characters of a document" in table.out
    assert re.search(r"^dis +█+.* 1[2-9] ", table.out, re.MULTILINE)
    assert last_object(command("data", "inspect", "bundled:clinical-zh-test", "--json"))["format"] == "marked"
    one_line_error(command("data", "inspect"), "a corpus file, or --recipe")


def test_data_inspect_shows_examples_with_nested_entities_and_no_control_characters(
    command: Command, tmp_path: Path
) -> None:
    nested = Document(
        "a\x1b[2J", "腹部胀痛\x1b[31m\n三天", (Entity(0, 4, "sym"), Entity(0, 2, "bod"), Entity(3, 6, "x"))
    )
    formats.write(
        tmp_path / "in.jsonl", [Document("none", "没有实体"), nested, Document("b", "甲", (Entity(0, 1, "x"),))]
    )
    shown = command("data", "inspect", tmp_path / "in.jsonl", "--examples", 1).out
    assert "[[腹部|bod]胀[痛|sym]\\x1b[|x]31m\\n三天" in shown and "\x1b" not in shown
    assert "没有实体" not in shown and "甲" not in shown
    assert "腹部" not in command("data", "inspect", tmp_path / "in.jsonl", "--examples", 0).out.split("characters")[-1]


def test_data_inspect_counts_tokens_and_the_share_of_the_instruction(
    command: Command, corpus: Path, tiny_folder: Path, recipe_file: RecipeFile
) -> None:
    file = corpus / "train.jsonl"
    plain = last_object(command("data", "inspect", file, "--tokenizer", tiny_folder, "--json"))["tokens"]
    assert plain["total"] > 24 and plain["instruction_share"] is None
    preset = last_object(command("data", "inspect", file, "--tokenizer", tiny_folder, "--task", "cmeee", "--json"))
    recipe = last_object(command("data", "inspect", file, "--recipe", recipe_file(), "--json"))
    assert preset["tokens"]["total"] == recipe["tokens"]["total"] == plain["total"]
    assert 0 < recipe["tokens"]["instruction_share"] < preset["tokens"]["instruction_share"] < 1
    table = command("data", "inspect", file, "--tokenizer", tiny_folder, "--task", "cmeee").out
    assert "instruction, of all tokens" in table and "tokens of an example" in table


def test_data_inspect_refuses_options_that_do_not_go_together(
    command: Command, corpus: Path, tiny_folder: Path, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    file = corpus / "train.jsonl"
    one_line_error(command("data", "inspect", file, "--task", "cmeee"), "--task needs --tokenizer")
    one_line_error(command("data", "inspect", "--recipe", recipe_file(), "--html", "x"), "need a file")
    one_line_error(
        command("data", "inspect", file, "--tokenizer", tiny_folder, "--task", "cmee"), "did you mean 'cmeee'?"
    )
    one_line_error(
        command("data", "inspect", file, "--tokenizer", tiny_folder, "--task", "biomedical"), "label", "chemical"
    )
    one_line_error(command("data", "inspect", file, "--tokenizer", tmp_path), str(tmp_path))


def test_data_inspect_writes_a_page(command: Command, corpus: Path, tmp_path: Path) -> None:
    outcome = command("data", "inspect", corpus / "train.jsonl", "--html", tmp_path / "page.html", "--json")
    assert outcome.code == 0 and f"page: {tmp_path / 'page.html'}" in outcome.err
    assert last_object(outcome)["documents"] == 24
    assert "<title>train.jsonl" in (tmp_path / "page.html").read_text(encoding="utf-8")
    one_line_error(command("data", "inspect", corpus / "train.jsonl", "--html", tmp_path / "no" / "x"), "no folder")


def test_data_split_writes_splits_and_a_record(command: Command, tmp_path: Path) -> None:
    outcome = command("data", "split", "bundled:clinical-zh-train", "--to", tmp_path / "out", "--seed", 3, "--json")
    assert outcome.code == 0 and "--by group would keep each in one split" in outcome.err
    found = last_object(outcome)
    assert found == json.loads((tmp_path / "out" / "split.json").read_text(encoding="utf-8"))
    assert found["seed"] == 3 and sum(found["documents"].values()) == 480 and found["left_out"] == 0
    for name, count in found["documents"].items():
        assert len(formats.read(tmp_path / "out" / f"{name}.jsonl").documents) == count
    by = ("--by", "group", "--shares", "0.9,0.1", "--write-format", "marked")
    grouped = command("data", "split", "bundled:clinical-zh-train", "--to", tmp_path / "by", *by)
    assert grouped.code == 0 and "--by group" not in grouped.err and "96 groups" in grouped.out
    assert re.search(r"^ +dis +413 .*\(\d+\.\d%\)", grouped.out, re.MULTILINE)
    assert sorted(file.name for file in (tmp_path / "by").iterdir()) == ["split.json", "test.txt", "train.txt"]


def test_data_split_takes_few_shots_and_samples_of_the_first_split_only(command: Command, tmp_path: Path) -> None:
    def made(name: str, *options: object) -> tuple[dict[str, Any], list[list[str]]]:
        outcome = command("data", "split", "bundled:clinical-zh-train", "--to", tmp_path / name, *options, "--json")
        files = [formats.read(tmp_path / name / f"{part}.jsonl") for part in ("train", "dev", "test")]
        return last_object(outcome), [[document.id for document in file.documents] for file in files]

    _, whole = made("whole")
    shots, few = made("few", "--k-shot", 5)
    _, fifty = made("fifty", "--sample", 50)
    hundred_record, hundred = made("hundred", "--sample", 100)
    assert whole[1:] == few[1:] == fifty[1:] == hundred[1:]
    assert min(counts["train"] for counts in shots["labels"].values()) >= 5 and len(few[0]) < 20
    assert len(fifty[0]) == 50 and set(fifty[0]) < set(hundred[0]) < set(whole[0])
    assert hundred_record["left_out"] == len(whole[0]) - 100 and hundred_record["sample"] == 100


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shares", "0.8,0.1"], ["sum to 0.9"]),
        (["--shares", "80%"], ["'80%'", "numbers"]),
        (["--names", "a,b"], ["3 shares", "'a,b'"]),
        (["--names", "a,b,../c"], ["'../c'"]),
        (["--by", "grop"], ["'grop'", "did you mean 'group'?"]),
        (["--threshold", "2"], ["likeness is 2"]),
        (["--k-shot", "5", "--sample", "5"], ["one of them"]),
        (["--k-shot", "5000"], ["'dep' has", "of 5000 entities", "--allow-fewer"]),
        (["--sample", "5000"], ["sample of 5000 of"]),
        (["--write-format", "xml"], ["unknown format 'xml'"]),
        (["--format", "cmeee"], ["clinical-zh-test"]),
        (["--shares", "0.998,0.001,0.001"], ["no document", "larger share"]),
    ],
)
def test_data_split_refuses_in_one_line_and_leaves_nothing(
    command: Command, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    outcome = command("data", "split", "bundled:clinical-zh-test", "--to", tmp_path / "out", *options)
    one_line_error(outcome, *words)
    assert list(tmp_path.iterdir()) == []


def test_data_inspect_a_recipe_shows_tokens_and_shared_prefix(command: Command, recipe_file: RecipeFile) -> None:
    outcome = command("data", "inspect", "--recipe", recipe_file(), "--set", "data.limit=3", "--json")
    found = last_object(outcome)
    assert outcome.code == 0 and found["examples"] == 3 and found["stop_token"] == "<|im_end|>"
    assert 0 < found["tokens_with_loss"] < found["tokens"] and found["shared_prefix_tokens"] > 10
    shown = command("data", "inspect", "--recipe", recipe_file(), "--examples", 1)
    assert "shared prefix" in shown.out and "Find·" not in shown.out and "entity_label" in shown.out.replace("·", "")


def test_every_data_command_takes_the_options_of_token_files(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "tokens.tsv"
    places = ["Köln", "Bonn", "Trier", "Mainz", "Worms", "Speyer", "Basel", "Konstanz", "Chur", "Ulm"]
    rows = "".join(f"{place}\tx\tB\tx\n{place[::-1] * 3}\tx\tO\tx\n\n" for place in places)
    file.write_bytes(rows.encode("latin-1"))
    options = ("--column", "2", "--label", "LOC", "--encoding", "latin-1")
    found = last_object(command("data", "inspect", file, *options, "--json"))
    assert (found["format"], found["documents"], found["entities"]) == ("conll", 10, {"LOC": 10})
    assert command("data", "check", file, *options).code == 0
    assert command("data", "split", file, "--to", tmp_path / "splits", "--shares", "0.4,0.3,0.3", *options).code == 0
    out = tmp_path / "out.jsonl"
    assert command("data", "convert", file, out, "--to", "native", *options).code == 0
    assert json.loads(out.read_text("utf-8").splitlines()[0])["text"] == "Köln nlöKnlöKnlöK"
    out.unlink()
    one_line_error(command("data", "convert", file, out, "--to", "native", *options[:2], *options[4:]), "--label NAME")
    one_line_error(command("data", "convert", file, out, "--to", "native", *options[:4]), "windows-1252")
    one_line_error(command("data", "inspect", file, *options[:5], "klingon"), "unknown encoding 'klingon'")
    assert not out.exists()


def test_data_convert_says_what_it_did_on_stderr(command: Command, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [GOLD])
    outcome = command("data", "convert", source, tmp_path / "out.json", "--to", "cmeee")
    assert outcome.code == 0 and outcome.out == "" and "1 documents, native → cmeee" in outcome.err
    assert formats.read(tmp_path / "out.json").documents[0].entities == (Entity(0, 2, "dis"),)
    back = command(
        "data", "convert", tmp_path / "out.json", tmp_path / "back.jsonl", "--to", "native", "--from", "cmeee"
    )
    assert back.code == 0
    one_line_error(command("data", "convert", source, tmp_path / "x", "--to", "nothing"), "unknown format 'nothing'")


@pytest.mark.no_cover
def test_a_hub_that_cannot_be_reached(recipe_file: RecipeFile) -> None:
    """The proxies do not listen: the command must fail within seconds and leave no folder."""
    path = recipe_file(model={"source": "hf:nobody/nothing"})
    nowhere = "http://127.0.0.1:9"
    environment = {
        **os.environ,
        "HTTPS_PROXY": nowhere,
        "HTTP_PROXY": nowhere,
        "https_proxy": nowhere,
        "http_proxy": nowhere,
    }
    start = [*shlex.split(spantune()), "train", str(path)]
    done = subprocess.run(start, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 2, done.stderr
    assert done.stderr.startswith("loading hf:nobody/nothing …\nerror: ") and "nobody/nothing" in done.stderr


def test_q_leaves_errors_and_results_and_may_follow_the_command(command: Command, corpus: Path, tmp_path: Path) -> None:
    call = ("data", "convert", corpus / "test.jsonl", tmp_path / "out.jsonl", "--to", "native", "--force")
    assert "documents, native" in command(*call).err
    for quiet in (("-q", *call), (*call, "--quiet")):
        outcome = command(*quiet)
        assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    one_line_error(command("-q", "data", "convert", tmp_path / "none.jsonl", tmp_path / "x", "--to", "native"), "none")
    one_line_error(command("-v", "runs", tmp_path, "-q"), "-q and -v contradict each other")
    dashes = command("data", "check", "--", "-q")  # a file with this name
    assert dashes.code == 2 and "-q: there is no such file" in dashes.err
