"""A damaged file in a model or run folder raises a SpantuneError or does no harm; no other error may come out."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.damage import damage
from helpers.run_folders import copy_run, save_run
from spantune.core import ModelError, RunError, SpantuneError, config
from spantune.extraction import load_run
from spantune.models import load, load_config_of, read_files
from spantune.training.plan import skeleton

SEEDS = 4
"""Kinds of damage that are tried on each file; thousands were tried by hand."""


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and its base model; tests must not change it."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny_folder, folder / "model")
    save_run(folder / "run", folder / "model")
    return folder


def files(whole: Path) -> list[Path]:
    unread = ("report.html", "README.md")
    return [path for path in sorted(whole.rglob("*")) if path.is_file() and path.name not in unread]


@pytest.mark.no_cover
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_damaged_file_is_an_error_of_ours_or_none(whole: Path, tmp_path: Path, seed: int) -> None:
    refused = 0
    for number, path in enumerate(files(whole)):
        folder = Path(shutil.copytree(whole, tmp_path / str(number)))
        settings = (folder / "run" / "config.yaml").read_text(encoding="utf-8")
        moved = settings.replace(str(whole / "model"), str(folder / "model"))
        (folder / "run" / "config.yaml").write_text(moved, encoding="utf-8")
        damage(folder / path.relative_to(whole), 100 * seed + number)
        try:
            load_run(folder / "run", "cpu", accept_changes=True).extract(["abc 肺 it"])
        except SpantuneError as error:
            assert str(error)
            refused += 1
    assert refused  # some damage changes nothing, such as a bit in a description


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, which the test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "32"},
        {"num_attention_heads": 0},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 2**40},
        {"max_position_embeddings": 1.5},
        {"rope_parameters": "none"},
        {"hidden_act": "nothing"},
        {"layer_types": 5},
        {"model_type": ["phi3"]},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_configuration_of_nonsense_is_one_error_that_names_the_folder(model: Path, values: dict[str, Any]) -> None:
    edit(model / "config.json", **values)
    with pytest.raises(ModelError) as planning:
        skeleton(load_config_of(model))
    with pytest.raises(ModelError) as loading:
        load(config.Model(source=str(model), base="fp32", device="cpu"))
    for caught in (planning, loading):
        assert str(model) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "5", "", "[" * 100_000, "null"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_no_object_is_one_error(model: Path, name: str, content: str) -> None:
    (model / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=str(model)):
        read_files(str(model))


def test_token_ids_beyond_the_model_are_refused(model: Path) -> None:
    tree = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    tree["model"]["vocab"]["abc"] = 999
    (model / "tokenizer.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(ModelError, match=r"1 tokens, such as 'abc' with the id 999, are beyond the model's vocabulary"):
        read_files(str(model))


def test_a_folder_in_the_place_of_a_task_is_one_error(whole: Path, tmp_path: Path) -> None:
    run = copy_run(whole / "run", tmp_path / "run")
    for path in (run / "adapter" / "task.json", run / "task.json"):
        path.unlink()
        path.mkdir()
        with pytest.raises(RunError, match=r"task\.json: cannot be read: Is a directory; restore it"):
            load_run(run, "cpu", accept_changes=True)
        path.rmdir()
        shutil.copy(whole / "run" / "task.json", path)


def test_a_model_folder_with_an_adapter_in_it_is_refused(model: Path, whole: Path) -> None:
    shutil.copy(whole / "run" / "adapter" / "adapter_config.json", model)
    with pytest.raises(ModelError, match=r"holds a model and an adapter_config\.json, so that either could be meant"):
        read_files(str(model))


def test_every_load_says_that_no_code_is_trusted() -> None:
    root, calls = Path(__file__).parents[1], 0
    for path in [
        *(root / "src").rglob("*.py"),
        *(root / "bench").rglob("*.py"),
        *(root / "tests/helpers").glob("*.py"),
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("from_pretrained", "from_config"):
                if getattr(node.func.value, "id", "") == "PeftModel":  # PEFT has no such option
                    continue
                values = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                assert values.get("trust_remote_code") is False, f"{path}:{node.lineno}"
                calls += 1
    assert calls >= 6
