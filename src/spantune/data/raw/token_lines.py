"""Files of token lines (CoNLL and its relatives): their sentences, and what each of their columns holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from spantune.core import DataError
from spantune.data.raw.tags import UNSET, Spelling, parse_tag, spelling_of
from spantune.data.raw.tokens import TokenCensus

DOCSTART = "-DOCSTART-"
_FILLERS = (DOCSTART, "-X-", "-Y-", "-Z-", "-", "_", "O", "")

_COMMENT = re.compile(r"#(?:[ \t]|$)")
_FIELD = re.compile(r"# *([\w.:-]+) *= ?(.*)")
_STATED = ("id", "sent_id", "text")
_GROUP = re.compile(r"(?:newdoc(?: id)?|(?:[\w-]+:)?document_id)")
_NEWDOC = re.compile(rf"# *{_GROUP.pattern}(?: *= ?(.*))?")
_NAMES = "global.columns"
_BLANKS = re.compile(r"[ \t]+")
_MOST_COLUMNS = 128
_MOST_ROWS = 500_000
_FEW_REPEATED = 5  # lines of a file in which no token differs from the one before, beyond chance
_MOST_STEPS = 1 << 14  # different pairs of a cell and the next in a column, above which it holds no tags
_TOKEN_NAMES = frozenset(("token", "tokens", "word", "words", "form", "wordform", "text"))
_TAG_NAME = re.compile(r"(?:ne[-_:].*|ner|ne|tags?|labels?|bio|iob2?|entit(?:y|ies)|(?:.*[-_:])(?:ner|tags?|labels?))")
_PHRASES = frozenset(  # of CoNLL-2000 and of TreeTagger
    ("NP", "VP", "PP", "ADJP", "ADVP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP", "NC", "VC", "PC")
)


@dataclass(slots=True)
class Sentence:
    """Token lines with their numbers, the fields that comments state, and the document to which it belongs."""

    rows: list[tuple[int, str]] = field(default_factory=list)
    stated: dict[str, str] = field(default_factory=dict)
    group: str = ""


def columns(line: str, is_tabbed: bool) -> list[str]:
    """Split a line into columns, at tabs or else at runs of blanks."""
    return line.split("\t", _MOST_COLUMNS) if is_tabbed else _BLANKS.split(line.strip(" \t"), maxsplit=_MOST_COLUMNS)


def is_without_token(line: str, row: Sequence[str], is_tabbed: bool, width: int) -> bool:
    """Whether a line of blank-separated columns begins with a blank and lacks one: its token is empty or blanks."""
    return not is_tabbed and len(row) == width - 1 and line[0] in " \t"


def may_be_token(line: str) -> bool:
    """Whether a line that begins like a comment has a tag on it, as a token `#` has, in a file of unknown layout."""
    row = columns(line, "\t" in line)
    return any(parse_tag(cell) for cell in (row[1:] if "\t" in line else row[-1:]))


def is_comment(line: str, is_token: Callable[[str], bool]) -> bool:
    """Whether a line is a comment; a token `#` has a tag on its line, a comment `# key = value` may end like one."""
    return bool(_COMMENT.match(line)) and (bool(_FIELD.match(line)) or not is_token(line))


def sentences(
    lines: Iterable[tuple[int, str]],
    notes: Counter[str],
    is_token: Callable[[str], bool] = may_be_token,
    header: str | None = None,
) -> Iterator[Sentence]:
    """Yield the sentences of numbered `lines`; comment lines stand before the first token of one.

    Raises:
        DataError: one is too long to be a sentence.
    """
    sentence, documents = Sentence(), 0
    for number, line in lines:
        is_start = line.startswith(DOCSTART)
        if is_start or not line.strip(" \t"):
            if sentence.rows:
                yield sentence
                sentence = Sentence(group=sentence.group)
            documents += is_start
            sentence.group = _docstart_name(line) or f"document {documents}" if is_start else sentence.group
        elif line == header:
            notes["header line"] += 1
        elif line[0] == "#" and is_comment(line, is_token) and (not sentence.rows or _is_aside(line)):
            if newdoc := _NEWDOC.fullmatch(line):
                documents += 1
                sentence.group = (newdoc[1] or "").strip() or f"document {documents}"
            elif not _take(line, sentence):
                notes["comment line"] += 1
        else:
            sentence.rows.append((number, line))
            if len(sentence.rows) > _MOST_ROWS:
                raise DataError(
                    f"over {_MOST_ROWS} lines without a blank one between, which is no sentence; put blank lines "
                    "between sentences, or name the file's format if it is another",
                    line=sentence.rows[0][0],
                )
    if sentence.rows:
        yield sentence


def find_header(lines: Iterable[tuple[int, str]]) -> tuple[str | None, tuple[str, ...]]:
    """Return the header line at the beginning of `lines`, and the names of the columns; None and () without one.

    CoNLL-U Plus names them in a comment, which is no header line.
    """
    for _, line in lines:
        if not line.strip(" \t"):
            continue
        if (stated := _FIELD.match(line)) and stated[1] == _NAMES:
            return None, tuple(stated[2].split())
        if line.startswith(DOCSTART) or (_COMMENT.match(line) and not may_be_token(line)):
            continue
        names = columns(line, "\t" in line)
        low = [name.lower() for name in names]
        is_header = bool(_TOKEN_NAMES & set(low[:2])) and any(_TAG_NAME.fullmatch(name) for name in low[1:])
        return (line, tuple(names)) if is_header else (None, ())
    return None, ()


def _docstart_name(line: str) -> str:
    """Return what a `-DOCSTART-` line calls its document, if a number is in it: `(1 EU)`, `doc-17`; "" if nothing."""
    cells = columns(line, "\t" in line)[1:]
    name = " ".join(cell.strip() for cell in cells if cell.strip() not in _FILLERS)
    return name if any(character.isdigit() for character in name) else ""


def _is_aside(line: str) -> bool:
    """Whether a comment may stand inside a sentence: HIPE's `# segment_iiif_link = …`, not what begins a sentence."""
    stated = _FIELD.match(line)
    return stated is not None and "\t" not in line and stated[1] not in _STATED and not _GROUP.fullmatch(stated[1])


def _take(line: str, sentence: Sentence) -> bool:
    """Take what a comment states into `sentence`; False if it states nothing that is read."""
    stated = _FIELD.match(line)
    if stated and stated[1] in _STATED and stated[1] not in sentence.stated:
        sentence.stated[stated[1]] = stated[2]
        return True
    return False


@dataclass(slots=True)
class Census:
    """What the lines of one shape (tabs or blanks, number of columns) hold, and how many lines have another.

    `steps` counts, by column, the pairs of the cell before and a cell; None stands for the edges of a sentence. A
    column of so many different ones that it holds no tags has None. `cells` counts the cells. Of the lines that go on
    with a sentence, `continued` counts all, and `repeated` those whose first cell is that of the line before, or empty;
    `numbered` counts lines with a digit in their first cell, `loose` those with other blanks between cells than one.
    """

    shape: tuple[bool, int]
    names: tuple[str, ...] = ()
    shapes: Counter[tuple[bool, int]] = field(default_factory=Counter)
    steps: list[Counter[tuple[str | None, str | None]] | None] = field(default_factory=list)
    cells: list[Counter[str] | None] = field(default_factory=list)
    tokens: tuple[TokenCensus, TokenCensus] = field(default_factory=lambda: (TokenCensus(), TokenCensus()))
    miscounted: int = 0
    continued: int = 0
    repeated: int = 0
    numbered: int = 0
    loose: int = 0
    spaces: int | None = None
    _last: int = -1

    @classmethod
    def of(cls, read: Callable[[], Iterable[Sentence]], names: tuple[str, ...] = ()) -> Census | None:
        """Count the sentences that `read` yields anew at each call; None if there are none."""
        first = next(iter(read()), None)
        if first is None:
            return None
        shape = _shape(first.rows[0][1])
        while True:
            census = cls(shape, names, steps=[Counter() for _ in range(shape[1])])
            for sentence in read():
                census.add(sentence)
            most = census.shapes.most_common(1)[0][0]
            if census.shapes[shape] == census.shapes[most]:
                census.names = names if len(names) == shape[1] else ()
                census.cells = [None if steps is None else _cells(steps) for steps in census.steps]
                return census
            shape = most

    def add(self, sentence: Sentence) -> None:
        """Count the lines of a sentence."""
        expected: int | None = None
        width = self.shape[1]
        edge: list[str | None] = [None] * width
        before: Sequence[str | None] = edge
        cells_before: Sequence[str | None] = edge
        censuses = self.tokens[: max(1, width - 1)]
        for index, (_, line) in enumerate(sentence.rows):
            is_tabbed = "\t" in line
            row = columns(line, is_tabbed)
            if is_without_token(line, row, is_tabbed, width):
                row = ["", *row]
            self.shapes[is_tabbed, len(row)] += 1
            if width > 2:  # else there is no column for an index
                expected = self._count(row[0], expected)
            if (is_tabbed, len(row)) != self.shape:
                continue
            for census, cell in zip(censuses, row, strict=False):
                if cell:
                    census.add(cell, index == 0)
            self.loose += line.strip(" ") != " ".join(row).strip(" ")
            cells = [cell.strip(" ") for cell in row]
            for place, steps in enumerate(self.steps):
                if steps is not None:
                    steps[cells_before[place], cells[place]] += 1
                    if len(steps) > _MOST_STEPS:
                        self.steps[place] = None
            self.continued += index > 0
            self.repeated += index > 0 and row[0] in (before[0], "")
            self.numbered += any(character.isdigit() for character in row[0])
            before, cells_before = row, cells
            if "SpaceAfter" in line:
                self.spaces = next((place for place, cell in enumerate(row) if no_space_after(cell)), self.spaces)
        for place, steps in enumerate(self.steps):
            if steps is not None:
                steps[cells_before[place], None] += 1
        self._last = expected - 1 if expected is not None else self._last

    def _count(self, cell: str, expected: int | None) -> int | None:
        """Hold the first cell of a row against the `expected` number, None for the first of a sentence."""
        if not cell[:1].isdigit():
            self.miscounted += 1
            return expected if expected is None else expected + 1
        if part := INDEX_PART.fullmatch(cell):
            return expected if expected is not None or part[1] == "0" else int(part[1])
        if not INDEX.fullmatch(cell):
            self.miscounted += 1
            return expected if expected is None else expected + 1
        number = int(cell)
        is_right = number == expected if expected is not None else number in (0, 1, self._last + 1)
        self.miscounted += not is_right
        return number + 1

    @property
    def rows(self) -> int:
        """The number of lines of this shape."""
        return self.shapes[self.shape]

    @property
    def is_indexed(self) -> bool:
        """Whether the first column only counts the tokens, from 0, from 1 or on from the sentence before."""
        return self.shape[1] > 2 and 5 * self.miscounted <= self.shapes.total()

    @property
    def is_grouped(self) -> bool:
        """Whether the first column only names the sentence of each token, as `sentence 1` does, or its source."""
        if self.shape[1] < 3 or self.is_indexed:
            return False
        if self.repeated == self.continued >= _FEW_REPEATED:
            return True
        is_numbered = self.numbered > 0 and 2 * self.numbered + self.repeated >= self.rows
        return is_numbered and 2 * self.repeated >= self.continued > 0

    @property
    def has_unparted(self) -> bool:
        """Whether sentences follow each other without a blank line, so that only the first column parts them."""
        return self.is_grouped and self.repeated < self.continued

    @property
    def begins_with_tags(self) -> bool:
        """Whether the first of two columns holds the tags, as in the corpora of restaurants and films of MIT."""
        if self.shape[1] != 2:
            return False
        first, second = self.cells
        if first is None or second is None:
            return False
        labels = [cell for cell in first if (tag := parse_tag(cell)) and tag.label]
        is_tags = all(map(parse_tag, first)) and spelling_of(first, self.rows) == "prefix"
        return bool(labels) and is_tags and not any(map(parse_tag, second))

    def tokens_behind_tags(self, read: Callable[[], Iterable[Sentence]]) -> TokenCensus:
        """Count the tokens of the second column, which `read` yields anew."""
        census = TokenCensus()
        for sentence in read():
            for index, (_, line) in enumerate(sentence.rows):
                if len(row := columns(line, "\t" in line)) == 2:
                    census.add(row[1], index == 0)
        return census

    @property
    def token(self) -> int:
        """The column of tokens."""
        named = [place for place, name in enumerate(self.names) if name.lower() in _TOKEN_NAMES]
        if named or not self.is_grouped:
            return named[0] if named else int(self.is_indexed or self.begins_with_tags)
        place = 1
        while place < self.shape[1] - 2 and all(INDEX.fullmatch(cell) for cell in self.cells[place] or ("",)):
            place += 1  # the number of a part or of a token, as in CoNLL-2012
        return place

    def place(self, column: int | str) -> int | None:
        """Return the column, from 0, that the user means; None if there is none, or it holds the tokens."""
        width = self.shape[1]
        if isinstance(column, str):
            found = self.names.index(column) if column in self.names else width
        else:
            found = column % width if -width <= column < width else width
        return None if found >= width or found == self.token else found

    def spelling(self, column: int, *, is_named: bool = False) -> Spelling | None:
        """Return how the tags of `column` are spelt; None if it holds none. The user may have named the column."""
        cells = self.cells[column]
        if cells is None or column == self.token or not self.rows:
            return None
        return spelling_of(cells, self.rows, is_named=is_named)

    def tagged(self, column: int) -> int:
        """Return the number of cells of a column of tags that are tags or empty."""
        spelling = self.spelling(column) or "prefix"
        return sum(n for cell, n in (self.cells[column] or {}).items() if cell == UNSET or parse_tag(cell, spelling))

    def labels(self, column: int) -> set[str]:
        """Return the labels in a column of tags."""
        spelling = self.spelling(column) or "prefix"
        tags = (parse_tag(cell, spelling) for cell in self.cells[column] or ())
        return {tag.label for tag in tags if tag and tag.role != "O"} - ({UNSET} if spelling == "io" else set())

    def tag_columns(self) -> list[int]:
        """Return the columns of tags: several if they are spelt with B and I, one if labels stand alone."""
        kinds = {place: self.spelling(place) for place in range(self.shape[1])}
        marked = [place for place, kind in kinds.items() if kind in ("prefix", "lower", "suffix")]
        plain = [place for place, kind in kinds.items() if kind in ("bare", "io")]
        labelled = [place for place in marked if self.labels(place)]
        if not labelled and plain:
            return plain
        if len(labelled) == 1 and len(marked) == 1:
            return labelled
        named = [place for place in labelled if not self.labels(place) <= _PHRASES]
        return named or [place for place in marked if place not in labelled][-1:] or labelled[-1:]


def _cells(steps: Counter[tuple[str | None, str | None]]) -> Counter[str]:
    cells: Counter[str] = Counter()
    for (_, cell), count in steps.items():
        if cell is not None:
            cells[cell] += count
    return cells


INDEX = re.compile(r"[0-9]{1,9}")
INDEX_PART = re.compile(r"([0-9]{1,9})([-.])([0-9]{1,9})")
"""The index of a contracted token (`3-4`) or of a node without a token (`8.1`) in CoNLL-U."""


def no_space_after(cell: str) -> bool:
    """Whether a cell says that no space follows the token, as HIPE and CoNLL-U do."""
    return "SpaceAfter" in cell and bool({"NoSpaceAfter", "SpaceAfter=No"} & set(cell.split("|")))


def _shape(line: str) -> tuple[bool, int]:
    is_tabbed = "\t" in line
    return is_tabbed, len(columns(line, is_tabbed))
