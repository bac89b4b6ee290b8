"""The preparation of a run, as far as it needs no weights: task, documents, splits, token ids, shared prefix.

`plan` audits the result and `train` trains on it, so that both use the same values. No document is dropped. A document
that is too long is an error; with `data.too_long=split` it is split at sentence ends, and with `train.cut_tokens` its
example is truncated.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

from spantune.core import ConfigError, DataError, Document, TaskSpec, as_config, config, number, say, track
from spantune.data import Splits, count_predicted, read_splits, split_long
from spantune.encoding import (
    Example,
    SpanEncoder,
    SpanExample,
    TextEncoder,
    Tokenizer,
    entities_over,
    longest_allowed,
    make_encoder,
    make_task,
    shared_prefix,
)
from spantune.extraction import mark_choices, require_grammar, require_merging
from spantune.models import ModelFiles, cache_root, count_weights, read_files, require_full
from spantune.training.masked import placeholder
from spantune.training.recommendation import READ_FROM, entities_a_label, with_answer, with_values
from spantune.training.warm_start import Start, warm_start

SHORTEST_CHUNK = 64
"""The smallest value that is chosen for `extract.chunk_tokens`, in tokens."""
DEFAULT_PACK_TOKENS = {"cpu": 1024, "cuda": 4096}
log = logging.getLogger(__name__)
Encoded = TypeVar("Encoded", Example, SpanExample)


@dataclass(frozen=True)
class Prepared:
    """A recipe, and the data and model files that it names, read and encoded; the weights are not loaded yet.

    Attributes:
        recipe: the recipe. Values that its author left open are filled in: they were chosen by the sizes of corpus and
            model, or taken from the adapter of `train.from`.
        task: the task of the recipe.
        splits: the documents of train, dev and test.
        files: the files of the base model.
        encoder: encodes documents as examples.
        examples: the encoded training documents, in their order.
        cut: how many examples `train.cut_tokens` has truncated.
        start: the adapter of `train.from`; None without one.
    """

    recipe: config.Config
    task: TaskSpec
    splits: Splits
    files: ModelFiles
    encoder: TextEncoder
    examples: tuple[Example, ...] | tuple[SpanExample, ...]
    cut: int
    start: Start | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.files.tokenizer

    @property
    def prefix(self) -> tuple[int, ...]:
        """The token ids that all training examples begin with."""
        if isinstance(self.encoder, SpanEncoder):
            return self.encoder.prefix
        return self.examples[0].ids[: shared_prefix(self.written)]

    @property
    def written(self) -> tuple[Example, ...]:
        """The training examples of a task whose answers are written; empty where spans are read."""
        return tuple(example for example in self.examples if isinstance(example, Example))

    def pack_tokens(self, device: str) -> int:
        """Return the maximum number of tokens in a pack on a `device` of type "cpu" or "cuda".

        It is never less than the number of tokens in the longest example.
        """
        budget = self.recipe.train.pack_tokens or DEFAULT_PACK_TOKENS[device]
        return max(budget, max(len(example.ids) for example in self.examples))

    def steering(self, count: int) -> list[Document]:
        """Return the `count` dev documents that are extracted during training, in the order of the dev split.

        The choice depends on `run.seed` only. A larger `count` returns the same documents and further ones.
        """
        indices = list(range(len(self.splits.dev)))
        random.Random(self.recipe.run.seed).shuffle(indices)
        selected = sorted(indices[:count])
        return [self.splits.dev[index] for index in selected]


def prepare(recipe: config.Config, own_start: Path | None = None) -> Prepared:
    """Read, check, split and encode the documents of a recipe, and read the files of its model except the weights.

    Args:
        recipe: the recipe.
        own_start: for a run that is resumed, the run's own copy of the adapter of `train.from`, which is read instead
            of `train.from`.

    Raises:
        SpantuneError: a file, a label, the tokenizer or a document's length cannot be used.
    """
    recipe = as_config(recipe)
    require_grammar(recipe.extract, on_choices=recipe.train.on_choices)
    require_merging(recipe.extract, recipe.model.base)
    task = make_task(recipe.task)
    splits = read_splits(recipe.data)
    for note in splits.merges:
        say(note)
    _warn_of_predictions(recipe, splits)
    for documents, path in splits_with_files(recipe, splits):
        _check_labels(task, documents, path)
    files = read_files(recipe.model.source)
    recipe, start = warm_start(recipe, files, own_start)
    if recipe.train.masked_epochs:
        placeholder(files.tokenizer)  # raises now, and not after the model is loaded, if the vocabulary has none
    weights = count_weights(files.folder)
    require_full(recipe.lora, recipe.model.base, weights)
    entities = entities_a_label(splits.train)
    is_open, recipe = recipe.task.answer is None, with_answer(recipe, entities)
    if is_open and recipe.task.answer == "spans":
        say(
            f"a label has {entities:,} training entities on average: they are read "
            f"(task.answer=spans), which is better from {READ_FROM} on; set task.answer=jsonl to have them written"
        )
    task = make_task(recipe.task)
    if task.reads and task.template != "chat":
        raise ConfigError(
            f"task.preset={recipe.task.preset} is a prompt for writing, and task.answer=spans reads; set "
            "task.preset=cmeee"
        )
    settings = recipe.train
    unlimited = settings.cut_tokens is not None
    recipe = _with_longest(recipe, splits, start)
    encoder = make_encoder(files.tokenizer, task, recipe.spans, None if unlimited else settings.max_tokens)
    if recipe.data.too_long == "split":
        pieces = (split_long(document, encoder.fits) for document in splits.train)
        splits = replace(splits, train=tuple(piece for group in pieces for piece in group))
    recipe = with_values(recipe, len(splits.train), weights)
    path = config.name_of(recipe.data.train)
    if isinstance(encoder, SpanEncoder):
        _require_readable(splits.train, path, encoder.longest)
        read = tuple(_encoded(encoder.example, splits.train, path))
        return Prepared(_with_chunks(recipe, read), task, splits, files, encoder, read, 0, start)
    for documents, path in splits_with_files(recipe, splits):
        _warn_of_blanks(documents, path)
    examples = tuple(_encoded(encoder.example, splits.train, path))
    examples, cut = _cut(examples, settings.cut_tokens)
    # If a task without nesting has overlapping entities, an audit of `plan` fails, and choices need not be marked.
    if recipe.train.on_choices and (task.nested or not overlapping(splits.train)):
        cache = cache_root() / "gold"
        examples = mark_choices(examples, splits.train, encoder, files.config.vocab_size, cache)
    return Prepared(recipe, task, splits, files, encoder, examples, cut, start)


def _with_longest(recipe: config.Config, splits: Splits, start: Start | None) -> config.Config:
    """Return the recipe with `spans.longest` filled in, if spans are read and the recipe leaves it open.

    The value covers the entities of train, dev and test. Nothing else is taken from the test documents; they are
    included since a head whose `longest` is too small for one of their entities would be refused. After a warm start
    the value is at least that of the earlier head.
    """
    if recipe.task.answer != "spans" or recipe.spans.longest is not None:
        return recipe
    longest = longest_allowed((*splits.train, *splits.dev, *splits.test), recipe.spans)
    longest = max(longest, (start.longest if start else None) or 0)
    return recipe.model_copy(update={"spans": recipe.spans.model_copy(update={"longest": longest})})


def _require_readable(documents: Sequence[Document], path: str, longest: int) -> None:
    """Check the lengths of all entities before encoding, so that the error names a length that is enough for all.

    Raises:
        DataError: an entity has more than `longest` characters.
    """
    too_long = [
        (entity.end - entity.start, document.id, f"{entity.label} [{entity.start}, {entity.end})")
        for document, entity in entities_over(documents, longest)
    ]
    if too_long:
        length, id_, entity = max(too_long)
        have = f"{number(len(too_long), 'entity', 'entities')} over spans.longest={longest} characters"
        raise DataError(
            f"{have}, the longest with {length}: document {id_!r}, {entity}; set spans.longest to {length} or more, or "
            "leave it out, so that it is chosen",
            path=path,
            field="entities",
        )


def _with_chunks(recipe: config.Config, examples: Sequence[SpanExample]) -> config.Config:
    """Return the recipe with `extract.chunk_tokens` filled in, if the recipe leaves it open.

    The value is the number of tokens in the longest training text. A model that reads spans finds few entities in a
    text that is longer than all texts that it was trained on.
    """
    if recipe.extract.chunk_tokens is not None:
        return recipe
    longest = max(SHORTEST_CHUNK, *(len(example.ids) - example.text_start for example in examples))
    return recipe.model_copy(update={"extract": recipe.extract.model_copy(update={"chunk_tokens": longest})})


def splits_with_files(recipe: config.Config, splits: Splits) -> list[tuple[tuple[Document, ...], str]]:
    """Return the documents of train, of dev and of test, each with the name of the files that they come from."""
    data = recipe.data
    dev = data.dev or config.files_of(data.train)[0]
    files = data.train, dev, data.test or dev
    return list(zip((splits.train, splits.dev, splits.test), map(config.name_of, files), strict=True))


def overlapping(documents: Sequence[Document]) -> list[Document]:
    """Return the documents in which two entities overlap."""

    def overlap(document: Document) -> bool:
        ends = accumulate((entity.end for entity in document.entities), max)
        return any(entity.start < end for end, entity in zip(ends, document.entities[1:], strict=False))

    return [document for document in documents if overlap(document)]


def _encoded(encode: Callable[[Document], Encoded], documents: Sequence[Document], path: str) -> Iterator[Encoded]:
    """Yield the example of each document.

    Raises:
        DataError: a document cannot be encoded; the error names the file.
    """
    for document in track(documents, "encode", len(documents)):
        try:
            yield encode(document)
        except DataError as error:
            raise DataError(error.message, path=path, field=error.field) from None


def _warn_of_blanks(documents: Sequence[Document], path: str) -> None:
    """Log how many gold entities begin or end with white space; extraction never returns such an entity."""
    padded = [
        (document, entity)
        for document in documents
        for entity in document.entities
        if (surface := document.surface(entity)) != surface.strip()
    ]
    if padded:
        document, entity = padded[0]
        log.warning(
            "%s: %d entities begin or end with white space, first %r in document %r [%d, %d); extraction never states "
            "such ones, so that they count as missed: trim them (`spantune data check FILE --fix OUT`)",
            path, len(padded), document.surface(entity), document.id, entity.start, entity.end,
        )  # fmt: skip


def _warn_of_predictions(recipe: config.Config, splits: Splits) -> None:
    """Log how many training documents have entities with scores: they are predictions and not gold annotation."""
    if count := count_predicted(splits.train):
        log.warning(
            "%s: %d training documents have entities with scores: predictions that nobody corrected, and the model "
            "would learn its own errors from them; leave them out of the export, or correct them",
            config.name_of(recipe.data.train), count,
        )  # fmt: skip


def _check_labels(task: TaskSpec, documents: Sequence[Document], path: str) -> None:
    """Check that every label of the documents is one of the task's.

    Raises:
        DataError: a label is not; the error names the file.
    """
    try:
        task.check(documents)
    except DataError as error:
        raise DataError(error.message, path=path, field=error.field) from None


def _cut(examples: tuple[Example, ...], size: int | None) -> tuple[tuple[Example, ...], int]:
    """Return the examples truncated at `size` tokens, as the tutorial does, and how many of them were longer."""
    if size is None:
        return examples, 0
    cut = sum(len(example.ids) > size for example in examples)
    if cut:
        log.warning(
            "train.cut_tokens=%d cuts %d of %d samples: their last entities and their stop token are never learnt",
            size,
            cut,
            len(examples),
        )
    return tuple(replace(example, ids=example.ids[:size]) for example in examples), cut
