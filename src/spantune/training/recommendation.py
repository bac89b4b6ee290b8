"""The hyperparameters of a recipe that names none, chosen by the sizes of corpus and model.

If nothing says whether entities are written or spans are read, that depends on the number of entities per label: a span
head learns its types from nothing, while a model that writes knows what the name of a label means. TABLE is for
writing, READ_TABLE for reading.

The rows for models under 1 B weights are measured on the embedded model and four corpora
(bench/results/2026-11-28-h200-hyperparameters.md): the chosen rate, batch and way of answering reached at least 90 % of
the best F1 of fourteen trials of five minutes on two CPU cores. The rows of TABLE for larger models follow the
literature: QLoRA (arXiv 2305.14314) trains models of 7 B and 13 B weights with LoRA on all linear layers at 2e-4, and
"LoRA Learns Less and Forgets Less" (arXiv 2405.09673) recommends all modules, rank 16 and an alpha of twice the rank.
The rows of READ_TABLE for larger models were not measured. Small corpora get several epochs, so that the optimizer
takes some hundred steps. For reading with over 6,000 sentences the values are those of the study in docs/quality.md.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from spantune.core import Config, ConfigError, Document, config, nearest, shows_gpu
from spantune.encoding import PRESETS

WEIGHTS = {"bundled:gemma3-270m": 268_098_176, "bundled:smollm2-135m": 134_515_008}
"""The number of weights of each model that comes with spantune."""
NAMED_WEIGHTS = {"phi-4": 14.7e9, "phi-3.5-mini": 3.8e9, "phi-3-mini": 3.8e9}
"""The number of weights of models whose names do not state it."""
Device = Literal["cpu", "cuda"]
FULL_RATE = 1e-4
"""The learning rate of full fine-tuning, instead of the one in the table, which is for adapters."""
ANY = 10**15
"""A number larger than any number of documents or weights."""
READ_FROM = 60
"""With at least this many training entities per label, on average, reading spans is no worse than writing them.

Measured on four corpora of 40 to 1,000 sentences (bench/results/2026-11-28-h200-hyperparameters.md)."""


@dataclass(frozen=True)
class Recommendation:
    """A row of the table: the hyperparameters for a range of models and corpora.

    Attributes:
        name: the range, in words.
        weights: the most weights of a model for this row.
        documents: the most training documents for this row.
        learning_rate: the peak learning rate.
        batch_examples: the examples of an optimizer step.
        epochs: how many times each document is seen.
        rank: the rank of the adapter.
        alpha: the alpha of the adapter.
        loss_on: the tokens of the answer with loss; only for writing.
    """

    name: str
    weights: int
    documents: int
    learning_rate: float
    batch_examples: int
    epochs: float
    rank: int = 16
    alpha: float = 32
    loss_on: config.LossOn = "choices"


_B = 10**9
TABLE = (
    Recommendation("under 1 B weights, up to 20 documents", _B, 20, 1e-3, 4, 60),
    Recommendation("under 1 B weights, up to 60 documents", _B, 60, 1e-3, 8, 40),
    Recommendation("under 1 B weights, up to 250 documents", _B, 250, 1e-3, 8, 16),
    Recommendation("under 1 B weights, up to 700 documents", _B, 700, 1e-3, 8, 4),
    Recommendation("under 1 B weights, over 700 documents", _B, ANY, 1e-3, 8, 2),
    Recommendation("1 to 4 B weights, up to 250 documents", 4 * _B, 250, 5e-4, 4, 5, loss_on="answer"),
    Recommendation("1 to 4 B weights, over 250 documents", 4 * _B, ANY, 5e-4, 16, 3, loss_on="answer"),
    Recommendation("over 4 B weights, up to 250 documents", ANY, 250, 2e-4, 4, 4, loss_on="answer"),
    Recommendation("over 4 B weights, over 250 documents", ANY, ANY, 2e-4, 16, 2, loss_on="answer"),
)
READ_TABLE = (
    Recommendation("under 1 B weights, up to 300 documents", _B, 300, 3e-4, 8, 40, 64, 128),
    Recommendation("under 1 B weights, up to 1,500 documents", _B, 1500, 3e-4, 8, 8, 64, 128),
    Recommendation("under 1 B weights, up to 6,000 documents", _B, 6000, 3e-4, 32, 6, 64, 128),
    Recommendation("under 1 B weights, over 6,000 documents", _B, ANY, 3e-4, 64, 2.5, 64, 128),
    Recommendation("over 1 B weights, up to 300 documents", ANY, 300, 2e-4, 8, 15, 64, 128),
    Recommendation("over 1 B weights, up to 1,500 documents", ANY, 1500, 2e-4, 16, 6, 64, 128),
    Recommendation("over 1 B weights, up to 6,000 documents", ANY, 6000, 2e-4, 16, 4, 64, 128),
    Recommendation("over 1 B weights, over 6,000 documents", ANY, ANY, 2e-4, 16, 2, 64, 128),
)
"""The table for reading spans; `loss_on` is not used there."""


def recommend(documents: int, weights: int, answer: str = "jsonl") -> Recommendation:
    """Return the row of the table for a number of training documents, a model's number of weights, and an answer."""
    table = READ_TABLE if answer == "spans" else TABLE
    return next(row for row in table if weights <= row.weights and documents <= row.documents)


def entities_a_label(documents: Sequence[Document]) -> int:
    """Return the mean number of entities per label, over labels with entities; 0 if there are no entities."""
    counts = Counter(entity.label for document in documents for entity in document.entities)
    return counts.total() // max(1, len(counts))


def recommended_answer(entities: int) -> Literal["jsonl", "spans"]:
    """Return the better way to answer a task, by the mean number of training entities per label.

    It holds for models of any size.
    """
    return "spans" if entities >= READ_FROM else "jsonl"


def with_answer(recipe: Config, entities: int) -> Config:
    """Return `recipe` with the answer that suits the corpus, if neither recipe nor preset names one.

    If a setting of the recipe is for writing only, the answer is written.

    Args:
        recipe: the recipe.
        entities: the mean number of training entities per label (`entities_a_label`).
    """
    if recipe.task.answer or "answer" in PRESETS.get(recipe.task.preset or "", {}):
        return recipe
    answer = "jsonl" if writing_keys(recipe) else recommended_answer(entities)
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"answer": answer})})


def writing_keys(recipe: Config) -> list[str]:
    """Return the keys of a recipe whose values have a meaning for writing only."""
    train, task = recipe.train, recipe.task
    means_writing = {
        "train.loss_on": train.loss_on is not None,
        "train.pack": train.pack != "shared",
        "train.cut_tokens": train.cut_tokens is not None,
        "extract.grounded": not recipe.extract.grounded,
        "task.empty_answer": task.empty_answer is not None,
        "task.template": task.template == "tutorial",
    }
    return [key for key, is_set in means_writing.items() if is_set]


def with_values(recipe: Config, documents: int, weights: int) -> Config:
    """Fill in the values that a recipe leaves open, by the sizes of corpus and model.

    The loss is on the whole answer where it cannot be on choices: without the grammar, without shared packs, or with
    truncated examples. It stays None where spans are read. If the recipe names a rank but no alpha, alpha / rank is as
    in the table. Full fine-tuning has neither rank nor alpha.

    Args:
        recipe: the recipe, with its answer filled in.
        documents: the number of training documents.
        weights: the number of weights of the model.
    """
    answer = recipe.task.answer or "jsonl"
    row, settings, lora = recommend(documents, weights, answer), recipe.train, recipe.lora
    able = recipe.extract.grounded and settings.pack == "shared" and not settings.cut_tokens
    rank = row.rank if lora.rank is None else lora.rank
    train = {
        "learning_rate": FULL_RATE if lora.full else row.learning_rate,
        "batch_examples": row.batch_examples,
        "epochs": row.epochs,
        "loss_on": None if answer == "spans" else row.loss_on if able else "answer",
    }
    absent = {key: value for key, value in train.items() if getattr(settings, key) is None}
    adapter = (
        {} if lora.full else {"rank": rank, "alpha": row.alpha * rank / row.rank if lora.alpha is None else lora.alpha}
    )
    return recipe.model_copy(
        update={"train": settings.model_copy(update=absent), "lora": lora.model_copy(update=adapter)}
    )


def weights_of(source: str) -> int | None:
    """Return the number of weights of a model, without loading it; None if its name does not state it.

    It is counted in the files of a folder, and read from the name of any other model (`model-7b`).

    Args:
        source: a folder, bundled:NAME, hf:OWNER/NAME or modelscope:OWNER/NAME.

    Raises:
        ConfigError: no such model comes with spantune, or there is no such folder.
    """
    prefix, colon, name = source.partition(":")
    if Path(source).is_dir():
        from spantune.models import count_weights

        return count_weights(Path(source))
    if prefix == "bundled":
        if source not in WEIGHTS:
            raise ConfigError(f"no model {name!r} comes with spantune; {nearest(source, WEIGHTS)}")
        return WEIGHTS[source]
    if not colon or prefix not in ("hf", "modelscope"):
        raise ConfigError(
            f"model {source!r} is no folder; expected a folder, bundled:NAME, hf:OWNER/NAME or modelscope:OWNER/NAME"
        )
    for known, weights in NAMED_WEIGHTS.items():
        if known in name.lower():
            return int(weights)
    sizes = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z])", name.lower().replace("-", " ").replace("_", " "))
    return int(float(sizes[0][0]) * {"b": 1e9, "m": 1e6}[sizes[0][1]]) if sizes else None


def device_here() -> Device:
    """Return `cuda` if torch sees a GPU, else `cpu`; torch is not imported if the system shows no GPU."""
    if not shows_gpu() or importlib.util.find_spec("torch") is None:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
