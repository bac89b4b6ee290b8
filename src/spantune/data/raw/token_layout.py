"""The layout of a file of token lines: which columns hold tokens and tags, and how the tags are spelt.

What the file does not say is found from all its lines. Several columns of tags are taken for the layers of one nested
annotation, with these exceptions:

- A column that has only phrase types (NP, VP …) is syntax. It is not read if there is another column of tags.
- Columns that mark the same spans are refused, and the user has to name one.
- Columns that share no label are refused too, if the file has further columns, such as parts of speech.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

from spantune.core import ConfigError, DataError, nearest
from spantune.data.raw.document import Options
from spantune.data.raw.tags import OUTSIDE, UNSET, Scheme, Spelling, Tag, decode, parse_tag, scheme_of
from spantune.data.raw.token_lines import Census, Sentence, columns
from spantune.data.raw.tokens import TokenCensus


class Layer(NamedTuple):
    """A column of tags: its number from 0, how its tags are spelt, and their scheme."""

    column: int
    spelling: Spelling = "prefix"
    scheme: Scheme = "IOB2"


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a whole file. Columns are numbered from 0.

    Args:
        is_tabbed: whether tabs stand between the columns, and not blanks.
        width: the number of columns.
        token: the column of tokens.
        layers: the columns of tags.
        spaces: the column that says after which tokens no space follows, if there is one.
        is_segmented: whether the tokens are characters with their number in the word, as in WeiboNER.
        joiner: the text between tokens; None to decide between each two tokens.
        header: the line of column names, if there is one.
        is_indexed: whether the first column counts the tokens.
        label: the label of tags that have none.
        is_single_spaced: whether exactly one blank stands between the columns. Further blanks at the beginning of a
            line are then its token.
    """

    is_tabbed: bool
    width: int
    token: int
    layers: tuple[Layer, ...]
    spaces: int | None = None
    is_segmented: bool = False
    joiner: str | None = None
    header: str | None = None
    is_indexed: bool = False
    label: str = ""
    is_single_spaced: bool = False

    def tag(self, cell: str, layer: Layer) -> Tag | None:
        """Return the tag in a cell of the column `layer`; None if the cell holds no tag."""
        cell = cell.strip(" ")
        return OUTSIDE if cell == UNSET else parse_tag(cell, layer.spelling, self.label)

    def is_token(self, line: str) -> bool:
        """Return whether a line that looks like a comment is the line of a token `#`."""
        row = columns(line, self.is_tabbed)
        return len(row) == self.width and all(self.tag(row[layer.column], layer) for layer in self.layers)


def survey(
    read: Callable[[], Iterable[Sentence]], header: tuple[str | None, tuple[str, ...]], options: Options
) -> Layout:
    """Find the layout of a file.

    Args:
        read: yields all sentences of the file; it is called several times.
        header: the line of column names, if any, and the names; see `find_header`.
        options: the user's options.

    Raises:
        DataError: most lines have one column, the sentences are not separated, or it is not clear which columns hold
            the tags.
        ConfigError: `options.column` is no column of tags, or the tags have no label and `options.label` is missing.
    """
    line, names = header
    census = Census.of(read, names)
    if census is None or census.shape[1] < 2:
        raise DataError(
            "most lines have one column; expected a token and a tag on each, with a tab or blanks between, and a blank "
            "line between sentences"
        )
    if census.has_unparted:
        between = "\\t" if census.shape[0] else " "
        raise DataError(
            "the first column names the sentence of each token, and no blank lines part the sentences; put one between "
            f"two sentences, and the column is passed over: awk -F '{between}' 'NR > 1 && $1 != \"\" && $1 != last "
            '{print ""} {print} $1 != "" {last = $1}\' FILE > NEW.tsv'
        )
    places = _chosen(census, options)
    width, token = census.shape[1], census.token
    layers = [Layer(place, census.spelling(place, is_named=options.column is not None) or "prefix") for place in places]
    if options.label is None and (bare := [layer for layer in layers if layer.spelling == "bare"]):
        raise ConfigError(
            f"the tags of column {bare[0].column} are B and I without a type; name the label of their entities "
            "(--label NAME, data.label in a recipe)"
        )
    spaces = census.spaces if census.spaces not in (token, *places) and options.joiner is None else None
    tokens = census.tokens[token] if token < min(2, width) else TokenCensus(numbered=False)
    if census.begins_with_tags:
        tokens = census.tokens_behind_tags(read)
    joiner = " " if spaces is not None else tokens.joiner(options.joiner)
    is_tabbed = census.shape[0]
    layout = Layout(
        is_tabbed,
        width,
        token,
        tuple(layers),
        spaces,
        tokens.is_segmented,
        joiner,
        line,
        census.is_indexed,
        options.label or "",
        census.loose == 0,
    )
    schemed = tuple(layer._replace(scheme=_scheme(layout, layer, census)) for layer in layers)
    if len(layers) > 1:
        _check_layers(layout, read, census)
    return replace(layout, layers=schemed)


def _chosen(census: Census, options: Options) -> list[int]:
    """Return the columns of tags: the one that the user names, else those that look like it, else the last one."""
    if options.column is None:
        return census.tag_columns() or [census.shape[1] - 1]
    place = census.place(options.column)
    if place is not None:
        return [place]
    if isinstance(options.column, str):
        if not census.names:
            raise ConfigError(
                f"column {options.column!r}: the token lines have no header; give the column's number, from 0"
            )
        raise ConfigError(f"there is no column {options.column!r} of tags; {nearest(options.column, census.names)}")
    raise ConfigError(
        f"column {options.column} cannot hold the tags; the lines have {census.shape[1]} columns, from 0, and "
        f"{census.token} holds the tokens: choose another"
    )


def _has_further_columns(census: Census, places: Sequence[int]) -> bool:
    """Return whether a column is not an index, tokens, tags, a statement of spaces, or empty."""
    known = {census.token, census.spaces, *places, *range(census.token)}
    return any(
        place not in known and (cells is None or set(cells) - {"O", UNSET, "-", ""})
        for place, cells in enumerate(census.cells)
    )


def _scheme(layout: Layout, layer: Layer, census: Census) -> Scheme:
    """Return the scheme of a column of tags, which follows from the steps from one tag to the next."""
    if layer.spelling == "io":
        return "IOB1"
    return scheme_of(census.steps[layer.column] or {}, lambda cell: layout.tag(cell, layer))


def _check_layers(layout: Layout, read: Callable[[], Iterable[Sentence]], census: Census) -> None:
    """Check that several columns of tags can be the layers of one nested annotation.

    Raises:
        DataError: they cannot.
    """
    spans: Counter[int] = Counter()
    same: Counter[tuple[int, int]] = Counter()
    for sentence in read():
        rows = [columns(line, layout.is_tabbed) for _, line in sentence.rows]
        rows = [row for row in rows if len(row) == layout.width]
        by_column: dict[int, set[tuple[int, int]]] = {}
        for layer in layout.layers:
            tags = [layout.tag(row[layer.column], layer) or OUTSIDE for row in rows]
            by_column[layer.column] = {(chunk.start, chunk.end) for chunk in decode(tags, "IOB1")}
            spans[layer.column] += len(by_column[layer.column])
        for left, right in combinations(by_column, 2):
            same[left, right] += len(by_column[left] & by_column[right])
    if any(2 * count > min(spans[left], spans[right]) for (left, right), count in same.items()):
        raise _ambiguous(
            census, layout.layers, "some of them mark the same spans, as coarse and fine types or two annotators do"
        )
    if any(layer.spelling in ("bare", "io") for layer in layout.layers):
        raise _ambiguous(census, layout.layers, "tags without B and I do not show which of them belong together")
    labels = [census.labels(layer.column) for layer in layout.layers]
    has_further = _has_further_columns(census, [layer.column for layer in layout.layers])
    if has_further and any(sum(bool(its & others) for others in labels) == 1 for its in labels):
        raise _ambiguous(census, layout.layers, "they share no label, and the file has columns of other annotations")


def _ambiguous(census: Census, layers: Sequence[Layer], why: str) -> DataError:
    shown = []
    for layer in layers:
        labels = sorted(census.labels(layer.column))
        name = f" {census.names[layer.column]}" if len(census.names) > layer.column else ""
        shown.append(f"{layer.column}{name} ({', '.join(labels[:3])}{' …' if len(labels) > 3 else ''})")
    return DataError(
        f"several columns hold tags, and it is not clear that they are layers of one annotation: {', '.join(shown)}; "
        f"{why}: name one (--column, data.column in a recipe)"
    )
