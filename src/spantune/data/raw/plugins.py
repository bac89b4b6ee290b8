"""Formats that other packages add, as entry points of the group `spantune.formats`, each a `Format`.

They are loaded only when one is named, or when no format of spantune's own claims a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import NamedTuple

from spantune.core import ConfigError, Document, first_line
from spantune.data.raw.document import Item, Options, Sample

GROUP = "spantune.formats"


class Format(NamedTuple):
    """The functions of a format; `write` is None where it can only be read, `folder` says that it writes a folder.

    `divisible` says that each line of a file is a document of its own and `read` minds `Options.stretch`.

    `claims` says whether a file can only be this format, `read` yields what it states, unverified, and `write` counts
    in its notes what the format has no place for.
    """

    read: Callable[[Path, Counter[str], Options], Iterator[Item]]
    write: Callable[[Path, Iterable[Document], Counter[str], Options], None] | None
    claims: Callable[[Sample], bool]
    folder: bool = False
    divisible: bool = False


def added_names(own: Collection[str]) -> list[str]:
    """Return the names of the formats that installed packages add, without loading one.

    Args:
        own: the names of spantune's own formats.

    Raises:
        ConfigError: a package uses a name that another, or spantune itself, has.
    """
    packages: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in own or point.name in packages:
            holder = "spantune" if point.name in own else _package(packages[point.name])
            if holder == _package(point):  # one package that is found twice on the path
                continue
            raise ConfigError(
                f"the package {_package(point)} adds a format {point.name!r}, which {holder} has; uninstall one of "
                "the two"
            )
        packages[point.name] = point
    return sorted(packages)


def added(name: str) -> Format:
    """Load the format `name` of an installed package.

    Raises:
        ConfigError: it cannot be loaded, or is no `Format`; names the package.
    """
    point = next(iter(entry_points(group=GROUP, name=name)))
    where = f"the format {name!r} of the package {_package(point)}, {point.value}"
    try:
        value: object = point.load()
    except Exception as error:  # whatever another package's code may raise
        raise ConfigError(
            f"{where}, cannot be loaded: {type(error).__name__}: {first_line(error)}; update the package, or "
            "uninstall it"
        ) from None
    if not isinstance(value, Format):
        raise ConfigError(
            f"{where}, is {type(value).__name__}; expected a spantune.data.formats.Format: update the package, or "
            "uninstall it"
        )
    return value


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module
