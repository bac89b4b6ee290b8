"""The metadata of the package: version, README as shown on a package index, extras and citation."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

import spantune
from spantune.core import extras

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOME = PROJECT["project"]["urls"]["Homepage"]


def test_the_version_is_said_in_one_place() -> None:
    path = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert "version" in PROJECT["project"]["dynamic"] and path == ROOT / "src" / "spantune" / "__init__.py"
    assert path.read_text(encoding="utf-8").count(f'__version__ = "{spantune.__version__}"') == 1


def on_an_index(text: str) -> str:
    """Return the README as the build writes it into the package."""
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def test_links_of_the_readme_are_whole_on_an_index() -> None:
    page = on_an_index((ROOT / "README.md").read_text(encoding="utf-8"))
    targets = re.findall(r"""\]\(([^)\s]+)|(?:src|srcset|href)="([^"]+)\"""", page)
    links = [markdown or html for markdown, html in targets]
    assert len(links) > 10 and [link for link in links if not link.startswith(("https://", "#"))] == []


def test_pictures_and_pages_of_the_readme_go_to_different_places() -> None:
    made = on_an_index('[![a](docs/a.png)](docs/a.md) <img width=9 src="docs/b.svg"> [c](#c) [d](https://d.org/d)')
    raw = HOME.replace("github.com", "raw.githubusercontent.com") + "/main"
    assert made == (
        f'[![a]({raw}/docs/a.png)]({HOME}/blob/main/docs/a.md) <img width=9 src="{raw}/docs/b.svg"> '
        "[c](#c) [d](https://d.org/d)"
    )


def test_the_extra_train_is_the_modules_that_are_told_from_bugs_when_absent() -> None:
    names = {re.split(r"[<>=\[]", need)[0] for need in PROJECT["project"]["optional-dependencies"]["train"]}
    assert names == {{"PIL": "pillow"}.get(module, module) for module in extras.TRAIN}
    assert all(importlib.util.find_spec(module) for module in extras.TRAIN)


def test_the_citation_names_what_the_package_names() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = PROJECT["project"]
    assert (cited["license"], cited["repository-code"]) == (project["license"], project["urls"]["Source"])
    assert [author["name"] for author in cited["authors"]] == [author["name"] for author in project["authors"]]
    assert "version" not in cited
