"""Generates documentation from the code: pages of `docs/`, and the source tree in `CONTRIBUTING.md`.

Commands come from the command line's names and help texts, recipe keys from the config, the tree from the first
sentence of each module's docstring, and other pages from files (`repository_pages.py`); nothing depends on the
terminal or on typer's own layout. `--check` writes nothing and exits with 1 when a page differs from the code.

    python docs/generate.py
    python docs/generate.py --check
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from repository_pages import MADE, decisions_page, python_page, results_page

from spantune.cli import app
from spantune.cli.help import argument_name, examples, usage
from spantune.core import Config, Label
from spantune.training import READ_RECOMMENDATIONS, RECOMMENDATIONS, Recommendation

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "spantune"
TREE_START = "<!-- The tree below is made by docs/generate.py from the module docstrings; do not edit. -->"
TREE_END = "<!-- End of the tree. -->"
TABLE_START = "<!-- The table below is made by docs/generate.py from the code; do not edit. -->"
TABLE_END = "<!-- End of the table. -->"
WIDTH = 120
TYPES = {str: "text", int: "whole number", float: "number", bool: "yes or no", Path: "path", types.NoneType: "none"}

_EXIT_CODES = """
Tables and JSON go to stdout, everything for people to stderr. `spantune --version` prints the version; `--help` and
`-h` work everywhere. `spantune --install-completion` has the shell complete commands, options, formats, settings and
run folders.

| exit code | what |
|---|---|
| 0 | done |
| 1 | a check failed: an audit of `plan`, an error of `data check`, an answer of `extract` with a problem |
| 2 | wrong use, or a recipe, file, model or run that cannot be used: one line says where, what and what to do |
| 70 | a bug of spantune: the line names the log file with the traceback; please report it |
| 130, 143 | ended by SIGINT or SIGTERM |

The log file of a bug is `crash.log` in the run folder, or else in the folder of the user's logs. No command replaces a
file or folder without `--force`, and none replaces what it reads, even then. A run's own derived files are written
again without it: its report, its calibration, and the predictions for the very same corpus.

Credentials are masked as `***` in all that is printed or written: user and password of a URL, its parameters such as
`token=`, authorisation headers, and the values of environment variables named `…_KEY`, `…_TOKEN`, `…_SECRET` or
`…_PASSWORD`. Control characters of texts, labels and paths are shown as escapes such as `\\x1b`.
""".strip()


def main() -> int:
    """Write the pages, or with `--check` only compare them; returns the exit code."""
    if sys.argv[1:] not in ([], ["--check"]):
        print("usage: python docs/generate.py [--check]", file=sys.stderr)
        return 2
    wrong = 0
    for name, make_page in PAGES.items():
        path, text = ROOT / name, make_page()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if sys.argv[1:]:
            wrong = 1
            print(f"{name} is not what the code says; run python docs/generate.py", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{name} written", file=sys.stderr)
    return wrong


def cli_page() -> str:
    """Every command with its help text, arguments and options."""
    root = typer.main.get_command(app)
    lines = [
        MADE,
        "# Commands",
        "",
        _prose(root.help),
        "",
        *_EXIT_CODES.splitlines(),
    ]
    for name, command in _commands(root, "spantune"):
        lines += ["", f"## {name}", "", "```", " ".join([name, *usage(command)]), "```", "", _help(command.help)]
        shown = [parameter for parameter in command.params if parameter.name != "help" and not parameter.hidden]
        rows = [_parameter(command, parameter) for parameter in shown]
        if rows:
            lines += ["", "| | value | default | |", "|---|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def recipe_page() -> str:
    """Every section and key of a recipe."""
    lines = [
        MADE,
        "# Recipe",
        "",
        "A recipe is a YAML file with the sections below. Every key can be set on the command line, after the recipe:",
        "`section.key=value`, the value in YAML (`train.max_steps=24`, `'lora.targets=[q_proj,v_proj]'`). An unknown",
        "key is an error that names the nearest valid one. The resolved recipe is saved as `config.yaml`.",
    ]
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert isinstance(section, type) and issubclass(section, BaseModel)
        need = " Required." if field.is_required() else ""
        lines += ["", f"## {name}", "", _prose(section.__doc__) + need, "", *_fields(name, section)]
    lines += ["", "## A label", "", _prose(Label.__doc__), "", *_fields("", Label)]
    return "\n".join(lines) + "\n"


def contributing_page() -> str:
    """CONTRIBUTING.md as it stands, with the source tree between its markers made anew."""
    return _between("CONTRIBUTING.md", TREE_START, TREE_END, f"```\n{source_tree()}\n```")


def init_page(page: str = "docs/init.md") -> str:
    """docs/init.md, or its Chinese, as it stands, with the table of chosen values between its markers made anew."""
    chinese = page.endswith(".zh.md")
    names = ("学习率", "批次", "轮数", "秩", "alpha", "损失算在")
    names = names if chinese else ("learning rate", "batch", "epochs", "rank", "alpha", "loss on")
    read = "读取片段（`task.answer: spans`）时：" if chinese else "Where spans are read (`task.answer: spans`):"
    lines = [
        "", _row("", *names), "|---" * 7 + "|",
        *(_row(*_chosen(row, chinese=chinese), f"`{row.loss_on}`") for row in RECOMMENDATIONS),
        "", read,
        "", _row("", *names[:-1]), "|---" * 6 + "|",
        *(_row(*_chosen(row, chinese=chinese)) for row in READ_RECOMMENDATIONS),
        "",
    ]  # fmt: skip
    return _between(page, TABLE_START, TABLE_END, "\n".join(lines))


def _chosen(row: Recommendation, *, chinese: bool) -> list[str]:
    """The cells of a row of either table, but the loss."""
    rate = f"`{row.learning_rate:.0e}`".replace("e-0", "e-")
    name = _in_chinese(row.name) if chinese else row.name
    return [name, rate, str(row.batch_examples), f"{row.epochs:g}", str(row.rank), f"{row.alpha:g}"]


def _in_chinese(sizes: str) -> str:
    """The sizes that a row of the table is for."""
    for pattern, words in {
        r"under (\S+) B weights, ": r"不到 \1 B 参数，",
        r"over (\S+) B weights, ": r"\1 B 参数以上，",
        r"(\S+) to (\S+) B weights, ": r"\1 到 \2 B 参数，",
        r"up to ([\d,]+) documents": r"至多 \1 个文档",
        r"over ([\d,]+) documents": r"超过 \1 个文档",
    }.items():
        sizes = re.sub(pattern, words, sizes)
    return sizes


def source_tree() -> str:
    """Every package and module with its first sentence, packages in the order of the layers, the highest first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(part for part in project["tool"]["importlinter"]["contracts"] if part["type"] == "layers")
    packages = [name.strip() for layer in contract["layers"] for name in layer.split("|")]
    lines = [(f"{SOURCE.name}/", first_sentence(SOURCE / "__init__.py"))]
    for package in packages:
        lines += _tree(SOURCE / package, depth=1)
    column = max(len(name) for name, _ in lines) + 2
    shortened = (textwrap.shorten(sentence, WIDTH - column, placeholder=" …") for _, sentence in lines)
    return "\n".join(
        f"{name:{column}}{sentence}".rstrip() for (name, _), sentence in zip(lines, shortened, strict=True)
    )


def first_sentence(module: Path) -> str:
    """The first sentence of a module's docstring without its full stop; empty where there is none."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=\.)\s", _prose(docstring), maxsplit=1)[0].rstrip(".")


def _between(page: str, start: str, end: str, made: str) -> str:
    """The text of a page with what stands between two markers replaced."""
    before, found_start, rest = (ROOT / page).read_text(encoding="utf-8").partition(start)
    _, found_end, after = rest.partition(end)
    assert found_start and found_end, f"{page} has lost the markers of its generated part"
    return f"{before}{start}\n{made}\n{end}{after}"


PAGES: dict[str, Callable[[], str]] = {
    "docs/cli.md": cli_page,
    "docs/recipe.md": recipe_page,
    "docs/python.md": python_page,
    "docs/results.md": results_page,
    "docs/decisions.md": decisions_page,
    "docs/init.md": init_page,
    "docs/init.zh.md": lambda: init_page("docs/init.zh.md"),
    "CONTRIBUTING.md": contributing_page,
}


def _tree(package: Path, depth: int) -> Iterator[tuple[str, str]]:
    indent = "    " * depth
    yield f"{indent}{package.name}/", first_sentence(package / "__init__.py")
    for path in sorted(package.iterdir()):
        if (path / "__init__.py").is_file():
            yield from _tree(path, depth + 1)
        elif path.suffix == ".py" and path.name != "__init__.py":
            yield f"{indent}    {path.name}", first_sentence(path)


def _commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    for child, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {child}")
        else:
            yield f"{name} {child}", command


def _parameter(command: Any, parameter: Any) -> str:
    hint = get_type_hints(command.callback)[parameter.name]
    if parameter.param_type_name == "argument":
        shown = f"`{argument_name(parameter)}`"
    else:
        shown = " / ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
    kind = "" if hint is bool else _type(hint)
    default = "" if parameter.default in (None, False, True) else f"`{parameter.default}`"
    if hint is bool and parameter.secondary_opts:
        default = f"`{(parameter.opts if parameter.default else parameter.secondary_opts)[0]}`"
    return _row(shown, kind, "required" if parameter.required else default, parameter.help or "")


def _help(text: str | None) -> str:
    """A command's docstring, and its examples as a code block."""
    paragraphs, shown = examples(text or "")
    code = ["\n".join(["```bash", *shown, "```"])] if shown else []
    return "\n\n".join([*paragraphs, *code])


def _fields(prefix: str, section: type[BaseModel]) -> list[str]:
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        shown = field.alias or name
        key = f"`{prefix}.{shown}`" if prefix else f"`{shown}`"
        rows.append(_row(key, _type(field.annotation) + _limits(field), _default(field), field.description or ""))
    return rows


def _type(hint: Any) -> str:
    """A type in words: choices as code, alternatives with "or", without None."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in parts if part is not types.NoneType)
    if origin in (list, tuple):
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"{_type(parts[1])} by {_type(parts[0])}"
    if origin is Annotated:
        return _type(parts[0])
    return TYPES.get(hint) or f"{hint.__name__.lower()}"


def _limits(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits: list[str] = []
    for part in field.metadata:
        limits += [f"{sign} {getattr(part, key):g}" for key, sign in signs.items() if hasattr(part, key)]
        limits += [f"`{part.pattern}`"] if getattr(part, "pattern", None) else []
        limits += ["not empty"] if getattr(part, "min_length", None) else []
    return f", {', '.join(limits)}" if limits else ""


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default is PydanticUndefined:
        return "required"
    if field.default is None or field.default == "":
        return ""
    value = {True: "true", False: "false"}.get(field.default) if isinstance(field.default, bool) else field.default
    return f"`{value}`"


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _prose(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").split())


if __name__ == "__main__":
    sys.exit(main())
