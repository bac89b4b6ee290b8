"""CoNLL and its relatives: a token and its tags a line, a blank line between sentences.

The module `token_layout` finds the layout of the whole file. The text is joined from the tokens by the rule of
`tokens`, unless a comment `# text = …` states the text, or a column says where no space follows. The file is read twice
or more, so that it need not be in memory. A line with another number of columns than most is refused. In writing,
overlapping entities and labels with white space are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from spantune.core import ConfigError, DataError, Document, Entity, replacing
from spantune.data.raw.document import Defect, Item, Options, RawDocument, RawEntity, Sample
from spantune.data.raw.tags import Chunk, Tag, decode, encode, flat
from spantune.data.raw.text_files import read_lines
from spantune.data.raw.token_layout import Layer, Layout, survey
from spantune.data.raw.token_lines import (
    DOCSTART,
    INDEX,
    INDEX_PART,
    Census,
    Sentence,
    columns,
    find_header,
    is_comment,
    is_without_token,
    may_be_token,
    no_space_after,
    sentences,
)
from spantune.data.raw.tokens import Span, TokenCensus, cut, join, locate, split, unnumbered
from spantune.data.rules import Rule

EMPTY_TOKEN = "line with an empty token and the tag O left out"

_BOM = "\ufeff"
_LIKELY = 0.9  # the share of lines with a tag from which a file counts as CoNLL


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format. A column that the user names needs less evidence that it holds tags."""
    lines = list(enumerate(sample.text.split("\n"), start=1))
    header, names = find_header(lines)
    census = Census.of(lambda: sentences(lines, Counter(), header=header), names)
    if census is None or census.shape[1] < 2 or not (census.rows > 1 or census.shape[0]):
        return False
    column = sample.options.column
    if column is None or (place := census.place(column)) is None:  # reading will say which columns there are
        return any(census.tagged(place) >= _LIKELY * census.shapes.total() for place in census.tag_columns())
    return census.spelling(place, is_named=True) is not None


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the sentences of `path`. The id is what `# id` or `# sent_id` says, else `<stem>-<line>`.

    Raises:
        DataError: it is not clear which columns hold the tags.
        ConfigError: `options.column` is no column of tags, or the tags need `options.label`, which is missing.
    """

    def lines(notes: Counter[str]) -> Iterator[tuple[int, str]]:
        return read_lines(path, notes, blank=True, encoding=options.encoding)

    header = find_header(lines(Counter()))
    try:
        layout = survey(lambda: sentences(lines(Counter()), Counter(), header=header[0]), header, options)
    except DataError as error:
        raise error if error.path else DataError(error.message, path=path, line=error.line) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    notes["tags read as IOB1"] += any(layer[1:] == ("prefix", "IOB1") for layer in layout.layers)
    notes["tags without B and I: neighbours of one type read as one entity"] += layout.layers[0].spelling == "io"
    for sentence in sentences(lines(notes), notes, layout.is_token, layout.header):
        try:
            document = _document(sentence, path, layout, notes)
        except DataError as error:
            yield error
            continue
        if document is not None:
            yield document


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`, with a tab between token and tag; `notes` counts what CoNLL cannot hold.

    Raises:
        DataError: entities overlap and `options.nested` is `error`, one begins or ends with white space, a text is
            blank, a label cannot stand in a tag, or the file cannot be written.
    """
    census = TokenCensus()
    changed: Counter[str | None] = Counter()  # for each joiner, the texts that reading would not restore
    with replacing(path) as file:
        for number, document in enumerate(documents):
            entities = flat(document, options)
            tokens, tags = _tagged(document, entities, notes, options)
            if number == 0 and tokens[0].startswith(_BOM):
                file.write("\n")  # at the beginning of a file, reading would remove it
            file.write("".join(f"{token}\t{tag}\n" for token, tag in zip(tokens, tags, strict=True)) + "\n")
            for index, token in enumerate(tokens):
                census.add(token, index == 0)
            changed.update(joiner for joiner in {"", options.joiner} if join(tokens, joiner)[0] != document.text)
            notes["overlapping entity left out"] += len(document.entities) - len(entities)
            notes["id left out"] += 1
            notes["meta left out"] += bool(set(document.meta) - {"tokens"})
            notes["score left out"] += sum(entity.score is not None for entity in entities)
        if census.is_segmented:
            raise DataError(
                "every token ends in a number, 0 at the beginning of a text, as WeiboNER's do: reading would take it "
                "off; remove the meta `tokens`, or write another format",
                path=path,
            )
    notes["white space that reading does not restore"] += changed[census.joiner(options.joiner)]


@dataclass(slots=True)
class _Words:
    """The tokens of a sentence, and its lines with tags.

    Args:
        tokens: the tokens.
        glued: for each token, whether no space follows it.
        lines: for each line with tags, its number.
        tags: for each line with tags, its tags by layer.
        places: for each line with tags, the index of its token; None if it has none.
    """

    tokens: list[str] = field(default_factory=list)
    glued: list[bool] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    tags: list[list[Tag]] = field(default_factory=list)
    places: list[int | None] = field(default_factory=list)

    def add_token(self, token: str, *, is_glued: bool) -> int:
        self.tokens.append(token)
        self.glued.append(is_glued)
        return len(self.tokens) - 1

    def add_tags(self, line: int, tags: list[Tag], place: int | None) -> None:
        self.lines.append(line)
        self.tags.append(tags)
        self.places.append(place)


def _document(sentence: Sentence, path: Path, layout: Layout, notes: Counter[str]) -> RawDocument | None:
    """Return the document of a sentence; None if all its tokens are empty and have the tag O."""
    words = _words(sentence, path, layout, notes)
    if not words.tokens:
        return None
    text, spans = _text(sentence, words, path, layout)
    entities = tuple(
        chain.from_iterable(_entities(index, layer, words, text, spans) for index, layer in enumerate(layout.layers))
    )
    meta: dict[str, object] = {"group": sentence.group} if sentence.group else {}
    if [text[start:end] for start, end in split(text)] != words.tokens:
        meta["tokens"] = words.tokens  # `write` needs them to write the same lines
    notes["text joined from tokens"] += "text" not in sentence.stated
    notes["segmentation number taken off a token"] += len(words.tokens) * layout.is_segmented
    columns_read = {layout.token, layout.spaces, *(layer.column for layer in layout.layers)} - {None}
    notes["other columns not read"] += layout.width > layout.is_indexed + len(columns_read)
    first = sentence.rows[0][0]
    name = sentence.stated.get("id") or sentence.stated.get("sent_id") or f"{path.stem}-{first}"
    return RawDocument(name, text, entities, path, first, meta, is_counted=True)


def _words(sentence: Sentence, path: Path, layout: Layout, notes: Counter[str]) -> _Words:
    words = _Words()
    contracted, place_of_contracted = range(0), 0
    is_plain = not layout.is_indexed and layout.spaces is None and not layout.is_segmented
    for number, line in sentence.rows:
        row = _row(line, layout, path, number)
        token, tags = row[layout.token], [_tag(row, layer, layout, path, number) for layer in layout.layers]
        if token and is_plain:
            words.add_tags(number, tags, words.add_token(token, is_glued=False))
            continue
        part = INDEX_PART.fullmatch(row[0]) if layout.is_indexed else None
        is_outside = all(tag.role == "O" for tag in tags)
        if part and not is_outside:
            raise _line_error("a line of several words, or of none, has a tag; expected it on the words", path, number)
        is_glued = layout.spaces is not None and no_space_after(row[layout.spaces])
        if not token and not is_outside:
            raise _line_error("the token is empty, but tagged; expected at least one character", path, number)
        if part and part[2] == "-":
            place_of_contracted = words.add_token(token, is_glued=is_glued)
            contracted = range(int(part[1]), int(part[3]) + 1)
            notes["contracted token (3-4) read, and not its words"] += 1
        elif part:
            notes["line of a word that is not in the text (8.1) left out"] += 1
        elif not token:
            notes[EMPTY_TOKEN] += 1
            words.add_tags(number, tags, None)
        elif contracted and INDEX.fullmatch(row[0]) and int(row[0]) in contracted:
            words.add_tags(number, tags, place_of_contracted)
        else:
            place = words.add_token(unnumbered(token) if layout.is_segmented else token, is_glued=is_glued)
            words.add_tags(number, tags, place)
    return words


def _row(line: str, layout: Layout, path: Path, number: int) -> list[str]:
    """Return the columns of a line.

    Raises:
        DataError: it has another number of columns than most lines.
    """
    row = columns(line, layout.is_tabbed)
    if layout.token == 0 and is_without_token(line, row, layout.is_tabbed, layout.width):
        blanks = line[: len(line) - len(line.lstrip(" "))]
        row = [blanks[:-1] if layout.is_single_spaced else "", *row]  # the token is empty, or blanks
    if len(row) != layout.width:
        between = "a tab" if layout.is_tabbed else "blanks"
        raise _line_error(
            f"found {len(row)} column(s) in {line[:40]!r}; expected {layout.width} with {between} between, as most "
            "lines have",
            path,
            number,
        )
    return row


def _tag(row: list[str], layer: Layer, layout: Layout, path: Path, number: int) -> Tag:
    """Return the tag of a line in the column `layer`.

    Raises:
        DataError: the cell holds no tag.
    """
    cell = row[layer.column]
    if (tag := layout.tag(cell, layer)) is None:
        example = {
            "prefix": "O or a tag with its type, as B-TYPE, I-TYPE, E-TYPE or S-TYPE",
            "lower": "o or a tag with its type, as b-TYPE, i-TYPE, e-TYPE or s-TYPE",
            "suffix": "O or a tag with its type before it, as TYPE-B, TYPE-I",
            "bare": "O, B or I, as the other lines of the file have",
            "io": "O or a type",
        }[layer.spelling]
        raise DataError(
            f"found {cell!r}; expected {example}: mend it, or name the column that holds the tags",
            path=path,
            line=number,
            field=f"column {layer.column + 1}",
        )
    return tag


def _line_error(problem: str, path: Path, number: int) -> DataError:
    return DataError(f"{problem}: mend the line", path=path, line=number)


def _text(sentence: Sentence, words: _Words, path: Path, layout: Layout) -> tuple[str, list[Span]]:
    """Return the text of a sentence, as stated or else joined, and the spans of its tokens.

    Raises:
        DataError: the tokens do not fit the stated text.
    """
    tokens = words.tokens
    if (text := sentence.stated.get("text")) is None:
        return join(tokens, layout.joiner, words.glued)
    spans = locate(tokens, text)
    if isinstance(spans, int):
        problem = f"has more than the tokens: {text!r}"
        if spans < len(tokens):
            problem = f"does not hold the token {tokens[spans]!r} where it would follow: {text!r}"
        place = min(spans, len(tokens) - 1)
        lines = (line for line, its_place in zip(words.lines, words.places, strict=True) if its_place == place)
        raise DataError(
            f"the `# text` line {problem}; expected the tokens in order with white space between: mend or remove it",
            path=path,
            line=next(lines, sentence.rows[0][0]),
        )
    return text, spans


def _entities(index: int, layer: Layer, words: _Words, text: str, spans: list[Span]) -> Iterator[RawEntity]:
    """Yield the entities of one layer, the `index`-th of the layout."""
    for chunk in decode([tags[index] for tags in words.tags], layer.scheme):
        places = [place for place in words.places[chunk.start : chunk.end] if place is not None]
        start, end = spans[places[0]][0], spans[places[-1]][1]
        defect = None
        if chunk.fault:
            defect = Defect(Rule.BROKEN_TRANSITION, f"{chunk.fault}; read as {chunk.label} {text[start:end]!r}", False)
        line = words.lines[chunk.place if chunk.fault else chunk.start]
        field = f"column {layer.column + 1}"
        yield RawEntity(start, end, chunk.label, text[start:end], field=field, line=line, defect=defect)


def _tagged(
    document: Document, entities: list[Entity], notes: Counter[str], options: Options
) -> tuple[list[str], list[str]]:
    """Return the tokens of `document` and their tags. A token is cut where an entity begins or ends inside it.

    Raises:
        DataError: the text is blank, a label cannot stand in a tag, or an entity begins or ends with white space.
    """
    edges = {edge for entity in entities for edge in (entity.start, entity.end)}
    spans = cut(_tokens(document, notes), edges)
    if not spans:
        raise DataError(
            f"document {document.id!r}: a blank text has no token to write; remove it, or write another format",
            field="text",
        )
    starts = {start: index for index, (start, _) in enumerate(spans)}
    ends = {end: index for index, (_, end) in enumerate(spans, 1)}
    chunks = []
    for entity in entities:
        if not re.fullmatch(r"\S+", entity.label):
            raise DataError(
                f"document {document.id!r}: the label {entity.label!r} is empty or has white space in it, which no tag "
                "can; rename it",
                field="entities",
            )
        if entity.start not in starts or entity.end not in ends:
            raise DataError(
                f"document {document.id!r}: {entity.label} {document.surface(entity)!r} [{entity.start}, {entity.end}) "
                "begins or ends with white space, which is in no token; trim it, or write another format",
                field="entities",
            )
        chunks.append(Chunk(starts[entity.start], ends[entity.end], entity.label))
    return [document.text[start:end] for start, end in spans], encode(len(spans), chunks, options.scheme)


def _tokens(document: Document, notes: Counter[str]) -> list[Span]:
    """Return the spans of the tokens in the document's meta if they fit its text; otherwise those of `tokens.split`."""
    if (tokens := document.meta.get("tokens")) is None:
        return split(document.text)
    if isinstance(tokens, list) and all(isinstance(token, str) and _is_token(token) for token in tokens):
        spans = locate(tokens, document.text)
        if not isinstance(spans, int):
            return spans
    notes["meta tokens do not fit the text: not used"] += 1
    return split(document.text)


def _is_token(token: str) -> bool:
    """Return whether `token` can be written on a line and is then read as the same token."""
    line = f"{token}\tO"
    return (
        bool(token)
        and not re.search(r"[\t\n]", token)
        and not line.startswith(DOCSTART)
        and not is_comment(line, may_be_token)
    )
