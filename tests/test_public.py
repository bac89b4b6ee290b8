"""The public names of spantune, and that importing them loads no torch before a model is needed."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import spantune

SOURCE = Path(spantune.__file__).parent
HEAVY = ("torch", "transformers", "peft", "accelerate", "swanlab", "modelscope", "llguidance")
LIGHT = ("core", "data", "metrics", "encoding", "runs", "report", "cli")
"""The packages whose modules can all be imported without torch and without a tracker's SDK."""


def loaded_after(code: str, *arguments: str) -> tuple[set[str], str]:
    """Run `code` in a new interpreter; return the heavy packages that it has loaded, and what it printed."""
    script = (
        "import atexit, sys\n"
        f"loaded = lambda: sorted(set(sys.modules) & set({HEAVY!r}))\n"
        f"atexit.register(lambda: print('loaded:', *loaded(), file=sys.stderr))\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE.parent), "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, last = done.stderr.strip().split("\n")
    assert last.startswith("loaded:"), done.stderr
    return set(last.split()[1:]), done.stdout


def type_checkers_names() -> list[str]:
    """Return the names that the `if TYPE_CHECKING` block of spantune imports."""
    tree = ast.parse(inspect.getsource(spantune))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return [
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]


def test_all_is_the_sorted_public_names() -> None:
    assert spantune.__all__ == sorted(set(spantune.__all__)) == dir(spantune)
    assert spantune.__all__ == sorted(type_checkers_names())
    assert not any(name.startswith("_") for name in spantune.__all__)


@pytest.mark.parametrize("name", spantune.__all__)
def test_every_public_name_is_a_class_or_function_with_a_docstring(name: str) -> None:
    value = getattr(spantune, name)
    assert (inspect.isclass(value) or inspect.isfunction(value)) and value.__doc__
    assert value.__module__.startswith("spantune.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'spantune' has no attribute 'tarin'"):
        spantune.tarin  # noqa: B018


def test_importing_spantune_loads_nothing_heavy() -> None:
    assert loaded_after("import spantune")[0] == set()


def test_help_loads_nothing_heavy() -> None:
    run = "import runpy\nrunpy.run_module('spantune', run_name='__main__', alter_sys=True)"
    loaded, printed = loaded_after(run, "--help")
    assert loaded == set()
    for command in ("demo", "plan", "train", "evaluate", "compare", "report", "calibrate", "extract", "data"):
        assert f"  {command}" in printed


@pytest.mark.no_cover
@pytest.mark.parametrize("package", LIGHT)
def test_light_packages_load_nothing_heavy(package: str) -> None:
    modules = [
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in (SOURCE / package).rglob("*.py")
    ]
    assert len(modules) > 6
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    assert loaded_after(code)[0] == set()


def test_other_packages_are_used_by_their_public_names_only() -> None:
    """A name that a package imports from another package must be in that package's `__all__`."""
    private = []
    for path in SOURCE.rglob("*.py"):
        parts = path.relative_to(SOURCE).parts
        if len(parts) == 1:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("spantune."):
                continue
            package = node.module.split(".")[1]
            public = getattr(importlib.import_module(f"spantune.{package}"), "__all__", [])
            if package != parts[0]:
                private += [
                    f"{'/'.join(parts)}: {node.module}.{alias.name}"
                    for alias in node.names
                    if node.module != f"spantune.{package}" or alias.name not in public
                ]
    assert private == []


def test_reading_a_recipe_and_a_corpus_loads_nothing_heavy() -> None:
    code = (
        "import spantune\nfrom spantune.encoding.prompts import PRESETS\n"
        "assert len(spantune.read('bundled:clinical-zh-test').documents) == 120\nspantune.score, spantune.load_config"
    )
    assert loaded_after(code)[0] == set()


def test_the_probe_sees_a_heavy_package() -> None:
    assert "llguidance" in loaded_after("import llguidance")[0]
