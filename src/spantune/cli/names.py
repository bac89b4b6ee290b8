"""The names of formats, corpora, recipes, models and runs, for completion in the shell and for lists in help pages.

Completion runs at every press of the tab key. To be fast, it only lists names and folders and opens no corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

RUNS = "runs"
"""The folder in which run folders are searched if the user has typed nothing yet."""


def read_formats(incomplete: str) -> list[str]:
    """Complete the name of a corpus format."""
    from spantune.data import formats

    return _beginning(formats.names(), incomplete)


def written_formats(incomplete: str) -> list[str]:
    """Complete the name of a corpus format that can be written."""
    return _beginning(_writable(), incomplete)


def corpora(incomplete: str) -> list[str]:
    """Complete `bundled:NAME` of a corpus. For any other text, the shell completes file names."""
    from spantune.data import formats

    return _beginning((f"bundled:{name}" for name in formats.BUNDLED), incomplete) if incomplete else []


def recipes(incomplete: str) -> list[str]:
    """Complete `bundled:NAME` of a recipe. For any other text, the shell completes file names."""
    return _beginning((f"bundled:{name}" for name in recipe_names()), incomplete) if incomplete else []


def models(incomplete: str) -> list[str]:
    """Complete `bundled:NAME` of a model. For any other text, the shell completes file names."""
    return _beginning((f"bundled:{name}" for name in MODELS), incomplete) if incomplete else []


def settings(incomplete: str) -> list[str]:
    """Complete `section.key=` of a recipe."""
    from spantune.core import Config

    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    keys = (
        f"{name}.{field.alias or key}="
        for name, section in sections.items()
        for key, field in getattr(section, "model_fields", {}).items()
    )
    return _beginning(keys, incomplete)


def run_folders(incomplete: str) -> list[str]:
    """Complete the path of a run folder in the typed folder, or in `runs` if nothing is typed."""
    typed = Path(incomplete or RUNS)
    parents = {typed, typed.parent if incomplete and not incomplete.endswith("/") else typed}
    folders = {folder for parent in parents if parent.is_dir() for folder in (parent, *parent.iterdir())}
    return _beginning(sorted(str(folder) for folder in folders if (folder / "config.yaml").is_file()), incomplete)


def _beginning(names: Iterator[str] | list[str] | tuple[str, ...], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _writable() -> list[str]:
    from spantune.data import formats

    return sorted(name for name, format in formats.FORMATS.items() if format.write is not None)


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with spantune."""
    from spantune.core import bundled_recipes

    return list(bundled_recipes())


MODELS = ("gemma3-270m", "smollm2-135m")
"""The models that come in packages. They are repeated here, since importing `models.bundled` needs torch."""


def _format_list() -> str:
    from spantune.data import formats

    written = set(_writable())
    listed = ", ".join(name if name in written else f"{name} (read only)" for name in formats.names())
    return f"{listed}. docs/data-formats.md shows each with an example."


def _corpus_list() -> str:
    from spantune.data import formats

    return ", ".join(f"bundled:{name}" for name in formats.BUNDLED)


LISTS: dict[str, Callable[[], str]] = {
    "Formats": _format_list,
    "Corpora that come with spantune": _corpus_list,
    "Recipes that come with spantune": lambda: ", ".join(f"bundled:{name}" for name in recipe_names()),
    "Models that come in packages": lambda: ", ".join(f"bundled:{name}" for name in MODELS),
}
"""Title to function for the lists at the end of a help page; the function returns the text of the list."""
