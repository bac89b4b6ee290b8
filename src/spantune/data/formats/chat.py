"""Chat data whose answers are entities as JSON, as trainers of LLMs take them: alpaca, `messages` and ShareGPT.

Records are `{"instruction", "input", "output"}`, `{"messages": [{"role", "content"}, …]}` or `{"conversations":
[{"from", "value"}, …]}`. The text is the user's turn without the instruction around it. The instruction is what stands
in every record, up to a line break or a word such as `Text:` or `文本:`. Entities have no offsets; `anchored` finds
them. UniversalNER's conversations, which ask for one label after another, are read too. Alpaca (`.json`) and messages
(JSONL) can be written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spantune.core import DataError, Document, replacing, to_json
from spantune.data.raw.anchored import Surface, anchored, note_lost_places
from spantune.data.raw.answers import answered, stated
from spantune.data.raw.document import Item, Options, RawDocument, Sample, each
from spantune.data.raw.json_files import read_json
from spantune.data.raw.json_records import Record, document_id
from spantune.data.raw.tokens import is_cjk

_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt", "model")
_PAIRS = (("query", "response"), ("prompt", "completion"))  # of ms-swift and of TRL
_FIELDS = (
    "id", "instruction", "input", "output", "messages", "conversations", "system",
    *(name for pair in _PAIRS for name in pair),
)  # fmt: skip
_MARKER = re.compile(r"(?:文本|句子|输入)[:：]|(?:Text|Sentence|Input): ?")
_QUESTION = re.compile(r"What describes (.+) in the text\?")  # as UniversalNER asks

_WORDING = {
    "zh": (
        "请从给定的文本中找出全部下列类型的实体：{labels}。"
        "按实体在文中出现的先后，每个实体输出一行 JSON，例如："
        '{{"entity_text": "原文中的一段", "entity_label": "{first}"}}。实体必须是文本里的原文，一字不改。'
        "没有实体时输出：{none}",
        "没有找到任何实体",
        "文本:",
    ),
    "en": (
        "Find every entity of these types in the given text: {labels}. Write one JSON object a line for each entity, "
        'in the order of the text, such as: {{"entity_text": "words of the text", "entity_label": "{first}"}}. Copy '
        "each entity exactly as it stands in the text. If there is none, write: {none}",
        "No entities found",
        "Text: ",
    ),
}


@dataclass(frozen=True, slots=True)
class _Turn:
    """A user's turn, the assistant's answer to it, and the answer's place in the record."""

    said: str
    answer: object
    place: str


@dataclass(frozen=True, slots=True)
class _Frame:
    """The instruction before and after the text in the user's turn, which is the same in every record."""

    before: str = ""
    after: str = ""

    @classmethod
    def of(cls, said: Iterable[str]) -> _Frame:
        """Return the frame that all turns in `said` share."""
        turns = list(dict.fromkeys(said))
        common = _shared_beginning(turns)
        if marker := _MARKER.match(common):
            return cls(marker[0])
        if len(turns) < 2:
            return cls()
        last = max([common.rfind("\n") + 1, *(match.end() for match in _MARKER.finditer(common))])
        rests = [turn[last:][::-1] for turn in turns]
        ending = _shared_beginning(rests)[::-1]
        return cls(common[:last], ending[ending.find("\n") :] if "\n" in ending else "")

    def inside(self, said: str, notes: Counter[str]) -> str:
        """Return `said` without the frame; what is removed is counted in `notes`."""
        for part in (self.before, self.after):
            if part:
                notes[f"taken off the user's turn, where it stands in every record: {part[:60]!r}"] += 1
        return said.removeprefix(self.before).removesuffix(self.after)


def claims(sample: Sample) -> bool:
    """Whether the file can only be this format."""
    record = sample.record or {}
    for field, name in (("messages", "role"), ("conversations", "from"), ("conversations", "role")):
        turns = record.get(field)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and name in turns[0]:
            return True
    output = record.get("output")
    if isinstance(output, dict):  # as GLiNER 2 writes it
        return isinstance(record.get("input"), str) and "entities" in output
    pairs = (("instruction", "output"), *_PAIRS)
    return any(isinstance(record.get(said), str) and isinstance(record.get(answer), str) for said, answer in pairs)


def read(path: Path, notes: Counter[str], options: Options) -> Iterator[Item]:
    """Yield the documents of `path`; one without an id is called `<stem>-<number>`.

    Raises:
        DataError: the file is neither JSONL nor an array of objects.
    """
    frame = _Frame.of(_said(path, options.encoding))

    def parse(record: Record) -> RawDocument:
        turns = _turns(record)
        for field in record.others(_FIELDS):
            notes[f"field {field!r} not read"] += 1
        text = frame.inside(turns[0].said, notes)
        surfaces = [] if options.unannotated else _surfaces(record, turns, notes)
        entities = anchored(record, text, surfaces, notes)
        return RawDocument(document_id(record, notes), text, entities, path, record.line, is_counted=True)

    return each(read_json(path, notes, options.encoding), parse)


def write(path: Path, documents: Iterable[Document], notes: Counter[str], options: Options) -> None:
    """Write `documents` to `path`: as an alpaca array if its name ends in `.json`, else as messages, one a line.

    The instruction names the labels of the whole corpus. It is in Chinese if most texts are.

    Raises:
        DataError: the file cannot be written.
    """
    documents = list(documents)
    labels = list(dict.fromkeys(entity.label for document in documents for entity in document.entities))
    chinese = sum(any(map(is_cjk, document.text)) for document in documents)
    wording, none, marker = _WORDING["zh" if 2 * chinese > len(documents) else "en"]
    instruction = wording.format(labels=", ".join(labels), first=next(iter(labels), ""), none=none)
    is_alpaca = path.suffix.lower() == ".json"
    records = []
    for document in documents:
        note_lost_places(document, notes)
        notes["score left out"] += sum(entity.score is not None for entity in document.entities)
        notes["meta left out"] += bool(document.meta)
        said, answer = marker + document.text, _answer(document) or none
        record: dict[str, object] = {"instruction": instruction, "input": said, "output": answer}
        if not is_alpaca:
            turns = (("system", instruction), ("user", said), ("assistant", answer))
            record = {"messages": [{"role": role, "content": content} for role, content in turns]}
        records.append(to_json(record))
    notes["id left out"] += len(documents)
    with replacing(path) as file:
        file.write("[\n" + ",\n".join(records) + "\n]\n" if is_alpaca else "".join(line + "\n" for line in records))


def _answer(document: Document) -> str:
    return "\n".join(
        to_json({"entity_text": document.surface(entity), "entity_label": entity.label}) for entity in document.entities
    )


def _shared_beginning(strings: list[str]) -> str:
    if not strings:
        return ""
    first, last = min(strings), max(strings)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _said(path: Path, encoding: str | None) -> Iterator[str]:
    """Yield the user's first turn of every record that can be read."""
    for record in read_json(path, Counter(), encoding):
        if isinstance(record, Record):
            try:
                yield _turns(record)[0].said
            except DataError:
                continue


def _turns(record: Record) -> list[_Turn]:
    """Return the user's turns, each with its answer.

    Raises:
        DataError: there are none, or the turns of user and assistant do not alternate.
    """
    if pair := next((pair for pair in _PAIRS if pair[1] in record.values), None):
        return [_Turn(record.text(pair[0]), record.text(pair[1], blank=True), pair[1])]
    if "output" in record.values:
        given = record.text("input", blank=True) if "input" in record.values else ""
        answer = record.values["output"]
        value = answer if isinstance(answer, dict) else record.text("output", blank=True)
        return [_Turn(given or record.text("instruction"), value, "output")]
    field = "messages" if "messages" in record.values else "conversations"
    turns: list[_Turn] = []
    said: str | None = None
    for index, row in enumerate(record.rows(field)):
        who, what = ("role", "content") if "role" in row.values else ("from", "value")
        role, content = row.text(who), _content(row, what)
        if role in _USER and said is None:
            said = content
        elif role in _ASSISTANT and said is not None:
            turns.append(_Turn(said, content, f"{field}[{index}].{what}"))
            said = None
        elif role != "system" or turns:
            raise row.error(f"found a turn of {role!r}; expected a user's, then an assistant's: mend the order", who)
    if said is not None or not turns:
        raise record.error(
            "expected a user's turn and an assistant's answer to it: add the answer, or remove it", field
        )
    return turns


def _content(row: Record, field: str) -> str:
    """Return the text of a turn: a string, or the joined parts `{"type": "text", "text": …}` of a list.

    Raises:
        DataError: it is neither, or a part is not text, but an image, for example.
    """
    if not isinstance(row.values.get(field), list):
        return row.text(field, blank=True)
    parts = row.rows(field)
    for part in parts:
        if (kind := part.values.get("type", "text")) != "text":
            raise part.error(f"found a part of type {kind!r}; expected text only: remove it, or the record", "type")
    return "".join(part.text("text", blank=True) for part in parts)


def _surfaces(record: Record, turns: list[_Turn], notes: Counter[str]) -> list[Surface]:
    """Return the entities of the only answer; in UniversalNER's conversations, those of one answer for each label."""
    first, *others = turns
    if not others:
        if isinstance(first.answer, str):
            return answered(record, first.answer, first.place, notes)
        return list(stated(record, first.answer, first.place, notes))
    surfaces: list[Surface] = []
    for turn in others:
        question = _QUESTION.fullmatch(turn.said.strip())
        if question is None:
            raise record.error(
                f"found {len(turns)} answers; expected one, or questions `What describes LABEL in the text?` after the "
                "text: make each a record of its own",
                turn.place,
            )
        texts = record.at(turn.place, {"answer": turn.answer}).json("answer")
        surfaces += stated(record, {question[1]: texts}, turn.place, notes)
    return surfaces
