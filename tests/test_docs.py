"""The documentation agrees with the code: links, commands, recipes, both READMEs and the generated pages."""

from __future__ import annotations

import ast
import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer

import spantune
from spantune.cli import app
from spantune.core import load_config

ROOT = Path(__file__).parents[1]
OWN_RECIPE = "recipe.yaml"
"""The recipe that the reader makes with `spantune init`."""
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HOSTS = {
    "127.0.0.1",
    "ai.google.dev",
    "example.org",
    "download.pytorch.org",
    "keepachangelog.com",
    "semver.org",
    "spantune",
}
MARKS = {"FIGURES:demo"}
TRANSLATED = sorted((ROOT / "docs").rglob("*.zh.md"))
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _prose(text: str) -> str:
    return _BLOCK.sub("", text)


def _blocks(text: str, language: str) -> list[str]:
    return [content for name, content in _BLOCK.findall(text) if name == language]


def _lines(text: str) -> list[str]:
    """Return the command lines of a page, without comments; lines joined by a backslash are one line."""
    lines = [line for block in _blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _spantune_arguments(line: str) -> Iterator[list[str]]:
    """Yield the arguments of each `spantune` in a shell line, without pipes and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|><;&")
    lexer.whitespace_split = True
    part: list[str] = []
    for token in [*lexer, ";"]:
        if not set(token) <= set("|><;&"):
            part.append(token)
            continue
        if part and part[0] == "spantune":
            yield part[1:]
        part = []


def _parse(arguments: list[str]) -> Any:
    """Return the parsed context of a command without running it."""
    command = _commands()
    context = None
    while hasattr(command, "commands"):
        assert arguments, "a group needs a command"
        assert arguments[0] in command.commands, f"no command {arguments[0]!r}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    context = command.make_context("spantune", list(arguments))
    return context


@functools.cache
def _commands() -> Any:
    return typer.main.get_command(app)


def _check_command(arguments: list[str]) -> None:
    if arguments == ["--version"]:
        return
    values = _parse(arguments).params
    recipe = values.get("recipe")
    overrides = list(values.get("overrides") or ())
    if str(recipe).startswith("bundled:"):
        load_config(recipe, overrides)
    elif str(recipe) == OWN_RECIPE:
        load_config("bundled:demo", overrides)
    elif recipe is not None:
        assert (ROOT / recipe).is_file(), f"no recipe {recipe}"
        load_config(ROOT / recipe, overrides)
    elif overrides:
        load_config("bundled:demo", overrides)


def _headings(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", _prose(text), re.MULTILINE)]


def _tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a page as rows of cells, without the line of dashes under the header."""
    tables: list[list[list[str]]] = [[]]
    for line in _prose(text).splitlines():
        if line.startswith("|"):
            tables[-1].append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif tables[-1]:
            tables.append([])
    return [[row for row in table if set("".join(row)) - set("-")] for table in tables if table]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_prose(_read(page))):
        if not target.startswith("http"):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_foreign_address_and_no_path_of_a_machine(page: Path) -> None:
    text = _read(page)
    for address in re.findall(r"https?://[^\s)>\"'`]+", text):
        assert urlsplit(address).hostname in HOSTS, address
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home)\b", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path) -> None:
    for line in _lines(_read(page)):
        for arguments in _spantune_arguments(line):
            _check_command(arguments)


@pytest.mark.parametrize("readme", READMES, ids=lambda page: page.name)
def test_readme_has_commands_of_every_kind(readme: Path) -> None:
    parsed = [arguments for line in _lines(_read(readme)) for arguments in _spantune_arguments(line)]
    assert {arguments[0] for arguments in parsed} == {
        "init", "demo", "data", "plan", "train", "compare", "extract", "serve", "export",
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "spantune sevre runs/demo",
        "spantune train recipes/demo.yaml --rsume runs/demo",
        "spantune train recipes/no-such.yaml",
        "spantune train recipes/demo.yaml train.max_step=24",
        "spantune data convert one.jsonl two.jsonl",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    (arguments,) = _spantune_arguments(line)
    with pytest.raises(Exception, match=r"sevre|rsume|no-such|max_step|to"):
        _check_command(arguments)


def test_commands_are_found_behind_pipes() -> None:
    line = "echo 患者。 | spantune extract runs/demo - > out.jsonl"
    assert list(_spantune_arguments(line)) == [["extract", "runs/demo", "-"]]


@pytest.mark.parametrize("readme", READMES, ids=lambda page: page.name)
def test_command_table_is_whole(readme: Path) -> None:
    root: Any = typer.main.get_command(app)
    names = {f"`spantune {name}`" for name, command in root.commands.items() if not hasattr(command, "commands")}
    names |= {f"`spantune data {name}`" for name in root.commands["data"].commands}
    rows = [row[0] for table in _tables(_read(readme)) for row in table]
    assert {row for row in rows if row.startswith("`spantune ")} == names


@pytest.mark.parametrize("readme", READMES, ids=lambda page: page.name)
def test_python_examples_use_public_names(readme: Path) -> None:
    examples = _blocks(_read(readme), "python")
    assert examples
    for example in examples:
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "spantune":
                assert node.attr in spantune.__all__


def test_python_examples_import_names_that_exist() -> None:
    imports = [
        node
        for page in PAGES
        for example in _blocks(_read(page), "python")
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spantune")
    ]
    assert imports
    for node in imports:
        public = importlib.import_module(node.module or "").__all__
        assert {alias.name for alias in node.names} <= set(public), ast.unparse(node)


def test_readmes_are_equal() -> None:
    english, chinese = map(_read, READMES)
    assert _headings(english) == _headings(chinese)
    for language in ("bash", "json"):
        assert _blocks(english, language) == _blocks(chinese, language)
    spans = [set(_CODE.findall(_prose(text))) for text in (english, chinese)]
    assert spans[0] == spans[1]
    codes = [[ast.dump(ast.parse(block)) for block in _blocks(text, "python")] for text in (english, chinese)]
    assert codes[0] == codes[1]


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_translated_page_has_the_headings_code_and_tables_of_the_english_one(page: Path) -> None:
    english, chinese = _read(page.with_name(page.name.replace(".zh.md", ".md"))), _read(page)
    assert _headings(english) == _headings(chinese)
    for language in ("bash", "json", "python", "yaml", "text"):
        assert _blocks(english, language) == _blocks(chinese, language)
    rows = [[row for table in _tables(text) for row in table] for text in (english, chinese)]
    assert [len(row) for row in rows[0]] == [len(row) for row in rows[1]]
    for english_row, chinese_row in zip(*rows, strict=True):
        assert sorted(_CODE.findall(" ".join(english_row))) == sorted(_CODE.findall(" ".join(chinese_row)))
        numbers = [[cell for cell in row if re.fullmatch(r"[\d.,–]+", cell)] for row in (english_row, chinese_row)]
        assert numbers[0] == numbers[1]


def test_readme_tables_are_equal() -> None:
    english, chinese = (_tables(_read(readme)) for readme in READMES)
    assert [len(table) for table in english] == [len(table) for table in chinese]
    for english_table, chinese_table in zip(english, chinese, strict=True):
        for left, right in zip(english_table, chinese_table, strict=True):
            assert len(left) == len(right) == len(english_table[0])
            assert [sorted(_CODE.findall(cell)) for cell in left] == [sorted(_CODE.findall(cell)) for cell in right]
            assert [cell == "–" for cell in left] == [cell == "–" for cell in right]
            assert [cell.count("**") for cell in left] == [cell.count("**") for cell in right]
    names = [next(table for table in tables if len(table[0]) == 7)[0] for tables in (english, chinese)]
    assert names[0] == names[1]


def test_readmes_mark_or_hold_the_figures() -> None:
    english, chinese = (set(re.findall(r"<!-- (FIGURES:[\w-]+) -->", _read(readme))) for readme in READMES)
    assert english == chinese == MARKS


def _private_apis() -> dict[str, list[str]]:
    """Return the private names of other libraries in docs/compatibility.md, with the files that use each."""
    table = _tables(_read(ROOT / "docs" / "compatibility.md"))[-1][1:]
    return {row[1].strip("`"): re.findall(r"`([^`]+)`", row[2]) for row in table}


def test_private_apis_stand_in_the_files_that_the_table_names() -> None:
    apis = _private_apis()
    assert len(apis) > 8
    for name, files in apis.items():
        assert files
        for file in files:
            assert name in _read(ROOT / "src" / "spantune" / file), f"{name} is not in {file}"


def test_every_private_name_of_a_library_is_in_the_table() -> None:
    trees = {path: ast.parse(_read(path)) for path in (ROOT / "src" / "spantune").rglob("*.py")}
    nodes = {path: list(ast.walk(tree)) for path, tree in trees.items()}
    ours = {
        node.name
        for part in nodes.values()
        for node in part
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    ours |= {
        node.attr
        for part in nodes.values()
        for node in part
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    ours |= {
        node.target.id
        for part in nodes.values()
        for node in part
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)  # the fields of a dataclass
    }
    public = {"_asdict", "_replace", "_fields", "_exit"}  # documented with their underscore
    table = " ".join(_private_apis())
    for path, part in nodes.items():
        used = {node.attr for node in part if isinstance(node, ast.Attribute)}
        private = {name for name in used if name.startswith("_") and not name.startswith("__")} - ours - public
        assert [name for name in private if name not in table] == [], path


def test_every_module_says_what_it_holds() -> None:
    """The first sentence of a module is its line in the tree of CONTRIBUTING.md, so it must be unique."""
    paths = [path for path in (ROOT / "src" / "spantune").rglob("*.py") if _read(path).strip()]
    sentences = {path: ast.get_docstring(ast.parse(_read(path))) or "" for path in paths}
    firsts = [sentence.split("\n\n")[0] for sentence in sentences.values()]
    assert [path for path, sentence in sentences.items() if not sentence] == []
    assert sorted({first for first in firsts if firsts.count(first) > 1}) == []


@pytest.mark.no_cover
@pytest.mark.parametrize("tool", ["generate.py", "errors.py"])
def test_generated_pages_are_up_to_date(tool: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / tool), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_table_of_models_and_gpus_is_up_to_date() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    page: Any = importlib.import_module("hardware_page")
    sys.path.pop(0)
    name = "Phi-4 14B"  # one row only, because making each model takes a second
    row = page.row(name, page.MODELS[name])
    for path in page.PAGES:
        assert row in _read(path).splitlines(), "run python docs/hardware_page.py"


def test_generated_pages_do_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys; sys.path.insert(0, 'docs'); import generate; print(generate.cli_page(), generate.recipe_page())"
    )
    pages = set()
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        pages.add(subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True).stdout)
    assert len(pages) == 1


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_commands_in_recipes_parse(recipe: Path) -> None:
    for line in _read(recipe).splitlines():
        for command in re.findall(r"spantune [a-z]+ recipes/[^)]*", line if line.startswith("#") else ""):
            _check_command(command.split()[1:])


@pytest.mark.no_cover
def test_the_site_builds_strictly_in_both_languages_and_loads_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): _read(path) for path in tmp_path.rglob("*.html")}
    assert {"index.html", "zh/index.html", "cli.html", "results/2026-11-25-h100-extract.html"} <= set(pages)
    for name, page in pages.items():
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"' >]+)", page)
        loaded += re.findall(r"<link\b[^>]*rel=[\"']?(?:stylesheet|icon|preload|preconnect)[^>]*>", page)
        assert [address for address in loaded if "//" in address] == [], name
        anchors = re.findall(r"<(?:a|h[1-6]) [^>]*\bid=[\"']?([^\"' >]+)", page)
        assert sorted({anchor for anchor in anchors if anchors.count(anchor) > 1}) == [], name
    styles = "".join(_read(path) for path in tmp_path.rglob("*.css"))
    assert not re.search(r"(?:url\(|@import)\s*[\"']?https?:", styles)
