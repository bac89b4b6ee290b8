"""WebAnno TSV 3, which INCEpTION exports and which is only read: a token a line, with a column for each feature.

A document is one sentence, or several that share an annotation. Offsets count UTF-16 units of the file's text, as Java
does, and every token must stand at its offsets. A cell holds `_` for nothing, `*` for an annotation without a value,
`LABEL[3]` for the annotation 3, which several tokens may share, and `|` between several annotations; a backslash is an
escape. All layers of spans are read except those of words (part of speech, lemma …). The option `column` may name one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spantune.core import DataError
from spantune.data.raw.document import Item, Options, RawDocument, RawEntity, Sample
from spantune.data.raw.text_files import read_lines

_MAGIC = "#FORMAT=WebAnno TSV 3"
_FIRST_COLUMN = 3  # the columns before it are number, offsets and token
_TOKEN = re.compile(r"[0-9]+-[0-9]+(?:\.[0-9]+)?\t([0-9]{1,18})-([0-9]{1,18})\t([^\t]*)(?:\t(.*))?", re.DOTALL)
_VALUES = re.compile(r"(?:\\.|[^|\\])+", re.DOTALL)
_VALUE = re.compile(r"(.*?)(?:\[([0-9]+)\])?", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_OF_WORDS = ("POS", "Lemma", "Stem", "MorphologicalFeatures", "SurfaceForm", "Token", "Sentence")
_LABELS = ("value", "label", "type", "entity")
_LINE_BREAKS = ("\n", "\r\n")  # between the #Text lines of a sentence; the offsets of the tokens show which it is
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r"}


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of spans, the feature that is its label, and the column of that feature, from 0 after the token."""

    name: str
    feature: str
    column: int

    @property
    def short(self) -> str:
        """The last part of the layer's name."""
        return self.name.rpartition(".")[2]

    @property
    def names(self) -> set[str]:
        """The names by which the option `column` may select the layer."""
        return {self.name, self.short, self.feature, f"{self.name}|{self.feature}", f"{self.short}|{self.feature}"}


@dataclass(frozen=True, slots=True)
class _Token:
    """A line of a token: its number, its offsets in UTF-16 units, the token, and the cells of its features."""

    line: int
    start: int
    end: int
    form: str
    cells: tuple[str, ...]


@dataclass(slots=True)
class _Sentence:
    """A sentence: its `#Text` lines and its tokens."""

    texts: list[str] = field(default_factory=list)
    tokens: list[_Token] = field(default_factory=list)


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    return sample.text.startswith(_MAGIC)


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`, with the ids `<stem>-<number>`.

    Raises:
        DataError: the header is not that of the format, or declares no layer of spans to read.
    """
    lines = read_lines(path, notes, blank=True, encoding=options.encoding)
    layers = _layers(_header(lines, path), path, options, notes)
    sentences = list(_sentences(lines, path))
    for number, group in enumerate(_groups(sentences, layers), start=1):
        try:
            yield _document(f"{path.stem}-{number}", group, layers, path, notes)
        except DataError as error:
            yield error


def _header(lines: Iterator[tuple[int, str]], path: Path) -> list[str]:
    """Return the lines of the header that declare layers.

    Raises:
        DataError: the file does not begin as this format does.
    """
    declared: list[str] = []
    for number, line in lines:
        if number == 1 and not line.startswith(_MAGIC):
            raise DataError(f"found {line[:40]!r}; expected {_MAGIC}…: name the format it is", path=path, line=1)
        if not line.strip():
            break
        if line.startswith(("#T_SP=", "#T_CH=", "#T_RL=")):
            declared.append(line)
    return declared


def _layers(declared: Sequence[str], path: Path, options: Options, notes: Counter[str]) -> list[_Layer]:
    """Return the layers to read: all layers of spans except those of words, or the one that the option names.

    Raises:
        DataError: there is no such layer.
    """
    every: list[_Layer] = []
    chosen: list[_Layer] = []
    column = 0
    for line in declared:
        kind, _, content = line[1:].partition("=")
        name, *features = content.split("|")
        features = features or [""]
        if kind == "T_SP":
            spans = [_Layer(name, feature, column + index) for index, feature in enumerate(features)]
            every += spans
            own = [layer for layer in spans if not layer.feature.startswith("ROLE_")] or spans
            label = next((layer for wanted in _LABELS for layer in own if layer.feature == wanted), own[0])
            if options.column is None and label.short not in _OF_WORDS:
                chosen.append(label)
                column += len(features)
                continue
            if isinstance(options.column, str) and options.column in (name, label.short):
                chosen.append(label)
        if options.column is None:
            notes[f"layer {name} not read"] += 1
        column += len(features)
    if isinstance(options.column, int):
        chosen = [layer for layer in every if layer.column + _FIRST_COLUMN == options.column % (column + _FIRST_COLUMN)]
    elif options.column is not None and not chosen:
        chosen = [layer for layer in every if options.column in layer.names]
    if not chosen:
        found = ", ".join(f"{layer.short}|{layer.feature}" for layer in every) or "none"
        wanted = "a layer of spans" if options.column is None else repr(options.column)
        raise DataError(f"there is no {wanted}; layers of spans: {found}; name one (--column LAYER)", path=path)
    return chosen


def _sentences(lines: Iterator[tuple[int, str]], path: Path) -> Iterator[_Sentence]:
    sentence = _Sentence()
    for number, line in lines:
        match = _TOKEN.fullmatch(line)
        if match:
            cells = tuple((match[4] or "").split("\t"))
            sentence.tokens.append(_Token(number, int(match[1]), int(match[2]), match[3], cells))
        elif sentence.tokens and (not line.strip() or line.startswith("#Text=")):
            yield sentence
            sentence = _Sentence()
        if line.startswith("#Text="):
            sentence.texts.append(line.removeprefix("#Text="))
        elif line.strip() and not line.startswith("#") and not match:
            raise DataError(
                f"found {line[:40]!r}; expected a token: SENTENCE-TOKEN, START-END, the token and its features, a tab "
                "between: mend the line",
                path=path,
                line=number,
            )
    if sentence.tokens:
        yield sentence


def _groups(sentences: Sequence[_Sentence], layers: Sequence[_Layer]) -> Iterator[list[_Sentence]]:
    """Yield groups of sentences: each sentence by itself, or several that an annotation joins."""
    last: dict[tuple[str, str], int] = {}  # for each annotation, the index of its last sentence
    for number, sentence in enumerate(sentences):
        for layer, _, key, _ in _stated(sentence, layers):
            if key:
                last[layer.name, key] = number
    group: list[_Sentence] = []
    end = -1
    for number, sentence in enumerate(sentences):
        group.append(sentence)
        end = max([end, number, *(last[layer.name, key] for layer, _, key, _ in _stated(sentence, layers) if key)])
        if number == end:
            yield group
            group = []


def _stated(sentence: _Sentence, layers: Sequence[_Layer]) -> Iterator[tuple[_Layer, int, str, str]]:
    """Yield (layer, index of the token, number of the annotation or "", label or "") for each value in the cells."""
    for index, token in enumerate(sentence.tokens):
        for layer in layers:
            cell = token.cells[layer.column] if layer.column < len(token.cells) else "_"
            for stated in _VALUES.findall(cell):
                match = _VALUE.fullmatch(stated)
                assert match is not None
                if match[1] != "_":
                    yield layer, index, match[2] or "", "" if match[1] == "*" else _unescaped(match[1])


def _document(
    id: str, group: Sequence[_Sentence], layers: Sequence[_Layer], path: Path, notes: Counter[str]
) -> RawDocument:
    text, spans = _joined(group, path, notes)
    entities: dict[tuple[str, str], RawEntity] = {}  # by layer and by the number of the annotation
    for sentence, places in zip(group, spans, strict=True):
        for layer, index, number, label in _stated(sentence, layers):
            (start, end), line = places[index], sentence.tokens[index].line
            key = (layer.name, number or f"of line {line}, {len(entities)}")
            if key in entities:
                start, end, line = (
                    min(start, entities[key].start),
                    max(end, entities[key].end),
                    entities[key].line or line,
                )
            elif not label:
                notes[f"annotation without a value: labelled {layer.short}"] += 1
            entities[key] = RawEntity(
                start, end, label or layer.short, text[start:end], field=f"layer {layer.short}", line=line
            )
    return RawDocument(id, text, tuple(entities.values()), path, group[0].tokens[0].line, is_counted=True)


def _joined(group: Sequence[_Sentence], path: Path, notes: Counter[str]) -> tuple[str, list[list[tuple[int, int]]]]:
    """Return the text of the sentences, and for each sentence the spans of its tokens in this text."""
    text = ""
    spans: list[list[tuple[int, int]]] = []
    behind = 0  # the end of the text so far, in UTF-16 units of the file
    for sentence in group:
        own, base, places = _located(sentence, path)
        if spans:
            text += " " * max(base - behind, 0)
            notes["white space between sentences taken as blanks"] += 1
        spans.append([(len(text) + start, len(text) + end) for start, end in places])
        text += own
        behind = base + _units(own)
    return text, spans


def _located(sentence: _Sentence, path: Path) -> tuple[str, int, list[tuple[int, int]]]:
    """Return the text of a sentence, its start in UTF-16 units of the file, and the spans of its tokens.

    Raises:
        DataError: a token does not stand at its offsets.
    """
    first = sentence.tokens[0]
    lines = [_LINE_BREAKS[0].join(sentence.texts), _LINE_BREAKS[1].join(sentence.texts)]
    for text in dict.fromkeys([*lines, *(_unescaped(line, _CONTROLS) for line in lines)]):
        for form in dict.fromkeys((first.form, _unescaped(first.form))):
            place = text.find(form)
            base = first.start - _units(text[:place])
            spans = _spans(sentence, text, base)
            if place >= 0 and isinstance(spans, list):
                return text, base, spans
    wrong = spans if isinstance(spans, _Token) else first
    raise DataError(
        f"the token {wrong.form!r} is not what stands at {wrong.start}-{wrong.end} of the sentence {lines[0][:60]!r}; "
        "expected offsets in UTF-16 units: mend the line",
        path=path,
        line=wrong.line,
    )


def _spans(sentence: _Sentence, text: str, base: int) -> list[tuple[int, int]] | _Token:
    """Return the spans of the tokens of a sentence that begins at unit `base`; or the first token that does not fit."""
    at_unit: dict[int, int] = {}
    unit = base
    for place, character in enumerate(text):
        at_unit[unit] = place
        unit += 2 if character > "\uffff" else 1
    at_unit[unit] = len(text)
    spans = []
    for token in sentence.tokens:
        start, end = at_unit.get(token.start), at_unit.get(token.end)
        if start is None or end is None or text[start:end] not in (token.form, _unescaped(token.form)):
            return token
        spans.append((start, end))
    return spans


def _units(text: str) -> int:
    """Return the length of `text` in UTF-16 units."""
    return len(text) + sum(character > "\uffff" for character in text)


def _unescaped(text: str, controls: dict[str, str] | None = None) -> str:
    return _ESCAPED.sub(lambda match: (controls or {}).get(match[1], match[1]), text)
