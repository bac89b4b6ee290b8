"""The recipes that come with spantune, by name: `bundled:demo` stands wherever the path of a recipe does."""

from __future__ import annotations

from pathlib import Path

from spantune.core.errors import ConfigError, nearest

PREFIX = "bundled:"


def bundled_recipes() -> dict[str, Path]:
    """Return the files of the recipes by name: those of an installed package, else of the checkout."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    folder = installed if installed.is_dir() else package.parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(recipe: str | Path) -> Path:
    """Return the file of a recipe; `bundled:NAME` is one that comes with spantune.

    Raises:
        ConfigError: none of that name does.
    """
    if not str(recipe).startswith(PREFIX):
        return Path(recipe)
    name, recipes = str(recipe).removeprefix(PREFIX), bundled_recipes()
    if name not in recipes:
        raise ConfigError(f"no recipe {name!r} comes with spantune; {nearest(name, recipes)}")
    return recipes[name]


def description(recipe: Path) -> str:
    """Return what a recipe's first comment says of it, in one line: all before its command line."""
    lines = []
    for line in recipe.read_text(encoding="utf-8").split("\n"):
        if not line.startswith("#") or line.startswith("# Run:"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)
