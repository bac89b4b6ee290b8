"""Lines of columns as CoNLL has them, and what a whole file of them shows of itself.

The survey reads the file once and keeps counts alone, so that a file of any size can be read a second time knowing its
separator, width, scheme and kind of tokens. The trade-off is that the majority decides: a line of another shape is
the line's fault. It refuses a file of one column, and a column of tags that is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spantune.errors import ConfigError, DataError
from spantune.formats.files import read_lines
from spantune.formats.raw import Options
from spantune.formats.tags import OUTSIDE, Scheme, SchemeCensus, Tag, parse_tag
from spantune.formats.tokens import TokenCensus

DOCSTART = "-DOCSTART-"

_COMMENT = re.compile(r"#(?:[ \t]|$)")
_FIELD = re.compile(r"# *([\w.:-]+) *= ?(.*)")
_STATED = ("id", "sent_id", "text")
_BLANKS = re.compile(r"[ \t]+")


@dataclass(slots=True)
class Sentence:
    """Lines with tokens, each with its number, what comments state, and the number of the `-DOCSTART-` above."""

    rows: list[tuple[int, str]] = field(default_factory=list)
    stated: dict[str, str] = field(default_factory=dict)
    group: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """What a whole file shows: `token` and `tag` are columns from 0, `joiner` None decides at each boundary."""

    is_tabbed: bool
    width: int
    token: int
    tag: int
    scheme: Scheme
    is_segmented: bool
    joiner: str | None


def survey(path: Path, options: Options) -> Layout:
    """What all lines of `path` taken together show.

    Raises:
        DataError: most lines have one column, or the file cannot be read.
        ConfigError: `options.column` is no column of the file.
    """
    column = tag_column(options)
    shapes: Counter[tuple[bool, int]] = Counter()
    scheme, censuses, counted = SchemeCensus(), (TokenCensus(), TokenCensus()), True
    for sentence in sentences(path, Counter(), column):
        before = OUTSIDE
        for index, (_, line) in enumerate(sentence.rows):
            row = columns(line, "\t" in line)
            shapes["\t" in line, len(row)] += 1
            counted = counted and row[0] == str(index + 1)
            for census, token in zip(censuses, row, strict=False):
                census.add(token, index == 0)
            tag = tag_in(row, column) or OUTSIDE
            scheme.add(tag, before)
            before = tag
        scheme.add(OUTSIDE, before)
    if not shapes or shapes.most_common(1)[0][0][1] < 2:
        raise DataError(
            "most lines have one column; expected a token and a tag on each, with a tab or blanks between, and a blank "
            "line between sentences",
            path=path,
        )
    (is_tabbed, width), _ = shapes.most_common(1)[0]
    place = 1 if counted and width > 2 else 0
    if not -width <= column < width or column % width == place:
        raise ConfigError(
            f"{path}: column {column} cannot hold the tags; the lines have {width} columns, from 0, and {place} holds "
            "the tokens: choose another"
        )
    tokens = censuses[place]
    joiner = tokens.joiner(options.joiner)
    return Layout(is_tabbed, width, place, column % width, scheme.scheme, tokens.is_segmented, joiner)


def sentences(path: Path, notes: Counter[str], column: int) -> Iterator[Sentence]:
    """Yield the sentences of `path`; comment lines stand before the first token of one."""
    sentence = Sentence()
    for number, line in read_lines(path, notes, blank=True):
        is_start = line.startswith(DOCSTART)
        if is_start or not line.strip(" \t"):
            if sentence.rows:
                yield sentence
                sentence = Sentence(group=sentence.group)
            sentence.group += is_start
        elif not sentence.rows and is_comment(line, column):
            stated = _FIELD.match(line)
            if stated and stated[1] in _STATED and stated[1] not in sentence.stated:
                sentence.stated[stated[1]] = stated[2]
            else:
                notes["comment line"] += 1
        else:
            sentence.rows.append((number, line))
    if sentence.rows:
        yield sentence


def is_comment(line: str, column: int) -> bool:
    """Whether a line is a comment; a token `#` has a tag on its line, a comment `# key = value` may end like one."""
    if not _COMMENT.match(line):
        return False
    return bool(_FIELD.match(line)) or tag_in(columns(line, "\t" in line), column) is None


def tag_in(row: list[str], column: int) -> Tag | None:
    """The tag in `column`; None where there is no such column, or no tag in it."""
    return parse_tag(row[column]) if -len(row) <= column < len(row) else None


def columns(line: str, is_tabbed: bool) -> list[str]:
    """The columns of a line, at tabs or else at runs of blanks."""
    return line.split("\t") if is_tabbed else _BLANKS.split(line.strip(" \t"))


def tag_column(options: Options) -> int:
    """The column of the tags that the user names, or the last.

    Raises:
        ConfigError: it is given as a name.
    """
    if isinstance(options.column, str):
        raise ConfigError(f"column {options.column!r}: token lines have no header; give the column's number, from 0")
    return -1 if options.column is None else options.column
