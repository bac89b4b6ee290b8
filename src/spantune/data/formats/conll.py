"""CoNLL: a token and its tag a line, a blank line between sentences; BIO (IOB2), IOB1, BIOES, BMES and BIOUL tags.

A first pass over the file tells what it does not say of itself: separator, number of columns, scheme, and whether the
tokens are characters (WeiboNER's carry a number, which is taken off). The text is joined from the tokens, see `tokens`,
unless a `# text = …` line states it. The trade-off is to read a file twice to hold none of it. Tags without a type,
lines with other columns than most, and, in writing, overlapping entities and labels with white space are refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spantune.core import ConfigError, DataError, Document, Entity, replacing
from spantune.data.raw.document import Defect, Item, Options, RawDocument, RawEntity, Sample
from spantune.data.raw.tags import OUTSIDE, Chunk, Scheme, SchemeCensus, Tag, decode, encode, flat, parse_tag
from spantune.data.raw.text_files import read_lines
from spantune.data.raw.tokens import Span, TokenCensus, cut, join, locate, split, unnumbered
from spantune.data.rules import Rule

_BOM = "\ufeff"
_LIKELY = 0.9  # of the lines have to look right for a file to be claimed; a bad one is then found in its place


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    lines = [line for line in sample.text.split("\n") if line.strip() and not line.startswith(DOCSTART)]
    lines = [line for line in lines if not is_comment(line, -1)]
    rows = [columns(line, "\t" in line) for line in lines]
    widths = Counter(len(row) for row in rows if len(row) > 1 and parse_tag(row[-1]))
    count = max(widths.values(), default=0)
    return count > 0 and count >= _LIKELY * len(rows) and (count > 1 or "\t" in lines[0])


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the sentences of `path`, called as their `# id` or `# sent_id` says, else `<stem>-<line>`.

    Raises:
        ConfigError: `options.column` is no column of the file.
    """
    layout = survey(path, options)
    notes["tags read as IOB1"] += layout.scheme == "IOB1"
    for sentence in sentences(path, notes, tag_column(options)):
        try:
            yield _document(sentence, path, layout, notes)
        except DataError as error:
            yield error


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`, a tab between token and tag; `notes` counts what has no place.

    Raises:
        DataError: entities overlap and `options.nested` is `error`, one begins or ends with white space, a text is
            blank, a label cannot stand in a tag, or the file cannot be written.
    """
    census = TokenCensus()
    changed: Counter[str | None] = Counter()  # texts that reading would not make again, by what it joins with
    with replacing(path) as file:
        for number, document in enumerate(documents):
            kept = flat(document, options)
            tokens, tags = _tagged(document, kept, notes, options)
            if number == 0 and tokens[0].startswith(_BOM):
                file.write("\n")  # at the very beginning it would be taken off on reading
            file.write("".join(f"{token}\t{tag}\n" for token, tag in zip(tokens, tags, strict=True)) + "\n")
            for index, token in enumerate(tokens):
                census.add(token, index == 0)
            changed.update(joiner for joiner in {"", options.joiner} if join(tokens, joiner)[0] != document.text)
            notes["overlapping entity left out"] += len(document.entities) - len(kept)
            notes["id left out"] += 1
            notes["meta left out"] += bool(set(document.meta) - {"tokens"})
            notes["score left out"] += sum(entity.score is not None for entity in kept)
        if census.is_segmented:
            raise DataError(
                "every token ends in a number, 0 at the beginning of a text, as WeiboNER's do: reading would take it "
                "off; remove the meta `tokens`, or write another format",
                path=path,
            )
    notes["white space that reading does not restore"] += changed[census.joiner(options.joiner)]


def _document(sentence: Sentence, path: Path, layout: Layout, notes: Counter[str]) -> RawDocument:
    tokens: list[str] = []
    tags: list[Tag] = []
    for number, line in sentence.rows:
        token, tag = _row(line, layout, path, number)
        tokens.append(token)
        tags.append(tag)
    text, spans = _text(sentence, tokens, path, layout)
    entities = tuple(
        _entity(chunk, text, spans, sentence.rows, layout.tag + 1) for chunk in decode(tags, layout.scheme)
    )
    meta: dict[str, object] = {"group": f"document {sentence.group}"} if sentence.group else {}
    if [text[start:end] for start, end in split(text)] != tokens:
        meta["tokens"] = tokens  # what `write` needs to make the same lines again
    notes["text joined from tokens"] += "text" not in sentence.stated
    notes["segmentation number taken off a token"] += len(tokens) * layout.is_segmented
    notes["other columns not read"] += layout.width > 2
    first = sentence.rows[0][0]
    name = sentence.stated.get("id") or sentence.stated.get("sent_id") or f"{path.stem}-{first}"
    return RawDocument(name, text, entities, path, first, meta)


def _row(line: str, layout: Layout, path: Path, number: int) -> tuple[str, Tag]:
    """The token and the tag on a line."""
    row = columns(line, layout.is_tabbed)
    if len(row) != layout.width:
        between = "a tab" if layout.is_tabbed else "blanks"
        raise DataError(
            f"found {len(row)} column(s) in {line[:40]!r}; expected {layout.width} with {between} between, as most "
            "lines have: mend the line",
            path=path,
            line=number,
        )
    token = row[layout.token]
    if not token:
        raise DataError("the token is empty; expected at least one character: mend the line", path=path, line=number)
    if (tag := parse_tag(row[layout.tag])) is None:
        raise DataError(
            f"found {row[layout.tag]!r}; expected O or a tag with its type, as B-TYPE, I-TYPE, E-TYPE or S-TYPE: mend "
            "it, or name the column that holds the tags",
            path=path,
            line=number,
            field=f"column {layout.tag + 1}",
        )
    return unnumbered(token) if layout.is_segmented else token, tag


def _text(sentence: Sentence, tokens: list[str], path: Path, layout: Layout) -> tuple[str, list[Span]]:
    """The text of a sentence, as stated or else joined, and where its tokens stand in it."""
    if (text := sentence.stated.get("text")) is None:
        return join(tokens, layout.joiner)
    spans = locate(tokens, text)
    if isinstance(spans, int):
        found = f"has more than the tokens: {text!r}"
        if spans < len(tokens):
            found = f"does not hold the token {tokens[spans]!r} where it would follow: {text!r}"
        raise DataError(
            f"the `# text` line {found}; expected the tokens in order with white space between: mend or remove it",
            path=path,
            line=sentence.rows[min(spans, len(tokens) - 1)][0],
        )
    return text, spans


def _entity(chunk: Chunk, text: str, spans: list[Span], rows: list[tuple[int, str]], column: int) -> RawEntity:
    start, end = spans[chunk.start][0], spans[chunk.end - 1][1]
    defect = None
    if chunk.fault:
        defect = Defect(Rule.BROKEN_TRANSITION, f"{chunk.fault}; read as {chunk.label} {text[start:end]!r}", False)
    line = rows[chunk.place if chunk.fault else chunk.start][0]
    return RawEntity(start, end, chunk.label, text[start:end], field=f"column {column}", line=line, defect=defect)


def _tagged(
    document: Document, entities: list[Entity], notes: Counter[str], options: Options
) -> tuple[list[str], list[str]]:
    """The tokens of `document` and their tags; a token is cut where an entity begins or ends inside it."""
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
    """Where the tokens of `document` stand: those in its meta where they fit the text, else our own."""
    if (tokens := document.meta.get("tokens")) is None:
        return split(document.text)
    if isinstance(tokens, list) and all(isinstance(token, str) and _is_token(token) for token in tokens):
        spans = locate(tokens, document.text)
        if not isinstance(spans, int):
            return spans
    notes["meta tokens do not fit the text: not used"] += 1
    return split(document.text)


def _is_token(token: str) -> bool:
    """Whether `token` can stand on a line and be read as one."""
    line = f"{token}\tO"
    return (
        bool(token) and not re.search(r"[\t\n]", token) and not line.startswith(DOCSTART) and not is_comment(line, -1)
    )


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
