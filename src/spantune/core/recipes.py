"""Reading recipes from YAML files, plain values and overrides of the form `section.key=value`.

The error for an unknown key names the most similar valid key, a key that is given twice is refused, and YAML tags
cannot run code. Bare words and numbers are read as in YAML 1.2: `no`, `010`, `1:30` and `2024-05-01` are texts. In YAML
1.1, which PyYAML implements, they would be false, 8, 90 and a date.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from spantune.core.bundled_recipes import bundled_recipes, recipe_path
from spantune.core.config import Config
from spantune.core.errors import ConfigError, closest, expect, nearest, os_error
from spantune.core.files import first_line
from spantune.core.secrets import MASK
from spantune.core.task import Label

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a recipe and apply overrides to it.

        recipe = spantune.load_config("bundled:demo", ["run.name=first", "train.max_minutes=3"])

    Args:
        path: the path of a YAML file, or `bundled:NAME` for a recipe that comes with spantune.
        overrides: texts of the form `section.key=value`, whose values are YAML. `lora=full` is allowed too.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is not allowed. The message names the key.
    """
    expect(path, (str, Path), "load_config", "the path of a recipe, such as recipe.yaml, or bundled:demo")
    expect(overrides, (list, tuple), "overrides", "a list such as ['train.max_steps=24']")
    try:
        tree = _parse_yaml(recipe_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        example = path if str(path) in bundled_recipes() else "demo"
        raise ConfigError(
            f"{path}: no such recipe; give the path of a YAML file, or one that comes with spantune, such as "
            f"bundled:{example} (spantune init --list names them); spantune init CORPUS writes one for a corpus"
        ) from None
    except IsADirectoryError as error:
        hint = (
            f"; to go on with this run: spantune train --resume {path}" if (Path(path) / "config.yaml").exists() else ""
        )
        raise ConfigError(f"{os_error(error)}{hint}") from None
    except OSError as error:
        raise ConfigError(os_error(error)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML recipe: {yaml_problem(error)}") from None
    return parse_config(tree, where=str(path), overrides=overrides)


def as_config(recipe: object, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Return a recipe as a Config, with overrides applied.

    Args:
        recipe: a Config, a mapping from section to its keys and values, or the path of a recipe file.
        overrides: as in `load_config`.

    Raises:
        ConfigError: `recipe` has another type or is not a valid recipe.
    """
    expect(overrides, (list, tuple), "overrides", "a list such as ['train.max_steps=24']")
    if isinstance(recipe, Config):  # keys that it does not state stay unset, so that a warm start may choose them
        stated = recipe.model_dump(mode="json", exclude_unset=True)
        return parse_config(stated, overrides=overrides) if overrides else recipe
    if isinstance(recipe, Mapping):
        return parse_config(recipe, overrides=overrides)
    expected = "a recipe: a Config, a mapping with its sections, or the path of a YAML file"
    return load_config(expect(recipe, (str, Path), "recipe", expected), overrides)


def parse_config(tree: object, where: str = "recipe", overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Make a Config from plain values and overrides.

    Args:
        tree: a mapping from section to a mapping from key to value.
        where: where the values come from, such as a path; it begins the error message.
        overrides: as in `load_config`.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not allowed. The message has a line for each such key.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where}: a recipe is a mapping with the sections {', '.join(Config.model_fields)}")
    sections = {name: dict(values) if isinstance(values, dict) else values for name, values in tree.items()}
    for override in overrides:
        _apply(sections, override)
    try:
        return Config.model_validate(sections)
    except ValidationError as error:
        every = error.errors()
        listed = [details for details in every if not _follows(details, every)]
        raise ConfigError("\n".join(f"{where}: {_describe(details)}" for details in listed)) from None


def yaml_problem(error: Exception) -> str:
    """Describe in one line why a text is not YAML: the line and column of the problem, and the problem itself."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{error.object[error.start]:02X} at offset {error.start} is not UTF-8; save it as UTF-8"
    return first_line(error)


def parse_value(text: str) -> object:
    """Return the value of the YAML text `text`, read as in a recipe; None for an empty text.

    Raises:
        ConfigError: `text` is not YAML.
    """
    try:
        return _parse_yaml(text) if text else None
    except yaml.YAMLError:
        raise ConfigError(f"{text!r} is not a YAML value; quote it") from None


def lost_credentials(recipe: Config) -> list[str]:
    """Return the keys of a saved recipe, such as `data.train`, whose values have `***` in place of a credential.

    Such a value cannot be used until the user gives it again.
    """
    used = {"model": recipe.model, "data": recipe.data}
    return [
        f"{section}.{key}"
        for section, values in used.items()
        for key, value in values.model_dump(mode="json").items()
        if any(isinstance(text, str) and MASK in text for text in (value if isinstance(value, list) else [value]))
    ]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, made stricter.

    A key must be a word, or the merge key `<<`, and must not be given twice; PyYAML would silently keep the last value.
    Only true and false are booleans, and only decimal numbers, 0x and 0b are numbers. Other words and numbers of YAML
    1.1, such as `no` and `1:30`, stay text.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping and check its keys, before merge keys are replaced by the keys of the merged mappings.

        Raises:
            MarkedYAMLError: a key is not a word or is given twice.
        """
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in _KEY_TAGS:
                found = repr(key.value) if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
                problem = f"a key must be a word such as train, found {found}; quote it if it is meant as a word"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
_NARROWED = {
    "tag:yaml.org,2002:bool": ("tTfF", r"true|True|TRUE|false|False|FALSE"),
    "tag:yaml.org,2002:int": ("-+0123456789", r"[-+]?(?:0|[1-9][0-9_]*)|0b[01_]+|0x[0-9a-fA-F_]+"),
    "tag:yaml.org,2002:float": (
        "-+.0123456789",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
    "tag:yaml.org,2002:timestamp": ("", ""),
}
"""The YAML 1.1 tags whose bare words are restricted in a recipe: tag to (possible first characters, pattern)."""
_Loader.yaml_implicit_resolvers = {
    first: [(tag, words) for tag, words in resolvers if tag not in _NARROWED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_first, _words) in _NARROWED.items():
    if _first:
        _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_words})$"), list(_first))


def _parse_yaml(text: str) -> object:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: the text is not YAML, or has a tag or value that PyYAML cannot construct.
    """
    try:
        value: object = yaml.load(text, _Loader)
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # such as a date that does not exist, a tag such as !!bool before another value, or too many open brackets
        raise yaml.YAMLError(str(error)) from None
    return value


def _apply(tree: dict[str, object], override: str) -> None:
    """Set the value of an override in `tree`, a mapping from section to keys and values, which is changed.

    Raises:
        ConfigError: the override does not have the form `section.key=value`, or names an unknown section.
    """
    expect(override, str, "overrides", "a list of texts such as train.max_steps=24")
    if override == "lora=full":
        tree["lora"] = {"full": True}  # replaces the whole section, which may have settings of an adapter
        return
    key, equals, value = override.partition("=")
    section, dot, name = key.partition(".")
    if not equals or not dot or not name:
        raise ConfigError(f"override {override!r}: expected {_as_override(key)}")
    if section not in Config.model_fields:
        raise ConfigError(
            f"override {override!r}: unknown section {section!r}; {nearest(section, Config.model_fields)}"
        )
    try:
        parsed = parse_value(value)
    except ConfigError:
        raise ConfigError(f"override {override!r}: the value is not YAML; quote it") from None
    branch = tree.setdefault(section, {})
    if section == "lora" and branch == "full":
        branch = tree[section] = {"full": True}
    if not isinstance(branch, dict):
        raise ConfigError(f"section {section!r} must be a mapping")
    branch[name] = parsed


def _as_override(key: str) -> str:
    """Return what was expected instead of an override; if `key` lacks its section, with the sections that have it."""
    if full := _full_keys(key):
        return f"the section too: {' or '.join(f'{name}=VALUE' for name in full)}"
    return "section.key=value, such as train.max_steps=24; a list is written 'section.key=[a, b]'"


def _meant(key: str) -> str:
    """Return the question "did you mean …?" for an unknown key; "" if no key is likely to be meant.

    The likely keys are those of the same name in other sections, or the key for a setting of another program.
    """
    full = _full_keys(key) or ([_ELSEWHERE[key]] if key in _ELSEWHERE else [])
    return f"did you mean {' or '.join(map(repr, full))}? " if full else ""


def _full_keys(key: str) -> list[str]:
    """Return the keys named `key` in all sections, each with its section, such as `train.epochs`."""
    sections = Config.model_fields.items()
    return [f"{section}.{key}" for section, field in sections if key in getattr(field.annotation, "model_fields", {})]


def _shown(value: object) -> str:
    """Return a value for a message, roughly as it was written in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"the number {value}" if isinstance(value, int | float) else repr(value)[:60]


_ELSEWHERE = {
    "cutoff_len": "train.max_tokens",
    "logging_steps": "train.log_steps",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "max_length": "train.max_tokens",
    "max_seq_length": "train.max_tokens",
    "model_name_or_path": "model.source",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "output_dir": "run.folder",
    "per_device_train_batch_size": "train.batch_examples",
    "r": "lora.rank",
    "target_modules": "lora.targets",
    "warmup_ratio": "train.warmup",
    "warmup_steps": "train.warmup",
}
"""The name of a setting in transformers, peft, TRL or LLaMA-Factory to its key in a recipe."""


def _follows(details: ErrorDetails, every: Sequence[ErrorDetails]) -> bool:
    """Whether the error says that a list is too short only because its members were refused by other errors."""
    place = details["loc"]
    inside = (other["loc"] for other in every)
    return details["type"] == "too_short" and any(
        len(loc) > len(place) and loc[: len(place)] == place for loc in inside
    )


def _describe(details: ErrorDetails) -> str:
    """Describe an error of pydantic in one sentence: the key, the problem, and what was expected."""
    parts = [str(part) for part in details["loc"]]
    key = ".".join(parts)
    if details["type"] == "extra_forbidden":
        section = Config.model_fields.get(parts[0])
        model: object = section.annotation if section and len(parts) > 1 else Config
        if parts[:2] == ["task", "labels"]:
            model = Label
        fields = getattr(model, "model_fields", {})
        valid = [field.alias or name for name, field in fields.items()]
        meant = _meant(parts[-1]) if len(parts) <= 2 and closest(parts[-1], valid) is None else ""
        return f"unknown key {key!r}; {meant}{nearest(parts[-1], valid)}"
    if details["type"] == "missing":
        return f"{key} is missing; it has no default"
    if details["input"] is None:
        word = "quote it if it is meant as a word" if parts[-1].isdigit() else "leave the key out if it has a default"
        return f"{key} has no value; give one, or {word}"
    if details["type"] == "string_type" or (
        details["type"] == "model_type" and isinstance(details["input"], int | float)
    ):
        return f"{key}: found {_shown(details['input'])}; expected text: quote it if it is meant as a word"
    if details["type"] == "tuple_type":
        return f"{key}: found {details['input']!r:.60}; expected a list, such as [a, b]"
    if details["type"] == "too_short":
        return f"{key}: the list is empty; name at least one"
    found = f" (found {details['input']!r})" if isinstance(details["input"], str | int | float | bool) else ""
    return f"{key or 'recipe'}: {details['msg'].removeprefix('Value error, ')}{found}"
