"""The recipes that come with spantune: `bundled:NAME`, such as `bundled:demo`, may be given as a recipe path."""

from __future__ import annotations

from pathlib import Path

from spantune.core.errors import ConfigError, nearest

PREFIX = "bundled:"


def bundled_recipes() -> dict[str, Path]:
    """Return name to file of the bundled recipes, from the installed package or else from the checkout."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    folder = installed if installed.is_dir() else package.parents[1] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(recipe: str | Path) -> Path:
    """Return the file of a recipe, which is given as a path or as `bundled:NAME`.

    Raises:
        ConfigError: no bundled recipe has this name. That a path exists is not checked.
    """
    if not str(recipe).startswith(PREFIX):
        return Path(recipe)
    name, recipes = str(recipe).removeprefix(PREFIX), bundled_recipes()
    if name not in recipes:
        raise ConfigError(f"no recipe {name!r} comes with spantune; {nearest(name, recipes)}")
    return recipes[name]


def description(recipe: Path) -> str:
    """Return the description of a recipe in one line: its first comment, up to the line that begins with `# Run:`."""
    lines = []
    for line in recipe.read_text(encoding="utf-8").split("\n"):
        if not line.startswith("#") or line.startswith("# Run:"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)
