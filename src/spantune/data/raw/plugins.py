"""Formats that other packages add, as entry points of the group `spantune.formats`, each a `Format`.

They are loaded only if one is named, or if no format of spantune itself recognises a file.
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
    """The functions of a format.

    Args:
        read: yields the documents of a file as it states them, unverified, or a DataError for each that cannot be read.
            The Counter counts notes.
        write: writes documents, and counts in the Counter what the format cannot hold; None if the format can only be
            read.
        claims: returns whether a file can only be of this format.
        folder: whether `write` makes a folder.
        divisible: whether each line of a file is a document of its own, and `read` obeys `Options.stretch`.
    """

    read: Callable[[Path, Counter[str], Options], Iterator[Item]]
    write: Callable[[Path, Iterable[Document], Counter[str], Options], None] | None
    claims: Callable[[Sample], bool]
    folder: bool = False
    divisible: bool = False


def added_names(own: Collection[str]) -> list[str]:
    """Return the names of the formats that installed packages add, without loading a format.

    Args:
        own: the names of spantune's own formats.

    Raises:
        ConfigError: a package uses a name that another package, or spantune itself, uses.
    """
    packages: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in own or point.name in packages:
            holder = "spantune" if point.name in own else _package(packages[point.name])
            if holder == _package(point):  # the same package is found twice on the path
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
        ConfigError: the format cannot be loaded, or is no `Format`; the message names the package.
    """
    point = next(iter(entry_points(group=GROUP, name=name)))
    where = f"the format {name!r} of the package {_package(point)}, {point.value}"
    try:
        value: object = point.load()
    except Exception as error:  # the code of another package may raise anything
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
