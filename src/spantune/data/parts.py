"""A corpus file in parts: held in memory as a whole, or read from the file again whenever a part is needed.

Code that processes a corpus works on `Part`s. A Part yields its documents, and reads a single document again by its
place in the file. So the memory that is needed does not grow with the corpus, and a file that fits into memory is read
only once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from spantune.core import ConfigError, DataError, is_url
from spantune.data import formats
from spantune.data.engines import LARGE, PART, Engine, Here, OnRay
from spantune.data.raw.document import Item, Options, RawDocument
from spantune.data.raw.json_files import begins_array, read_json_lines
from spantune.data.raw.json_records import Record
from spantune.data.raw.stored import stored_file
from spantune.data.raw.stretches import count_lines, divided, is_divisible, line_starts
from spantune.data.raw.text_files import Stretch

DEFAULTS = Options()
SMALLEST = 1 << 20
"""The fewest bytes of a part, unless the file is smaller."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file in memory: its documents and errors as the reader yielded them, and the reader's notes with counts."""

    path: Path
    format: str
    items: tuple[Item, ...]
    notes: Mapping[str, int]

    @property
    def documents(self) -> list[RawDocument]:
        """The documents that could be read."""
        return [item for item in self.items if isinstance(item, RawDocument)]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The whole file as a single part."""
        return (Part(self.path, self.format, items=self.items),)

    @property
    def whole(self) -> Part:
        """The part that can read any document of the file again."""
        return self.parts[0]


@dataclass(frozen=True, slots=True)
class Divided:
    """A file that is read in parts, each part when it is needed."""

    path: Path
    format: str
    parts: tuple[Part, ...]

    @property
    def whole(self) -> Part:
        """A part that can read any document of the file again."""
        return self.parts[0]

    def held(self) -> Source:
        """Read the whole file into memory, as `read_source` does.

        Raises:
            DataError: as `read_source` raises it.
        """
        return read_source(self.path, self.format, replace(self.whole.options, stretch=None))


@dataclass(frozen=True, slots=True)
class Part:
    """Documents of a file: all of them, in `items`, or those in the stretch of the file that `options` has."""

    path: Path
    format: str
    options: Options = DEFAULTS
    items: tuple[Item, ...] | None = None

    def read(self, notes: Counter[str]) -> Iterator[tuple[int, Item]]:
        """Yield (place, item) for each document or error; `document` finds an item again by its place.

        Args:
            notes: what reading notes is counted here.

        Raises:
            DataError: the rest of the file cannot be read.
        """
        if self.items is not None:
            yield from enumerate(self.items)
            return
        stretch = self.options.stretch
        assert stretch is not None
        starts = line_starts(self.path, stretch)
        for item in formats.items(self.path, self.format, notes, self.options):
            yield starts[item.line - stretch.line] if item.line is not None else -1, item

    def document(self, place: int, line: int) -> RawDocument:
        """Read the document at `place`, which is in the line `line`, again.

        Raises:
            DataError: the file has changed since.
        """
        if self.items is not None:
            item: Item | None = self.items[place]
        else:
            item = next(formats.items(self.path, self.format, Counter(), self._at(place, line)), None)
        if isinstance(item, RawDocument):
            return item
        raise item or self.changed(line)

    def text(self, place: int, line: int) -> str:
        """Read the text of the document at `place`, which is in the line `line`, again, without its entities.

        Raises:
            DataError: the file has changed since.
        """
        if self.items is not None:
            return self.document(place, line).text
        options = self._at(place, line)
        record = next(read_json_lines(self.path, Counter(), options.encoding, options.stretch), None)
        if isinstance(record, Record):
            return record.text("text", blank=True)
        raise record or self.changed(line)

    def changed(self, line: int | None = None) -> DataError:
        """Return the error for a file that has changed since it was first read."""
        return DataError("has changed since it was read first; begin again", path=self.path, line=line)

    def _at(self, place: int, line: int) -> Options:
        """Return the options for reading the single line that begins at byte `place`."""
        return replace(self.options, stretch=Stretch(place, place + 1, line))


def read_source(file: str | Path, format: str | None = None, options: Options | None = None) -> Source:
    """Read `file` into memory. A document that cannot be read does not raise: its error is one of the items.

    Raises:
        DataError: the file cannot be read at all, or not to its end.
    """
    notes: Counter[str] = Counter()
    path = formats.resolve(file)
    name = format or formats.detect(path, options or Options())
    items = tuple(formats.items(path, name, notes, options or Options()))
    return Source(path, name, items, dict(+notes))


def size_of(file: str | Path) -> int:
    """Return the size of a corpus file in bytes; 0 for a folder, for a URL, and if there is no such file."""
    if is_url(str(file)):
        return 0
    path = formats.resolve(file)
    return path.stat().st_size if path.is_file() else 0


def open_source(file: str | Path, format: str | None, options: Options, engine: Engine) -> Source | Divided:
    """Read `file` into memory if it is small or must be read as a whole; otherwise divide it into parts.

    Raises:
        ConfigError: as `open_in_parts` raises it.
        DataError: the file cannot be read.
    """
    return open_in_parts(file, format, options, engine) or read_source(file, format, options)


def open_in_parts(file: str | Path, format: str | None, options: Options, engine: Engine) -> Divided | None:
    """Divide `file` into parts; None if it must be read as a whole, or is small and the engine is this process.

    Raises:
        ConfigError: the engine is Ray, and the file cannot be read in parts.
        DataError: the file cannot be read.
    """
    is_stored = isinstance(engine, OnRay) and is_url(str(file))
    path = stored_file(str(file)) if is_stored else formats.resolve(file)
    if isinstance(engine, Here) and size_of(path) < LARGE:
        return None
    name = format or formats.detect(path, options)
    is_able = formats.of_name(name).divisible and is_divisible(path, options.encoding)
    if is_able and not begins_array(path, options.encoding):
        return divide(path, name, options, engine)
    if isinstance(engine, OnRay):
        able = ", ".join(name for name in formats.FORMATS if formats.FORMATS[name].divisible)
        raise ConfigError(
            f"{path}: --engine ray reads JSON lines in UTF-8 of the formats {able}, and this is not one of them; "
            "convert it first: spantune data convert"
        )
    return None


def divide(path: Path, format: str, options: Options, engine: Engine, size: int | None = None) -> Divided:
    """Divide the file into parts of about `size` bytes.

    Without `size`, each worker gets about four parts, and a part has from `SMALLEST` to `PART` bytes.

    Raises:
        DataError: the file cannot be read.
    """
    size = size or max(SMALLEST, min(PART, path.stat().st_size // (4 * engine.workers)))
    stretches = divided(path, size)
    parts, line = [], 1
    for stretch, lines in zip(stretches, engine.map(count_lines, None, stretches, "count lines"), strict=True):
        part_options = replace(options, stretch=Stretch(stretch.begin, stretch.end, line))
        parts.append(Part(path, format, part_options))
        line += lines
    return Divided(path, format, tuple(parts))
