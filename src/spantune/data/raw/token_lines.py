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
_FEW_REPEATED = 5  # with fewer lines, it may be chance that the first cell of each is that of the line before
_MOST_STEPS = 1 << 14  # a column with more different pairs of a cell and the next one holds no tags
_TOKEN_NAMES = frozenset(("token", "tokens", "word", "words", "form", "wordform", "text"))
_TAG_NAME = re.compile(r"(?:ne[-_:].*|ner|ne|tags?|labels?|bio|iob2?|entit(?:y|ies)|(?:.*[-_:])(?:ner|tags?|labels?))")
_PHRASES = frozenset(  # of CoNLL-2000 and of TreeTagger
    ("NP", "VP", "PP", "ADJP", "ADVP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP", "NC", "VC", "PC")
)


@dataclass(slots=True)
class Sentence:
    """The token lines of a sentence with their numbers, the fields that comments state, and the document's name."""

    rows: list[tuple[int, str]] = field(default_factory=list)
    stated: dict[str, str] = field(default_factory=dict)
    group: str = ""


def columns(line: str, is_tabbed: bool) -> list[str]:
    """Split a line into its columns: at tabs if `is_tabbed`, otherwise at runs of blanks."""
    return line.split("\t", _MOST_COLUMNS) if is_tabbed else _BLANKS.split(line.strip(" \t"), maxsplit=_MOST_COLUMNS)


def is_without_token(line: str, row: Sequence[str], is_tabbed: bool, width: int) -> bool:
    """Return whether the token of a line is blank or missing.

    That is so if blanks separate the columns, and the line begins with one and has one column fewer than `width`.
    """
    return not is_tabbed and len(row) == width - 1 and line[0] in " \t"


def may_be_token(line: str) -> bool:
    """Return whether a line that looks like a comment has a tag, as the line of a token `#` has.

    The layout of the file is not known yet: any column but the first is tried, or without tabs only the last.
    """
    row = columns(line, "\t" in line)
    return any(parse_tag(cell) for cell in (row[1:] if "\t" in line else row[-1:]))


def is_comment(line: str, is_token: Callable[[str], bool]) -> bool:
    """Return whether a line is a comment: `# key = value`, or another line that begins with `#` and is no token's."""
    return bool(_COMMENT.match(line)) and (bool(_FIELD.match(line)) or not is_token(line))


def sentences(
    lines: Iterable[tuple[int, str]],
    notes: Counter[str],
    is_token: Callable[[str], bool] = may_be_token,
    header: str | None = None,
) -> Iterator[Sentence]:
    """Yield the sentences of numbered `lines`. Comments stand before the first token of a sentence.

    Args:
        lines: the number and the text of each line.
        notes: counts header lines, and comments that are not read.
        is_token: returns whether a line that looks like a comment is that of a token `#`.
        header: the line of column names, if there is one.

    Raises:
        DataError: a sentence has more lines than `_MOST_ROWS`.
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
    """Return the header line at the beginning of `lines` and the names of the columns; (None, ()) without a header.

    In CoNLL-U Plus a comment states the names; then the header line is None.
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
    """Return the document's name in a `-DOCSTART-` line if it has a number, such as `(1 EU)` or `doc-17`; or ""."""
    cells = columns(line, "\t" in line)[1:]
    name = " ".join(cell.strip() for cell in cells if cell.strip() not in _FILLERS)
    return name if any(character.isdigit() for character in name) else ""


def _is_aside(line: str) -> bool:
    """Return whether a comment may stand inside a sentence, such as `# segment_iiif_link = …` of HIPE.

    A comment that states an id, a text or a document begins a new sentence.
    """
    stated = _FIELD.match(line)
    return stated is not None and "\t" not in line and stated[1] not in _STATED and not _GROUP.fullmatch(stated[1])


def _take(line: str, sentence: Sentence) -> bool:
    """Store in `sentence` what a comment states, and return True; False if it states nothing that is read."""
    stated = _FIELD.match(line)
    if stated and stated[1] in _STATED and stated[1] not in sentence.stated:
        sentence.stated[stated[1]] = stated[2]
        return True
    return False


@dataclass(slots=True)
class Census:
    """Counts of the lines of one shape, from which follows what each column holds.

    A shape is whether the line has tabs, and its number of columns.

    Args:
        shape: the shape.
        names: the names of the columns, if the file states them.
        shapes: the number of lines of every shape.
        steps: for each column, how often each pair (cell, next cell) occurs; None stands for the edge of a sentence. A
            column with too many different pairs holds no tags, and has None in place of the counts.
        cells: for each column, how often each cell occurs; None likewise.
        tokens: counts of the first two columns as tokens.
        miscounted: lines whose first cell is not the number of the token.
        continued: lines that are not the first of their sentence.
        repeated: those of them whose first cell is empty or that of the line before.
        numbered: lines with a digit in their first cell.
        loose: lines with other blanks between the cells than a single one.
        spaces: the column that says after which tokens no space follows, if there is one.
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
        """Count the lines of the shape that is most frequent.

        Args:
            read: yields the sentences of the file; it is called several times.
            names: the names of the columns, if the file states them.

        Returns:
            None if the file has no sentences.
        """
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
        """Compare the first cell of a line with the `expected` number of the token, and return the next number.

        `expected` is None for the first line of a sentence.
        """
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
        """Whether the first column only counts the tokens: from 0, from 1, or on from the previous sentence."""
        return self.shape[1] > 2 and 5 * self.miscounted <= self.shapes.total()

    @property
    def is_grouped(self) -> bool:
        """Whether the first column only names the sentence of each token, such as `sentence 1`, or its source."""
        if self.shape[1] < 3 or self.is_indexed:
            return False
        if self.repeated == self.continued >= _FEW_REPEATED:
            return True
        is_numbered = self.numbered > 0 and 2 * self.numbered + self.repeated >= self.rows
        return is_numbered and 2 * self.repeated >= self.continued > 0

    @property
    def has_unparted(self) -> bool:
        """Whether sentences follow each other without a blank line, so that only the first column separates them."""
        return self.is_grouped and self.repeated < self.continued

    @property
    def begins_with_tags(self) -> bool:
        """Whether the first of two columns holds the tags, as in MIT's corpora of restaurants and films."""
        if self.shape[1] != 2:
            return False
        first, second = self.cells
        if first is None or second is None:
            return False
        labels = [cell for cell in first if (tag := parse_tag(cell)) and tag.label]
        is_tags = all(map(parse_tag, first)) and spelling_of(first, self.rows) == "prefix"
        return bool(labels) and is_tags and not any(map(parse_tag, second))

    def tokens_behind_tags(self, read: Callable[[], Iterable[Sentence]]) -> TokenCensus:
        """Count the tokens in the second column of the sentences that `read` yields."""
        census = TokenCensus()
        for sentence in read():
            for index, (_, line) in enumerate(sentence.rows):
                if len(row := columns(line, "\t" in line)) == 2:
                    census.add(row[1], index == 0)
        return census

    @property
    def token(self) -> int:
        """The number of the column of tokens."""
        named = [place for place, name in enumerate(self.names) if name.lower() in _TOKEN_NAMES]
        if named or not self.is_grouped:
            return named[0] if named else int(self.is_indexed or self.begins_with_tags)
        place = 1
        while place < self.shape[1] - 2 and all(INDEX.fullmatch(cell) for cell in self.cells[place] or ("",)):
            place += 1  # it holds the number of a part or of a token, as in CoNLL-2012
        return place

    def place(self, column: int | str) -> int | None:
        """Return the number, from 0, of the column that the user names; None if it does not exist or holds tokens."""
        width = self.shape[1]
        if isinstance(column, str):
            found = self.names.index(column) if column in self.names else width
        else:
            found = column % width if -width <= column < width else width
        return None if found >= width or found == self.token else found

    def spelling(self, column: int, *, is_named: bool = False) -> Spelling | None:
        """Return how the tags of `column` are spelt; None if it holds none. `is_named` says that the user named it."""
        cells = self.cells[column]
        if cells is None or column == self.token or not self.rows:
            return None
        return spelling_of(cells, self.rows, is_named=is_named)

    def tagged(self, column: int) -> int:
        """Return how many cells of a column of tags hold a tag or are empty."""
        spelling = self.spelling(column) or "prefix"
        return sum(n for cell, n in (self.cells[column] or {}).items() if cell == UNSET or parse_tag(cell, spelling))

    def labels(self, column: int) -> set[str]:
        """Return the labels in a column of tags."""
        spelling = self.spelling(column) or "prefix"
        tags = (parse_tag(cell, spelling) for cell in self.cells[column] or ())
        return {tag.label for tag in tags if tag and tag.role != "O"} - ({UNSET} if spelling == "io" else set())

    def tag_columns(self) -> list[int]:
        """Return the columns of tags: those whose tags have B or I and a label, else those with B, I or labels alone.

        Columns of nothing but phrase types are left out if there is another column of tags.
        """
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
    """Return whether a cell says that no space follows the token, as in HIPE and CoNLL-U."""
    return "SpaceAfter" in cell and bool({"NoSpaceAfter", "SpaceAfter=No"} & set(cell.split("|")))


def _shape(line: str) -> tuple[bool, int]:
    is_tabbed = "\t" in line
    return is_tabbed, len(columns(line, is_tabbed))
