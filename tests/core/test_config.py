"""Recipes are strict and frozen, accept overrides, and are the same after saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from spantune.core import Config, ConfigError, as_config, load_config, parse_config
from spantune.core.config import Section

LEAST: dict[str, Any] = {"model": {"source": "bundled:x"}, "task": {"labels": ["a", "b"]}, "data": {"train": "t.jsonl"}}


def recipe(folder: Path, text: str = "") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(LEAST) + text, encoding="utf-8")
    return path


def test_the_least_recipe_gets_the_defaults(tmp_path: Path) -> None:
    config = load_config(recipe(tmp_path))
    assert [label.code for label in config.task.labels or ()] == ["a", "b"]
    assert (config.lora.targets, config.train.pack, config.track.swanlab) == ("all-linear", "shared", "local")
    chosen_by_corpus = (config.lora.rank, config.train.learning_rate, config.train.epochs, config.train.loss_on)
    assert chosen_by_corpus == (None,) * 4 and not config.train.on_choices
    assert config.run_folder == Path("runs/run")


@pytest.mark.parametrize(
    ("key", "right"),
    [
        ("run.nmae", "name"),
        ("model.sorce", "source"),
        ("task.presett", "preset"),
        ("data.holdut", "holdout"),
        ("spans.longst", "longest"),
        ("lora.alhpa", "alpha"),
        ("train.learning_rte", "learning_rate"),
        ("extract.max_tokens", "max_new_tokens"),
        ("track.swanlb", "swanlab"),
    ],
)
def test_a_misspelt_key_names_the_nearest(tmp_path: Path, key: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe(tmp_path), [f"{key}=1"])
    assert f"unknown key {key!r}; did you mean {right!r}? valid: " in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


def test_a_run_does_not_have_the_name_of_the_board_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.name=swanlab is the folder of SwanLab's board"):
        load_config(recipe(tmp_path), ["run.name=swanlab"])
    elsewhere = load_config(recipe(tmp_path), ["run.name=swanlab", "track.board=boards", "track.notify=lark"])
    assert elsewhere.track.board == Path("boards") and elsewhere.track.notify == ("lark",)
    assert load_config(recipe(tmp_path), ["run.name=swanlab", "track.swanlab=offline"]).run.name == "swanlab"


def test_every_section_is_covered_above_and_documented() -> None:
    assert set(Config.model_fields) == {
        "run", "model", "task", "data", "spans", "lora", "train", "distributed", "extract", "track"
    }  # fmt: skip
    for name, section in Config.model_fields.items():
        assert isinstance(section.annotation, type) and issubclass(section.annotation, Section)
        for key, field in section.annotation.model_fields.items():
            assert field.description, f"{name}.{key} says nothing of itself"


def test_unknown_sections_and_label_keys_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown key 'trian'; did you mean 'train'\? valid: data, distributed, extract, lora"
    ):
        load_config(recipe(tmp_path, "trian: {epochs: 1}\n"))
    labels = {"labels": [{"code": "a", "descripton": "x"}]}
    with pytest.raises(ConfigError, match=r"'task\.labels\.0\.descripton'; did you mean 'description'\?"):
        parse_config({**LEAST, "task": labels})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rank=0", "lora.rank: Input should be greater than or equal to 1 (found 0)"),
        ("lora.dropout=1", "lora.dropout: Input should be less than 1"),
        ("data.holdout=-0.1", "data.holdout: Input should be greater than or equal to 0"),
        ("data.holdout=1.0", "data.holdout: Input should be less than 1"),
        ("train.learning_rate=0", "train.learning_rate: Input should be greater than 0"),
        ("train.max_grad_norm=.inf", "train.max_grad_norm: Input should be a finite number"),
        ("train.learning_rate=fast", "train.learning_rate: Input should be a valid number"),
        ("train.max_steps=1.5", "train.max_steps: Input should be a valid integer"),
        ("train.pack_tokens=63", "train.pack_tokens: Input should be greater than or equal to 64"),
        ("train.schedule=sine", "train.schedule: Input should be 'cosine', 'linear' or 'constant' (found 'sine')"),
        ("run.name=../x", "run.name: String should match pattern"),
        ("run.name=运行", "run.name: String should match pattern"),
        ("track.project=医疗", "track.project: String should match pattern"),
        (
            "track.also=[tensorbord]",
            "track.also.0: Input should be 'tensorboard', 'wandb' or 'mlflow' (found 'tensorbord')",
        ),
        ("track.predictions=101", "track.predictions: Input should be less than or equal to 100"),
        ("track.tags=['']", "track.tags.0: String should have at least 1 character"),
        ("task.preset=cmee", "task.preset: Input should be 'cmeee'"),
        ("model.source=", "model.source has no value"),
        ("data.train=", "data.train has no value"),
        ("task.labels=part", "task.labels: found 'part'; expected a list"),
        ("task.labels=[]", "task.labels: the list is empty"),
        ("train.batch_examples=true", "train: batch_examples is true; expected a number"),
        (
            "lora.alpha=off",
            "lora.alpha: Input should be a valid number, unable to parse string as a number (found 'off')",
        ),
        ("lora.alpha=false", "lora: alpha is false; expected a number"),
        ("run.seed=-1", "run.seed: Input should be greater than or equal to 0 (found -1)"),
        ("run.seed=4294967296", "run.seed: Input should be less than 4294967296"),
        ("extract.batch_size=99999999999999999999", "extract.batch_size: Input should be less than or equal to 65536"),
        ("lora.rank_pattern={'(': 4}", "lora.rank_pattern: '(' is read as a regular expression and is none"),
        ("model.source=''", "model.source: String should have at least 1 character"),
        ("data.train=''", "data.train: a path is empty; name a file, or bundled:NAME"),
        ("task.labels=[a, 1]", "task.labels.1: found the number 1; expected text: quote it if it is meant as a word"),
        ("task.labels=[a, true]", "task.labels.1: found true; expected text: quote it if it is meant as a word"),
        ("task.labels=[a, null]", "task.labels.1 has no value; give one, or quote it if it is meant as a word"),
        ("train.max_minutes=1:30", "train.max_minutes: Input should be a valid number"),
        ("train.lr=1e-4", "unknown key 'train.lr'; did you mean 'train.learning_rate'? valid: "),
        ("train.rank=4", "unknown key 'train.rank'; did you mean 'lora.rank'? valid: "),
        (f"run.name={'n' * 200}", "run.name: String should have at most 128 characters"),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe(tmp_path), [override])
    assert message in str(caught.value)


def test_bare_words_of_yaml_1_1_stay_what_they_are(tmp_path: Path) -> None:
    labels = "task: {labels: [no, Yes, on, 1:30, 010, 2024-05-01]}"
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{source: x}}\ndata: {{train: a.jsonl}}\n{labels}\n", encoding="utf-8")
    config = load_config(
        path, ["train.eval_before=no", "train.compile=off", "train.max_steps=010", "run.name=2024-05-01"]
    )
    assert [label.code for label in config.task.labels or ()] == ["no", "Yes", "on", "1:30", "010", "2024-05-01"]
    assert config.train.eval_before is False and config.train.compile == "off"
    assert (config.train.max_steps, config.run.name) == (10, "2024-05-01")
    config.save(tmp_path)
    assert load_config(tmp_path / "config.yaml") == config


def test_a_run_folder_in_place_of_a_recipe_is_gone_on_with(tmp_path: Path) -> None:
    recipe(tmp_path).rename(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"Is a directory.*to go on with this run: spantune train --resume "):
        load_config(tmp_path)


def test_one_tracker_or_tag_needs_no_list(tmp_path: Path) -> None:
    track = load_config(recipe(tmp_path), ["track.also=wandb", "track.tags=消融"]).track
    assert (track.also, track.tags) == (("wandb",), ("消融",))


@pytest.mark.parametrize("override", ["train.max_steps", "train.max_steps:3", "max_step=3", "train.=3", "=", ""])
def test_an_override_that_is_none_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected section\.key=value, such as train\.max_steps=24"):
        load_config(recipe(tmp_path), [override])


def test_an_override_without_its_section_names_those_that_have_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'max_steps=3': expected the section too: train\.max_steps=VALUE"):
        load_config(recipe(tmp_path), ["max_steps=3"])


def test_an_override_of_an_unknown_section_or_without_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown section 'trian'; did you mean 'train'\?"):
        load_config(recipe(tmp_path), ["trian.epochs=1"])
    with pytest.raises(ConfigError, match=r"'lora\.targets=\[a': the value is not YAML"):
        load_config(recipe(tmp_path), ["lora.targets=[a"])
    with pytest.raises(ConfigError, match="section 'lora' must be a mapping"):
        load_config(recipe(tmp_path, "lora: 3\n"), ["lora.rank=8"])


def test_override_values_have_their_types(tmp_path: Path) -> None:
    overrides = [
        "train.learning_rate=5e-4",  # a string in YAML 1.1
        "train.max_steps=24",
        "train.eval_before=false",
        "lora.targets=[q_proj, o_proj]",
        "data.limit=100",
        "data.limit=",  # the last override counts, and an empty value is null
        "data.dev=a=b.jsonl",
        "run.name=7",
        "task.labels=[x, {code: y, name: Y}]",
        "run.folder=结果/运行",
    ]
    config = load_config(recipe(tmp_path, "train: {max_steps: 3, epochs: 2}\n"), overrides)
    assert config.train.learning_rate == 5e-4
    assert (config.train.max_steps, config.train.epochs, config.train.eval_before) == (24, 2.0, False)
    assert config.lora.targets == ("q_proj", "o_proj")
    assert (config.data.limit, config.data.dev, config.run.name) == (None, "a=b.jsonl", "7")
    assert [(label.code, label.name) for label in config.task.labels or ()] == [("x", ""), ("y", "Y")]
    assert config.run.folder == Path("结果/运行")


def test_a_file_says_5e_4_as_well(tmp_path: Path) -> None:
    assert load_config(recipe(tmp_path, "train: {learning_rate: 5e-4}\n")).train.learning_rate == 5e-4


@pytest.mark.parametrize("content", [b"a: [", b"\tx: 1", b"\xff\xfe\x00", b"!!python/object/apply:os.getcwd []"])
def test_what_is_not_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"recipe\.yaml: not a YAML recipe"):
        load_config(path)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "text", "3"])
def test_a_recipe_is_a_mapping(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(
        ConfigError, match="a recipe is a mapping with the sections run, model, task, data, spans, lora"
    ):
        load_config(path)


def test_a_missing_recipe_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such recipe; give the path of a YAML file"):
        load_config(tmp_path / "gone.yaml")
    for path in (tmp_path, recipe(tmp_path) / "below"):
        with pytest.raises(ConfigError, match="a directory"):
            load_config(path)


def test_every_missing_part_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"task": {}, "lora": {"rank": 0}})
    lines = str(caught.value).split("\n")
    assert [line.partition(": ")[2].split(" ")[0].rstrip(":") for line in lines] == [
        "model",
        "task",
        "data",
        "lora.rank",
    ]
    assert "either task.preset or task.labels must be given" in lines[1]


def test_a_config_is_frozen() -> None:
    config = parse_config(LEAST)
    for section, key in ((config, "lora"), (config.lora, "rank"), (config.train, "epochs")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, 1)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["lora.targets=[q_proj, v_proj]", "lora.alpha=0.1", "train.learning_rate=1e-7", "run.folder=结果/甲"],
        ["task.preset=cmeee", "task.labels=[{code: 'no', name: '否: #'}]", 'task.instruction="a\\n b: {}\\u2028"'],
        ["train.gradient_checkpointing='on'", "track.swanlab='off'", "train.max_minutes=6", "run.name='007'"],
    ],
)
def test_what_is_saved_is_read_back(tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(recipe(tmp_path), overrides)
    config.save(tmp_path)
    assert load_config(tmp_path / "config.yaml") == config


def test_full_fine_tuning_has_a_short_form_everywhere(tmp_path: Path) -> None:
    expected = load_config(recipe(tmp_path), ["lora.full=true"])
    assert expected.lora.full
    assert load_config(recipe(tmp_path, "lora: full\n")) == load_config(recipe(tmp_path), ["lora=full"]) == expected
    assert load_config(recipe(tmp_path, "lora: {rank: 8}\n"), ["lora=full"]) == expected
    assert not load_config(recipe(tmp_path, "lora: full\n"), ["lora.full=false", "lora.rank=8"]).lora.full
    expected.save(tmp_path)
    assert load_config(tmp_path / "config.yaml") == expected
    for setting in ("rank=8", "dora=true", "plus_ratio=16", "targets=[q_proj]"):
        name = setting.partition("=")[0]
        with pytest.raises(ConfigError, match=rf"and lora\.{name} is of an adapter: leave one of them out"):
            load_config(recipe(tmp_path, "lora: full\n"), [f"lora.{setting}"])


def test_an_override_of_a_config_states_nothing_else() -> None:
    recipe = parse_config({"model": {"source": "x"}, "task": {"labels": ["a"]}, "data": {"train": "a.jsonl"}})
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 2})})
    changed = as_config(recipe, ["train.from=runs/a"])
    assert changed.lora.model_fields_set == set() and changed.train.model_fields_set == {"epochs", "from_"}
    assert changed == recipe.model_copy(update={"train": recipe.train.model_copy(update={"from_": "runs/a"})})


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("model: {source: here}\nlora: {rank: 4}\nlora: {alpha: 8}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 3, column 1: key 'lora' is given twice"):
        load_config(path)


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"train": {"normalize": "examples", "pack": "none"}}, r"train\.normalize=examples needs train\.pack=shared"),
        ({"lora": {"rank_pattern": {"down_proj": 0}}}, r"lora\.rank_pattern\.down_proj.*greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(sections: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config({**LEAST, **sections})


def test_merge_keys_are_supported(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {source: x}\ntask: {labels: [dis]}\ndata: {train: x}\nextract: {<<: {overlap: 7}, overlap: 9}\n"
    )
    assert load_config(path).extract.overlap == 9
    merged = "lora:\n  <<: [&a {rank: 4, alpha: 8}, &b {<<: *a, dropout: 0.5}]\n  rank: 2\n"
    path.write_text("model: {source: x}\ntask: {labels: [dis]}\ndata: {train: x}\n" + merged)
    assert (load_config(path).lora.rank, load_config(path).lora.alpha, load_config(path).lora.dropout) == (2, 8, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("? [a]\n: 1\n", "a key must be a word such as train, found a sequence"),
        ("? {a: 1}\n: 1\n", "found a mapping"),
        ("train: {1: 2}\n", "found '1'; quote it"),
        ("true: 1\n", "found 'true'; quote it"),
        ("train: {<<: &a {x: 1}, <<: *a}\n", "'<<' is given twice"),
        ("run: {name: !!int x}\n", "not a YAML recipe"),
        ("[" * 3000, "not a YAML recipe"),
        ("train: {<<: 5}\n", "not a YAML recipe"),
    ],
)
def test_other_keys_than_words_are_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="not a YAML recipe") as error:
        load_config(path)
    assert message in str(error.value)


@pytest.mark.parametrize("name", [".x", ".", "..", "-/x", "a b"])
def test_a_run_name_that_would_not_be_listed_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.name"):
        parse_config(
            {"run": {"name": name}, "model": {"source": "x"}, "task": {"labels": ["a"]}, "data": {"train": "x"}}
        )


def test_no_credential_is_saved_and_none_is_allowed_in_what_the_model_is_told(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"model": {"source": "x"}, "task": {"labels": ["a"]}, "data": {"train": "http://u:pw@h/x"}}
    recipe = parse_config({**plain, "track": {"description": "see http://h/?token=abc"}})
    recipe.save(tmp_path)
    assert repr(recipe) == "Config(run run, model x, labels a, train http://***@h/x)"
    saved = (tmp_path / "config.yaml").read_text()
    assert "pw" not in saved and "abc" not in saved and "http://***@h/x" in saved
    with pytest.raises(ConfigError, match="a URL with a password or key stands in the instruction"):
        parse_config({**plain, "task": {"labels": ["a"], "instruction": "see http://u:pw@h"}})


@pytest.mark.parametrize("text", ["run: {seed: !!bool x}", "run: {seed: !!timestamp x}", "data: {train: !!binary x!}"])
def test_a_tag_before_another_value_is_no_yaml(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        load_config(tmp_path / "recipe.yaml")


def test_a_nul_character_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train has a NUL character"):
        parse_config({"model": {"source": "x"}, "data": {"train": "a\0b.jsonl"}, "task": {"preset": "cmeee"}})
    with pytest.raises(ConfigError, match="NUL character"):
        load_config(tmp_path / "a\0b.yaml")


@pytest.mark.parametrize(
    ("data", "split"),
    [({}, "dev"), ({"dev": "d"}, "dev"), ({"dev": "d", "test": "d"}, "dev"), ({"dev": "d", "test": "t"}, "test")],
)
def test_the_final_figures_are_on_dev_where_there_is_no_other_test_set(data: dict[str, str], split: str) -> None:
    assert parse_config({**LEAST, "data": {"train": "t.jsonl", **data}}).data.f1_on == split
