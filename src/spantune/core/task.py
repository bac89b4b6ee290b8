"""TaskSpec: the labels to extract and how the model is asked for them, saved as `task.json`.

Training writes `task.json` into the run folder and the adapter folder. Evaluation and extraction read it from there, so
that they use the same task as training. The package `encoding` makes the prompt of a document from it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from spantune.core.document import Document, Entity
from spantune.core.errors import DataError, RunError, expect, expect_each, nearest
from spantune.core.files import first_line, replace_text, require_folder

TASK_FILE = "task.json"
AnswerFormat = Literal["jsonl", "grouped", "inline", "jsonl_seed", "spans"]


class Label(BaseModel):
    """An entity type: the code that is written in answers, its name, and what it covers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str = Field(min_length=1)
    name: str = ""
    description: str = ""


class TaskSpec(BaseModel):
    """Label set, instruction and answer format of one extraction task.

    Args:
        labels: the entity types; their codes are unique.
        instruction: what the model is asked to do.
        answer: the format in which the model writes entities, or `spans`: the model writes nothing, and a head reads
            the entities from the text.
        empty_answer: what the model writes for a text without entities. With "" it stops at once.
        language: the language of the texts and the instruction, `zh` or `en`.
        template: `chat` is the chat template of the tokenizer. `tutorial` is the literal string of the tutorial, in
            which `<im_sep>` is four ordinary tokens; use it only to reproduce the tutorial's run.
        nested: whether entities may overlap. If False, the instruction says so and the grammar forbids it. If entities
            overlap nevertheless, the one with the highest score is kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[Label, ...] = Field(min_length=1)
    instruction: str = Field(min_length=1)
    answer: AnswerFormat = "jsonl"
    empty_answer: str = ""
    language: str = "en"
    template: Literal["chat", "tutorial"] = "chat"
    nested: bool = True

    @field_validator("labels")
    @classmethod
    def _codes_are_unique(cls, labels: tuple[Label, ...]) -> tuple[Label, ...]:
        codes = [label.code for label in labels]
        repeated = sorted({code for code in codes if codes.count(code) > 1})
        if repeated:
            raise ValueError(f"label codes must be unique; repeated: {', '.join(repeated)}")
        return labels

    @field_validator("empty_answer")
    @classmethod
    def _is_one_bare_line(cls, answer: str) -> str:
        if answer != answer.strip() or "\n" in answer:
            raise ValueError("empty_answer must be one line without spaces at its ends")
        return answer

    @property
    def reads(self) -> bool:
        """Whether a head reads the entities (the answer `spans`), so that the model writes nothing."""
        return self.answer == "spans"

    @property
    def codes(self) -> tuple[str, ...]:
        """The label codes, in the order of the label set."""
        return tuple(label.code for label in self.labels)

    @property
    def names(self) -> dict[str, str]:
        """Label code to name, in the order of the label set; the code where a label has no name."""
        return {label.code: label.name or label.code for label in self.labels}

    def check(self, documents: Iterable[Document]) -> None:
        """Check that every entity of `documents` has a label of this task.

        Raises:
            ConfigError: `documents` is not a list of Documents.
            DataError: a label is unknown. The message names the document, the entity and the most similar label.
        """
        checked = expect_each(documents, Document, "documents", "a list of Documents")
        if unknown := first_unknown(checked, self.codes):
            document, entity = unknown
            raise DataError(
                f"document {document.id!r}: the label {entity.label!r} of {document.surface(entity)!r} "
                f"[{entity.start}, {entity.end}) is not one of the task's; {nearest(entity.label, self.codes)}. Add it "
                "to task.labels, or give it another name: spantune data map FILE OLD=NEW --out NEW_FILE",
                field="entities",
            )

    def save(self, folder: str | Path) -> None:
        """Write `task.json` into `folder`, and replace an earlier one.

        Raises:
            DataError: the folder does not exist.
            OSError: the file cannot be written.
        """
        expect(folder, (str, Path), "TaskSpec.save", "the path of a folder")
        require_folder(Path(folder) / TASK_FILE)
        replace_text(Path(folder) / TASK_FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> TaskSpec:
        """Read `task.json` from a run or adapter folder.

        Raises:
            RunError: the file is absent, cannot be read, or is not a task.
        """
        path = Path(expect(folder, (str, Path), "TaskSpec.load", "the path of a run or adapter folder")) / TASK_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{folder}: no {TASK_FILE} here; expected a run or adapter folder of spantune") from None
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {first_line(error)}; restore it from the run folder") from None
        except ValidationError as error:
            raise RunError(f"{path}: not a task: {error.errors()[0]['msg']}; restore it from the run folder") from None


def first_unknown(documents: Iterable[Document], codes: Container[str]) -> tuple[Document, Entity] | None:
    """Return the first entity whose label is not in `codes`, as (document, entity); None if all labels are in it."""
    entities = ((document, entity) for document in documents for entity in document.entities)
    return next(((document, entity) for document, entity in entities if entity.label not in codes), None)
