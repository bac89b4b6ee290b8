"""A recipe as commented YAML: each value with a short reason.

A new user reads this text first, so every line says what the value does or where it comes from.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import yaml

from spantune.core import to_json, visible
from spantune.encoding import PRESETS
from spantune.training.recommendation import Device, Recommendation
from spantune.training.survey import Split, Survey

CPU_MEASURED = 300
"""The most documents for the final figures on a CPU, which extracts one or two documents a second."""
CPU_READ = 1000
"""The same where spans are read."""
CPU_A_MINUTE = 400
"""The number of documents on which a small model trains in a minute on a CPU."""
CPU_DEV_DOCUMENTS = 32
"""The number of dev documents in an evaluation during training on a CPU."""
CPU_READ_DEV_DOCUMENTS = 200
"""The same where spans are read."""
LONG = 300
"""A text with more characters might not fit into `train.max_tokens` together with its instruction and answer."""
_WIDTH = 36
_LOSSES = {"choices": "only where the grammar leaves a choice: faster", "answer": "on every token of the answer"}
_SPANS_HINT = "# spans: {view: whole} # the head that reads; docs/recipe.md has all keys of this section"


@dataclass(frozen=True)
class Decided:
    """The content of a recipe: what was found in the corpus, and what was chosen.

    Attributes:
        found: the survey of the corpus.
        file: the path of the recipe.
        name: the name of the run.
        model: the source of the model.
        weights: the number of weights of the model; None if it is not known.
        device: the device for which the recipe is made.
        sources: the sources of each split.
        counts: the number of documents of each split.
        entities: the mean number of training entities per label.
        share: the share of train that is held out as dev; None if there is a dev corpus.
        reading: keys of the section `data` that say how the files are read.
        language: the language of the instruction.
        nested: whether entities may overlap.
        answer: the answer format, or `spans`.
        is_chosen: whether the answer was chosen by the size of the corpus.
        row: the hyperparameters; None if the number of weights is not known.
        loss_on: the tokens of the answer with loss.
        minutes: the limit on training time; None for no limit.
    """

    found: Survey
    file: str
    name: str
    model: str
    weights: int | None
    device: Device
    sources: Mapping[Split, tuple[str, ...]]
    counts: Mapping[Split, int]
    entities: int
    share: float | None
    reading: Mapping[str, object]
    language: str
    nested: bool
    answer: str
    is_chosen: bool
    row: Recommendation | None
    loss_on: str
    minutes: float | None

    @property
    def is_read(self) -> bool:
        """Whether spans are read."""
        return self.answer == "spans"

    @property
    def trained_on(self) -> int:
        """The number of documents that the model is trained on."""
        count = self.counts["train"] - self.held_out
        return min(count, self.limits.get("limit", count))

    @property
    def limits(self) -> dict[str, int]:
        """The limits in the section `data`, by key, that keep a run on a CPU within its time; empty for a GPU."""
        if self.device != "cpu":
            return {}
        measured: Split = "test" if "test" in self.counts else "dev"
        usable = int(CPU_A_MINUTE * self.minutes) if self.minutes else self.counts["train"]
        limits = {"limit": usable} if self.counts["train"] - self.held_out > 1.5 * usable else {}
        most = CPU_READ if self.is_read else CPU_MEASURED
        if self.counts.get(measured, self.held_out) > most:
            limits[f"{measured}_limit"] = most
        return limits

    @property
    def held_out(self) -> int:
        """The number of training documents that are held out as dev."""
        return int(self.counts["train"] * (self.share or 0))


def render(decided: Decided) -> str:
    """Return the YAML text of a recipe."""
    weights = f"{decided.weights / 1e9:.2g} B weights" if decided.weights else "see its card for the memory it needs"
    files, recipe = visible(", ".join(decided.found.sources["train"])), visible(shlex.quote(decided.file))
    lines = [
        f"# A recipe for {files}, written by spantune init. Change what you like, then:",
        f"#   spantune plan {recipe}      what it needs, and whether it can work",
        f"#   spantune train {recipe}     train, measure and write a report",
        *_section("run", [("name", scalar(decided.name), "the run is written to runs/NAME")]),
        *_section("model", [("source", scalar(decided.model), f"{weights}; others: hf:OWNER/NAME, a folder, …")]),
        *_task(decided),
        *_data(decided),
        *_training(decided),
    ]
    return "\n".join(lines) + "\n"


def preset_of(found: Survey) -> str | None:
    """Return the preset with the labels and the language of a corpus, if over half of its labels occur; else None."""
    for name, values in PRESETS.items():
        codes = {label.code for label in values["labels"]}
        is_usual = "answer" not in values and values["language"] == found.language
        if is_usual and set(found.labels) <= codes and len(found.labels) > len(codes) / 2:
            return name
    return None


def scalar(value: object) -> str:
    """Return a value as YAML on one line, with quotes where YAML would read another value without them."""
    if isinstance(value, str) and not value.isprintable():
        return to_json(value)
    text: str = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9)
    return text.strip()[1:-1]


def _task(decided: Decided) -> list[str]:
    found, preset = decided.found, preset_of(decided.found)
    if preset:
        counts = ", ".join(f"{label} {count:,}" for label, count in found.labels.items())
        labels = [*_aligned([(f"  preset: {preset}", f"these labels, with names; training entities: {counts}")])]
    else:
        rows = [(f"    - {scalar(label)}", f"{count:,}") for label, count in found.labels.items()]
        labels = [
            "  labels: # with their training entities; one may say more: {code: PER, description: names of people}"
        ]
        labels += _aligned(rows)
    instruction = "the instruction, where spans.instruction is true" if decided.is_read else "the instruction"
    language = f"of {instruction}; Chinese characters are {found.chinese_share:.0%} of the letters"
    overlaps = "some entities overlap" if found.nested else "no entities overlap in this corpus"
    rows = [
        (f"  language: {decided.language}", language),
        (f"  nested: {str(decided.nested).lower()}", overlaps),
        (f"  answer: {decided.answer}", _answer_comment(decided)),
    ]
    return ["task:", *labels, *_aligned(rows)]


def _answer_comment(decided: Decided) -> str:
    """Return the comment on the answer; if it was chosen by the size of the corpus, the comment says why."""
    if not decided.is_chosen:
        return "how the model answers: it writes jsonl, grouped or inline, or it reads spans"
    few_or_enough = f"{decided.entities:,} training entities a label are {'enough' if decided.is_read else 'few'}"
    if decided.is_read:
        return f"entities are read, since {few_or_enough} (docs/quality.md); or written: jsonl, grouped, inline"
    return f"entities are written, since {few_or_enough} (docs/quality.md); or grouped, inline; or read: spans"


def _data(decided: Decided) -> list[str]:
    rows: list[tuple[str, str, str]] = []
    for split, sources in decided.sources.items():
        value = scalar(sources[0]) if len(sources) == 1 else f"[{', '.join(map(scalar, sources))}]"
        rows.append((split, value, f"{decided.counts[split]:,} documents"))
    if decided.share is not None:
        comment = f"the first {decided.held_out} documents are dev: they choose the adapter, and are not trained on"
        rows.append(("holdout", f"{decided.share:g}", comment))
    comments = {"limit": "documents of train are used, as many as the minutes suffice for on a CPU"}
    for key, count in decided.limits.items():
        comment = comments.get(key, "documents are measured at most, for a CPU is slow; more narrow the interval")
        rows.append((key, str(count), comment))
    rows += [(key, scalar(value), "how the files are read") for key, value in decided.reading.items()]
    if decided.found.longest > LONG:
        comment = f"long texts at sentence ends; the longest has {decided.found.longest:,} characters"
        rows.append(("too_long", "split", comment))
    return _section("data", rows)


def _training(decided: Decided) -> list[str]:
    row, lora, train = decided.row, [], []
    loss = "" if decided.is_read else "loss "
    remark = f"rate, batch, epochs, {loss}and rank are chosen when it is known how large the model is"
    if row is not None:
        remark = f"chosen for {row.name}; the table is in docs/init.md"
        lora = [("rank", str(row.rank), "of the adapter"), ("alpha", f"{row.alpha:g}", "twice the rank")]
        rate = f"{row.learning_rate:.1e}".replace("e-0", "e-")
        train = [
            ("learning_rate", rate, "the highest; lower it if the loss jumps"),
            ("batch_examples", str(row.batch_examples), "documents a step: few, so that there are enough steps"),
            ("epochs", f"{row.epochs:g}", "times that each document is seen"),
        ]
        train += [] if decided.is_read else [("loss_on", decided.loss_on, _LOSSES[decided.loss_on])]
    if decided.minutes is not None:
        train.append(
            ("max_minutes", f"{decided.minutes:g}", "of training at most, evaluations not counted; more may teach more")
        )
    if decided.device == "cpu":
        measured = CPU_READ_DEV_DOCUMENTS if decided.is_read else CPU_DEV_DOCUMENTS
        train.append(("eval_documents", str(measured), "dev documents that are measured while it trains"))
    if decided.device == "cpu" and not decided.is_read:
        train.append(("eval_before", "false", "true also measures the untrained model: minutes on a CPU"))
    sections = _section("lora", lora) if lora else []
    if decided.is_read:
        sections = [_SPANS_HINT, *sections]
    return [*sections, f"# {remark}", *(_section("train", train) if train else [])]


def _section(name: str, rows: Iterable[tuple[str, str, str]]) -> list[str]:
    return [f"{name}:", *_aligned([(f"  {key}: {value}", comment) for key, value, comment in rows])]


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = min(_WIDTH, max((len(text) for text, _ in rows), default=0))
    return [f"{text:{width}} # {comment}" for text, comment in rows]
