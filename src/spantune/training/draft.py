"""`spantune init`: a commented recipe for a corpus, which can be trained without changes.

Labels, language, nesting and splits are taken from the corpus, hyperparameters from the tables of `recommendation`. If
a text would be both in train and in dev or test, files without such texts are written beside the recipe. No model is
loaded and nothing is downloaded.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import yaml

from spantune.core import (
    Config,
    ConfigError,
    DataError,
    Document,
    expect,
    expect_each,
    nearest,
    number,
    overwriting,
    parse_config,
    replace_text,
    require_new,
)
from spantune.data import formats, holdout, shared_texts, splitting
from spantune.training.recipe_text import Decided, render
from spantune.training.recommendation import (
    Device,
    device_here,
    entities_a_label,
    recommend,
    recommended_answer,
    weights_of,
)
from spantune.training.survey import WORDS, Language, Reading, Split, Survey, leaking, survey

DEFAULT_MODEL = "bundled:gemma3-270m"
CPU_MINUTES = 5.0
CPU_WEIGHTS = 2 * 10**9
"""A recipe for a model with more weights is made for a GPU, also on a machine without one."""
MUST_BE_IN_DEV = 5
"""If dev should get at least this many documents with a label and gets none, the corpus is sorted, not in random
order."""
FEW_DEV = 5
"""With fewer dev documents than this, figures on them say little."""
TEST_FROM = 200
"""A corpus with at least this many documents also gets a test set, if it must be split."""


class Choices(TypedDict, total=False):
    """Choices for a recipe that replace what is found in the corpus or chosen by default.

    Attributes:
        model: the source of the base model.
        answer: the answer format, or `spans` to read.
        language: the language of the instruction.
        nested: whether entities may overlap.
        dev: the corpus of dev.
        test: the corpus of test.
        minutes: the limit on training time, at least 0.1.
        name: the name of the run.
        reading: how the corpora are read.
    """

    model: str
    answer: Literal["jsonl", "grouped", "inline", "spans"]
    language: Language
    nested: bool
    dev: str | Path
    test: str | Path
    minutes: float
    name: str
    reading: Reading


_CHOICES: Mapping[str, tuple[tuple[type[object], ...], str]] = {
    "model": ((str,), "a model such as bundled:gemma3-270m"),
    "answer": ((str,), "jsonl, grouped, inline or spans"),
    "language": ((str,), "zh or en"),
    "nested": ((bool,), "True or False"),
    "dev": ((str, Path), "the path of a corpus, or bundled:NAME"),
    "test": ((str, Path), "the path of a corpus, or bundled:NAME"),
    "minutes": ((int, float), "a number such as 5"),
    "name": ((str,), "a name of letters and digits"),
    "reading": ((Reading,), "Reading(format, Options(…))"),
}
"""The types of each choice, and the expected value in words."""


@dataclass(frozen=True)
class Draft:
    """A recipe as commented YAML and as a Config, with the findings and choices that it is made from.

    Attributes:
        text: the recipe as commented YAML.
        config: the recipe as a Config.
        decided: what was found in the corpus, and what was chosen.
        made: the documents of the splits that `write` writes into `made_folder`; empty if the recipe names the files of
            the corpus.
        made_folder: the folder of these splits.
        remarks: sentences that a user should read.
    """

    text: str
    config: Config
    decided: Decided
    made: Mapping[Split, tuple[Document, ...]]
    made_folder: Path
    remarks: tuple[str, ...]

    def __repr__(self) -> str:
        splits = ", ".join(f"{split} {count}" for split, count in self.decided.counts.items())
        return f"Draft({self.config!r}, documents: {splits}, {number(len(self.remarks), 'remark')})"

    def write(self, path: str | Path, *, force: bool = False) -> None:
        """Write the recipe to `path`, and the splits that were made for it to `made_folder`.

        Raises:
            ConfigError: `path` or `made_folder` exists and `force` is False, or the recipe reads its corpus from there.
        """
        inputs = [source for sources in self.decided.found.sources.values() for source in sources]
        require_new(Path(path), inputs, force=force)
        if self.made:
            require_new(self.made_folder, inputs, force=force)
            with overwriting(self.made_folder, force=force) as folder:
                folder.mkdir(parents=True, exist_ok=True)
                for split, documents in self.made.items():
                    formats.write(folder / f"{split}.jsonl", documents)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_text(Path(path), self.text)

    def as_dict(self) -> dict[str, object]:
        """Return the findings and choices as one JSON object."""
        decided, recipe = self.decided, self.config
        train = recipe.train.model_dump(mode="json", exclude_defaults=True)
        return {
            "name": decided.name,
            "model": decided.model,
            "weights": decided.weights,
            "device": decided.device,
            "formats": list(decided.found.formats),
            "splits": {split: list(sources) for split, sources in decided.sources.items()},
            "documents": dict(decided.counts),
            "holdout": decided.share,
            "labels": dict(decided.found.labels),
            "language": decided.language,
            "nested": decided.nested,
            "answer": decided.answer,
            "row": decided.row.name if decided.row else None,
            "lora": recipe.lora.model_dump(mode="json", exclude_defaults=True),
            "train": train,
            "remarks": list(self.remarks),
        }


def init(
    corpus: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    force: bool = False,
    write: bool = True,
    **choices: Unpack[Choices],
) -> Draft:
    """Make a recipe for a corpus, and write it to `out` if that is given.

        draft = spantune.init("notes.jsonl", "recipe.yaml", minutes=10)
        result = spantune.train(draft.config)

    Args:
        corpus: an annotated file, a folder with one file or with splits, `bundled:NAME`, or a list of these that are
            trained on together.
        out: the path of the recipe.
        force: whether existing files are replaced.
        write: False to write nothing; `Draft.write` can do it later.
        choices: values that replace what is found in the corpus or chosen by default; see `Choices`.

    Raises:
        SpantuneError: the corpus cannot be read or has no entities, a choice is not valid, or `out` exists.
    """
    expected = "the path of a corpus or folder, bundled:NAME, or a list of them"
    corpora = list(expect_each([corpus] if isinstance(corpus, str | Path) else corpus, (str, Path), "corpus", expected))
    if not corpora:
        raise ConfigError(f"corpus: expected {expected}, found an empty list")
    for key, value in choices.items():
        if key not in _CHOICES:
            raise ConfigError(f"init has no choice {key!r}; {nearest(key, _CHOICES)}")
        kinds, expected_choice = _CHOICES[key]
        expect(value, kinds, key, expected_choice)
    if (minutes := choices.get("minutes")) is not None and not 0.1 <= minutes < math.inf:
        raise ConfigError(f"minutes: expected a number from 0.1, found {minutes}")
    if out is not None:
        expect(out, (str, Path), "out", "the path of the recipe to write")
    if out is not None and write:
        require_new(Path(out), corpora, force=force)
    held_out: dict[Split, str | Path | None] = {"dev": choices.get("dev"), "test": choices.get("test")}
    found = survey(corpora, held_out, choices.get("reading", Reading()))
    draft = _draft(found, choices, Path(out) if out is not None else Path("recipe.yaml"))
    if out is not None and write:
        draft.write(out, force=force)
    return draft


def _draft(found: Survey, choices: Choices, out: Path) -> Draft:
    name = _run_name(choices.get("name"), found.sources["train"][0])
    parts = _Parts.of(found, out.parent / f"{name}-splits")
    if parts.made and "reading" in choices:  # a recipe reads all files alike, and the files that are made are native
        parts.made = dict(parts.documents)
    model = choices.get("model", DEFAULT_MODEL)
    weights = weights_of(model)
    device: Device = "cuda" if weights is not None and weights > CPU_WEIGHTS else device_here()
    padded = sum(_is_padded(document) for document in parts.documents["train"])
    made = {split: (str(parts.folder / f"{split}.jsonl"),) for split in parts.made}
    decided = Decided(
        found=found,
        file=str(out),
        name=name,
        model=model,
        weights=weights,
        device=device,
        sources={split: made.get(split) or found.sources[split] for split in parts.documents},
        counts={split: len(documents) for split, documents in parts.documents.items()},
        entities=entities_a_label(holdout(parts.documents["train"], parts.share or 0)[0]),
        share=parts.share,
        reading={} if parts.made else choices.get("reading", Reading()).keys(),
        language=choices.get("language", found.language),
        nested=choices.get("nested", found.nested),
        answer=choices.get("answer", "jsonl"),
        is_chosen="answer" not in choices,
        row=None,
        loss_on="answer",
        minutes=choices.get("minutes", CPU_MINUTES if device == "cpu" else None),
    )
    if decided.is_chosen:
        decided = replace(decided, answer=recommended_answer(decided.entities))
    if weights is not None:
        row = recommend(decided.trained_on, weights, decided.answer)
        decided = replace(decided, row=row, loss_on="answer" if padded else row.loss_on)
    text = render(decided)
    recipe = parse_config(yaml.safe_load(text), where="the recipe that init made")
    return Draft(text, recipe, decided, parts.made, parts.folder, (*parts.remarks, *_remarks(decided, padded)))


class _Parts:
    """The documents of each split, those for which files are made, and the share of train that is held out as dev."""

    def __init__(self, found: Survey, folder: Path):
        self.source, self.folder = found.sources["train"][0], folder
        self.documents: dict[Split, tuple[Document, ...]] = dict(found.documents)
        self.made: dict[Split, tuple[Document, ...]] = {}
        self.share: float | None = None
        self.remarks: list[str] = []

    @classmethod
    def of(cls, found: Survey, folder: Path) -> _Parts:
        """Leave out training documents whose texts are in dev or test too, and make a dev split if there is none."""
        parts = cls(found, folder)
        parts._leave_out_shared()  # first, since it changes which documents are the first ones, which are held out
        if "dev" not in parts.documents:
            parts._hold_out(single=len(found.sources["train"]) == 1)
        return parts

    def _hold_out(self, *, single: bool) -> None:
        """Hold out the first documents as dev.

        Splits are made instead if there are several corpora, if a text would be in both train and dev, or if a label
        would be on one side only (see `_one_sided`).

        Args:
            single: whether there is one training corpus only.

        Raises:
            DataError: there are too few documents, or all have the same text.
        """
        documents = self.documents["train"]
        count = len(documents)
        if count < 2:
            raise DataError(
                "one document cannot be both trained on and measured on; annotate more, or give --dev FILE",
                path=self.source,
            )
        share = 0.1 if count >= TEST_FROM else 0.2 if count >= 25 else 0.3 if count >= 4 else 0.5
        one_sided = _one_sided(documents, share) if single else []
        if single and not leaking(documents, share) and not one_sided:
            self.share = share
            return
        shares = {"train": 1 - share, "dev": share}
        if count >= TEST_FROM and "test" not in self.documents:
            shares = {"train": 0.8, "dev": 0.1, "test": 0.1}
        divided = _divided(documents, shares)
        order: tuple[Split, ...] = ("train", "dev", "test")
        self.made = {split: divided[split] for split in order if split in divided}
        kept = self.documents | self.made
        self.documents = {split: kept[split] for split in order if split in kept}
        if one_sided:
            self.remarks.append(
                f"the corpus is in an order: its first documents have all or none of {', '.join(one_sided[:5])}; so it "
                "is split by label"
            )
        self.remarks.append(
            f"the corpus is split into {', '.join(divided)}, with no text in two of them: {self.folder}"
        )

    def _leave_out_shared(self) -> None:
        """Leave out the training documents whose texts are in dev or test too.

        Raises:
            DataError: no training document is left.
        """
        train = self.documents["train"]
        held = [document for split, part in self.documents.items() if split != "train" for document in part]
        shared = set(shared_texts(train, held))
        if not shared:
            return
        kept = tuple(document for document in train if document.text not in shared)
        if not kept:
            raise DataError("every training text is in dev or test too; name other files", path=self.source)
        self.documents["train"] = self.made["train"] = kept
        self.remarks.append(
            f"{len(train) - len(kept)} training documents are left out, since their texts are in dev or test too; "
            f"the others are written to {self.folder / 'train.jsonl'}"
        )


def _one_sided(documents: Sequence[Document], share: float) -> list[str]:
    """Return the labels that would be on one side only if the first `share` of the documents were held out as dev.

    A label is returned if train would have no document with it and dev two or more, or if dev would have no document
    with it although MUST_BE_IN_DEV or more are expected there.
    """
    train, dev = (
        Counter(label for document in part for label in {entity.label for entity in document.entities})
        for part in holdout(documents, share)
    )
    untrained = [label for label, count in dev.items() if count > 1 and label not in train]
    unmeasured = [label for label, count in train.items() if label not in dev and count * share >= MUST_BE_IN_DEV]
    return untrained + unmeasured


def _divided(documents: Sequence[Document], shares: Mapping[str, float]) -> Mapping[str, tuple[Document, ...]]:
    """Split documents by label, with documents of similar texts in the same split.

    If a split would be empty, since nearly all texts are similar, texts are held out at regular distances instead.

    Raises:
        DataError: there are too few different texts.
    """
    try:
        return splitting.split(documents, splitting.Rule(shares)).parts
    except DataError:  # nearly all texts are similar, as if made from one template
        texts = list(dict.fromkeys(document.text for document in documents))
    sizes = {name: max(1, int(len(texts) * share)) for name, share in shares.items() if name != "train"}
    if sum(sizes.values()) >= len(texts):
        raise DataError(
            f"all {len(documents)} documents together have {len(texts)} different texts, so that none can be held out; "
            "give --dev FILE with others"
        )
    held_out = sorted(((place + 0.5) / size, name) for name, size in sizes.items() for place in range(size))
    apart = texts[:: len(texts) // len(held_out)]  # from the whole corpus, since it may be sorted
    split_of = {text: name for text, (_, name) in zip(apart, held_out, strict=False)}
    return {
        name: tuple(document for document in documents if split_of.get(document.text, "train") == name)
        for name in shares
    }


def _remarks(decided: Decided, padded: int) -> list[str]:
    """Return the remarks on the recipe for its user."""
    remarks = []
    if "test" not in decided.counts:
        chosen = "the adapter and the thresholds" if decided.is_read else "the adapter"
        remarks.append(
            f"there is no test set: the final figures are on the documents that choose {chosen}, and so a little too "
            f"good; {_way_to_a_test_set(decided)}"
        )
    if decided.weights is not None and decided.weights > CPU_WEIGHTS and device_here() == "cpu":
        remarks.append(
            f"{decided.weights / 1e9:.1f} B weights are too many to train on a CPU, and this machine shows no GPU: the "
            "recipe is for a machine that has one"
        )
    if decided.limits:
        keys = ", ".join(f"data.{key}={count}" for key, count in decided.limits.items())
        remarks.append(
            f"a CPU is slow for so many documents, so that only some are used: {keys}; give more --minutes, or take "
            "these limits out where there is a GPU"
        )
    dev = decided.counts.get("dev", decided.held_out)
    if dev < FEW_DEV:
        remarks.append(f"a dev set of {dev} says little of how good a model is; annotate more documents")
    for label, count in decided.found.labels.items():
        if not count:
            remarks.append(f"the label {label} has no entity in the training documents, so that it is not learnt")
    if decided.found.nested and not decided.nested:
        remarks.append("some entities overlap, which a flat task does not allow: plan will name them")
    if padded and not decided.is_read:
        remarks.append(
            f"{padded} training documents have entities that begin or end with white space, which are never extracted; "
            "trim them: spantune data check FILE --fix OUT"
        )
    if decided.row is None:
        remarks.append(
            f"the name {decided.model} does not say how large the model is; train finds out and chooses then"
        )
    return remarks


def _way_to_a_test_set(decided: Decided) -> str:
    sources = decided.found.sources["train"]
    if len(sources) > 1 or decided.counts["train"] < TEST_FROM or "dev" in decided.counts:
        return "keep some documents apart, and give them with --test FILE"
    folder = f"{decided.name}-splits"
    return f"spantune data split {shlex.quote(sources[0])} --to {folder}, then spantune init {folder}"


def _run_name(name: str | None, source: str) -> str:
    """Return the given name, or else the stem of the corpus file without characters that a run's name may not have."""
    if name is not None:
        return name
    path = Path(source.removeprefix("bundled:"))
    stem = path.name.split(".")[0]
    if stem.lower() in WORDS:  # a name such as train.jsonl says nothing; the folder's name may
        stem = path.absolute().parent.name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "run"


def _is_padded(document: Document) -> bool:
    surfaces = map(document.surface, document.entities)
    return any(surface != surface.strip() for surface in surfaces)
