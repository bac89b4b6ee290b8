"""Rows of tokens and tags as documents, and documents as tokens: what Hugging Face's files and GLiNER have in common.

The text is joined from the tokens by the rule of `tokens`. Tags are spelt and decoded as `tags` says; invalid tags are
refused unless they are repaired. Tags are strings, or numbers if the file names their classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from spantune.core import ConfigError, DataError, Document, Entity
from spantune.data.raw import tabular, tags, tokens
from spantune.data.raw.document import Defect, RawDocument, RawEntity
from spantune.data.raw.json_records import Record
from spantune.data.rules import Rule

EMPTY_TOKEN = "empty token with the tag O left out"
JOINED = "text joined from its tokens"
NOT_RESTORED = "white space that reading does not restore"
_MOST_STEPS = 1 << 14  # the most different pairs of a tag and the next tag that are counted
KEPT_TOKENS = "tokens"
"""The key of meta that holds the tokens of a document, if `tokens.split` would cut its text differently."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """How a table of tokens and tags is read.

    Args:
        tokens: the column of tokens.
        column: the column of tags.
        names: the names of the tags, if these are numbers.
        notes: counts what was repaired or left out.
        joiner: the text between tokens; None to decide from the tokens.
        scheme: the scheme of the tags.
        keeps_tokens: whether a row's own `text` is used if its tokens fit, and tokens are kept in the meta if needed.
        spelling: how the tags are spelt.
        label: the label of tags that have none.
    """

    tokens: str
    column: str
    names: tuple[str, ...]
    notes: Counter[str]
    joiner: str | None = None
    scheme: tags.Scheme = "IOB2"
    keeps_tokens: bool = False
    spelling: tags.Spelling = "prefix"
    label: str | None = None

    def after(self, records: Iterable[Record | DataError]) -> Tagged:
        """Return a copy with the spelling, the scheme and the joiner that `records` show. Wrong rows are ignored.

        Raises:
            ConfigError: the tags are B and I alone, and there is no `label`.
        """
        written = tokens.TokenCensus()
        steps: Counter[tuple[str | None, str | None]] = Counter()
        counts: Counter[str] = Counter()
        for record in records:
            if isinstance(record, DataError):
                continue
            try:
                words, stated = self._cells(record)
                cells = [self._name(value) for value in stated]
                filled = replace(record, values={self.tokens: [word for word in words if word != ""]})
                for word in words_in(filled, self.tokens):
                    written.add(word, False)
            except DataError:
                continue
            stated_tags = [cell for cell in cells if isinstance(cell, str)]
            if len(steps) < _MOST_STEPS and len(stated_tags) == len(cells):
                counts.update(stated_tags)
                steps.update(pairwise([None, *stated_tags, None]))
        spelling = tags.spelling_of(counts, counts.total(), is_named=True) or "prefix"
        if spelling == "bare" and self.label is None:
            raise ConfigError(
                f"the tags of column {self.column!r} are B and I without a type; name the label of their entities "
                "(--label NAME, data.label in a recipe)"
            )
        self.notes["tags without B and I: neighbours of one type read as one entity"] += spelling == "io"
        characters = written.cjk and written.characters and self.joiner is None
        told = replace(self, joiner="" if characters else self.joiner, spelling=spelling)
        return replace(told, scheme="IOB1" if spelling == "io" else tags.scheme_of(steps, told._tag))

    def parse(self, record: Record) -> RawDocument:
        """Return the document of a row. Columns other than id, tokens and tags are its meta.

        Raises:
            DataError: tokens and tags are not lists of equal length, or one of their values is not valid.
        """
        cells = self._cells(record)
        words, row_tags = self._row(record, *cells)
        self.notes[EMPTY_TOKEN] += len(cells[0]) - len(words)
        known: tuple[str, ...] = (self.tokens, self.column)
        text, spans = tokens.join(words, self.joiner)
        stated = record.values.get("text") if self.keeps_tokens else None
        if self.tokens == "text" and isinstance(stated, str):  # there is one tag for each character
            text, spans = "".join(words), [(place, place + 1) for place in range(len(words))]
        elif isinstance(stated, str) and isinstance(
            places := tokens.locate(words, record.text("text", blank=True)), list
        ):
            known, text, spans = (*known, "text"), stated, places
        else:
            self.notes[JOINED] += 1
        entities = []
        for chunk in tags.decode(row_tags, self.scheme):
            start, end = spans[chunk.start][0], spans[chunk.end - 1][1]
            defect = Defect(Rule.BROKEN_TRANSITION, chunk.fault, tolerated=False) if chunk.fault else None
            place = f"{self.column}[{chunk.place if chunk.fault else chunk.start}]"
            entities.append(RawEntity(start, end, chunk.label, text[start:end], field=place, defect=defect))
        document = tabular.document(record, text, tuple(entities), self.notes, known)
        document = replace(document, is_counted=True)
        return with_tokens(document, words) if self.keeps_tokens else document

    def _row(self, record: Record, words: list[object], stated: list[object]) -> tuple[list[str], list[tags.Tag]]:
        """Return the tokens and tags of a row whose cells these are, without the empty tokens outside of entities."""
        row_tags = [self._tag_of(record, value, index) for index, value in enumerate(stated)]
        kept = [index for index, tag in enumerate(row_tags) if words[index] != "" or tag.role != "O"]
        filled = replace(record, values={self.tokens: [words[index] for index in kept]})
        return words_in(filled, self.tokens), [row_tags[index] for index in kept]

    def _cells(self, record: Record) -> tuple[list[object], list[object]]:
        """Return the tokens and the tags of a row as the file states them."""
        words, stated = record.values.get(self.tokens), record.values.get(self.column)
        if isinstance(words, str) and self.tokens == "text":
            words = list(record.text(self.tokens, blank=True))
        if not isinstance(words, list) or not isinstance(stated, list) or len(words) != len(stated):
            raise record.error(
                f"expected a list of tokens and one of as many tags; found {_size(words)} and {_size(stated)}: mend "
                "the row",
                self.column,
            )
        return words, stated

    def _name(self, value: object) -> object:
        """Return the name of a tag if `value` is the number of a class; otherwise `value` itself."""
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.names):
            return self.names[value]
        return value

    def _tag(self, cell: str) -> tags.Tag | None:
        return tags.OUTSIDE if cell == tags.UNSET else tags.parse_tag(cell, self.spelling, self.label or "")

    def _tag_of(self, record: Record, value: object, index: int) -> tags.Tag:
        name = self._name(value)
        if isinstance(name, str) and (tag := self._tag(name)):
            return tag
        valid = f"a number below {len(self.names)}" if self.names else "a string"
        remedy = "map the tags of the column, or name another (--column NAME)"
        if isinstance(value, int) and not self.names:
            remedy = (
                "map the tags of the column to their names, which the data set's card lists as ClassLabel, or save it "
                "with to_parquet or save_to_disk, which keep them"
            )
        raise record.error(
            f"found {name!r}; expected {valid} for a tag such as O, B-dis, I-dis: {remedy}", f"{self.column}[{index}]"
        )


def words_in(record: Record, column: str) -> list[str]:
    """Return the tokens in `column` of a row.

    Raises:
        DataError: the value is not a list of strings, or one of them is empty.
    """
    words = record.items(column)
    return [
        replace(record, values={column: word}, inside=f"{record.inside}token {index} of ").text(column)
        for index, word in enumerate(words)
    ]


def with_tokens(document: RawDocument, words: Sequence[str]) -> RawDocument:
    """Return `document`; its meta gets the tokens `words` if `tokens.split` would cut its text differently."""
    if [document.text[start:end] for start, end in tokens.split(document.text)] == list(words):
        return document
    return replace(document, meta={**document.meta, KEPT_TOKENS: list(words)})


class Tokenizer:
    """Cuts documents into tokens at the edges of entities, and counts texts that reading will not restore exactly."""

    def __init__(self, notes: Counter[str], joiner: str | None = None) -> None:
        self.notes, self.joiner = notes, joiner
        self._census = tokens.TokenCensus()
        self._changed: Counter[str | None] = Counter()  # for each joiner, the texts that reading would not restore

    def words(self, document: Document, entities: Iterable[Entity]) -> tuple[list[str], list[tuple[int, int]]]:
        """Return the tokens of `document`, and for each entity its first token and the token after its last.

        The tokens are those in the meta if they fit the text. A token in which an entity begins or ends is cut there.

        Raises:
            DataError: an entity begins or ends with white space, which is in no token.
        """
        entities = list(entities)
        edges = {edge for entity in entities for edge in (entity.start, entity.end)}
        spans = tokens.cut(self._spans(document), edges)
        words = [document.text[start:end] for start, end in spans]
        for index, word in enumerate(words):
            self._census.add(word, index == 0)
        for joiner in {self.joiner, "", None}:
            self._changed[joiner] += tokens.join(words, joiner)[0] != document.text
        starts = {start: index for index, (start, _) in enumerate(spans)}
        ends = {end: index for index, (_, end) in enumerate(spans, 1)}
        for entity in entities:
            if entity.start not in starts or entity.end not in ends:
                raise DataError(
                    f"document {document.id!r}: {entity.label} {document.surface(entity)!r} [{entity.start}, "
                    f"{entity.end}) begins or ends with white space, which is in no token; trim it, or write another "
                    "format",
                    field="entities",
                )
        return words, [(starts[entity.start], ends[entity.end]) for entity in entities]

    def finish(self) -> None:
        """Note how many texts reading will not restore. Call it after the last document: the joiner depends on all."""
        is_joined = self.joiner is None and self._census.cjk and self._census.characters
        self.notes[NOT_RESTORED] += self._changed["" if is_joined else self.joiner]

    def _spans(self, document: Document) -> list[tuple[int, int]]:
        kept = document.meta.get(KEPT_TOKENS)
        if kept is None:
            return tokens.split(document.text)
        if isinstance(kept, list) and all(isinstance(word, str) and word for word in kept):
            spans = tokens.locate(kept, document.text)
            if not isinstance(spans, int):
                return spans
        self.notes["meta tokens do not fit the text: not used"] += 1
        return tokens.split(document.text)


def class_names(feature: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names of the classes of a column; () if its values are not numbers of classes.

    The column has lists of class labels, or lists of structs with the field `label`.

    Args:
        feature: the feature of the column, as `datasets` writes it in JSON.
    """
    inner = _inside(feature)
    label = inner.get("label", inner)
    names = _inside(label).get("names") if isinstance(label, Mapping) else None
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def _inside(feature: Mapping[str, object]) -> Mapping[str, object]:
    inner = feature.get("feature", feature)
    return inner if isinstance(inner, Mapping) else {}


def _size(value: object) -> str:
    return str(len(value)) if isinstance(value, list) else repr(value)
