"""A recipe: every setting of a run, as frozen values; `recipes` reads it from YAML and overrides.

It is strict and is checked before torch is imported. Keys whose best value depends on corpus and model may be absent;
`training.prepare` fills them. The filled recipe is saved with the run as `config.yaml`.
"""

# Longer than other modules on purpose: half of it are the descriptions of keys, from which docs/recipe.md is made.
from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from spantune.core.errors import expect
from spantune.core.files import replace_text
from spantune.core.secrets import holds_credential, masked, masked_values
from spantune.core.task import AnswerFormat, Label

Base = Literal["auto", "bf16", "fp32", "fp8", "nf4", "int8"]
Keep = Literal["none", "some", "fp8", "most"]
Normalize = Literal["tokens", "examples"]
LossOn = Literal["answer", "choices"]
Value = TypeVar("Value")
QUANTIZED = ("fp8", "nf4", "int8")


def _one_or_several(value: object) -> object:
    """Turn a list of a single path into that path; refuse what names no corpus."""
    paths = list(value) if isinstance(value, list | tuple) else [value]
    if not paths or any(isinstance(path, bool) or not isinstance(path, str | int | float) for path in paths):
        found = "nothing" if value is None else repr(value)
        raise ValueError(f"expected a path, or a list of paths such as [a.jsonl, b.jsonl], found {found}")
    names = [str(path) for path in paths]
    if any(not name.strip() for name in names):
        raise ValueError("a path is empty; name a file, or bundled:NAME")
    if any("\0" in name for name in names):
        raise ValueError("a path has a NUL character, which no file may have; remove it")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{repeated[0]} is named twice; name each file once")
    return names[0] if len(names) == 1 else tuple(names)


Files = Annotated[str | tuple[str, ...], BeforeValidator(_one_or_several)]
"""One corpus file, or several; a list of a single one is that one."""


def files_of(files: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the corpus files that a key of `data` names; none where it is absent."""
    return () if files is None else (files,) if isinstance(files, str) else files


def name_of(files: str | tuple[str, ...]) -> str:
    """Return the corpus files that a key of `data` names as one text for people."""
    return ", ".join(files_of(files))


def _is_number(annotation: object) -> bool:
    """Whether a key takes a number, which true and false are for pydantic."""
    kinds = {annotation, *get_args(annotation)}
    return bool(kinds & {int, float}) and bool not in kinds


class Section(BaseModel):
    """A frozen part of a recipe that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        serialize_by_alias=True,
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _yaml_switches(cls, values: object) -> object:
        """Turn true and false back into on and off for keys that know "off": YAML reads the bare words as booleans."""
        if not isinstance(values, dict):
            return values
        for key, value in values.items():
            if isinstance(value, str) and "\0" in value:
                raise ValueError(f"{key} has a NUL character, which no file and no text may have; remove it")
            if isinstance(value, bool) and key in cls.model_fields and _is_number(cls.model_fields[key].annotation):
                raise ValueError(f"{key} is {str(value).lower()}; expected a number")
        words = {name for name, field in cls.model_fields.items() if "off" in get_args(field.annotation)}
        return {key: ("on" if value else "off") if key in words and isinstance(value, bool) else value
                for key, value in values.items()}  # fmt: skip


class Run(Section):
    """Where the run is written, and its seed."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=128)
    """Name of the run folder: ASCII letters, digits, dots, dashes and underscores, not beginning with a dot."""
    folder: Path = Path("runs")
    """Parent of the run folder."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Random seed of shuffling, of new adapters and of dropout."""


class Model(Section):
    """The base model."""

    source: str = Field(min_length=1)
    """`bundled:NAME`, `modelscope:OWNER/NAME`, `hf:OWNER/NAME` or a local folder."""
    base: Base = "auto"
    """Number type of the frozen weights. `auto` takes bf16 if that is faster on the device. `fp8` takes half the memory
    and is the fastest on GPUs from the Hopper generation on; `nf4` and `int8` need bitsandbytes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run. `auto` takes the GPU if there is one."""
    verify: bool = True
    """Check that a known model is as its model card says (special ids, RoPE base), and that every weight in the files
    belongs to the model. Turn it off only to reproduce a flaw, or to ignore such weights."""


class Task(Section):
    """What to extract."""

    preset: Literal["cmeee", "cmeee_tutorial", "biomedical"] | None = None
    """A ready label set and instruction; `labels` and `instruction` override its parts."""
    labels: tuple[Label, ...] | None = Field(None, min_length=1)
    """Entity types: `{code, name, description}`; a bare string is a code."""
    instruction: str | None = None
    """The instruction to the model. Made from the labels if not given."""
    answer: AnswerFormat | None = None
    """How the model answers. It writes entities in a format: `jsonl`: one JSON object an entity; `grouped`: entities by
    label, the shortest; `inline`: the text with marks, exact offsets; `jsonl_seed`: that of the tutorial. Or it reads
    them: `spans`: a head scores every span of the text in one pass, and nothing is written (see section `spans`)."""
    empty_answer: str | None = None
    """What the model writes for a text without entities."""
    language: Literal["zh", "en"] | None = None
    """Language of the instruction that is made from the labels. That of the preset, or else en, if not given."""
    template: Literal["chat", "tutorial"] | None = None
    """`chat`: the chat template of the model; `tutorial`: the exact prompt of the tutorial."""
    nested: bool = True
    """Whether entities may overlap. With false, the model is told that they do not, the grammar forbids it, and of two
    entities that overlap all the same only the one with the higher score is kept."""

    @model_validator(mode="before")
    @classmethod
    def _bare_codes(cls, values: object) -> object:
        """Turn a bare string in `labels` into a label with that code."""
        if isinstance(values, dict) and isinstance(values.get("labels"), list | tuple):
            labels = [{"code": label} if isinstance(label, str) else label for label in values["labels"]]
            return {**values, "labels": labels}
        return values

    @model_validator(mode="after")
    def _no_credentials(self) -> Task:
        texts = [self.instruction or ""]
        texts += [text for label in self.labels or () for text in (label.code, label.name, label.description)]
        if any(map(holds_credential, texts)):
            raise ValueError(
                "a URL with a password or key stands in the instruction or a label, and would be written into the "
                "run and its adapter; remove it"
            )
        return self

    @model_validator(mode="after")
    def _labels_known(self) -> Task:
        if self.preset is None and not self.labels:
            raise ValueError("either task.preset or task.labels must be given")
        return self


class Data(Section):
    """The annotated corpora."""

    train: Files
    """A corpus file, or `bundled:NAME`; or a list of them, in which a document of a later file replaces the one with
    the same text in an earlier file."""
    dev: Files | None = None
    """Corpus that steers training, or a list; without it `holdout` is taken from the front of the first file of
    `train`."""
    test: Files | None = None
    """Corpus for the final figures, or a list. The dev set if not given."""
    format: str | None = None
    """Format of all files. Detected from the content of each if not given."""
    column: int | str | None = None
    """The column or field that holds the tags, the entities or the text, for formats that need it."""
    joiner: str | None = None
    """Text between two tokens, such as a space, for formats with tokens. Chosen from the tokens if not given."""
    label: str | None = None
    """Label for tags that name none (`B`, `I`, `O`)."""
    encoding: str | None = None
    """Encoding of text files, such as `windows-1252`. UTF-8, or what a byte-order mark says, if not given."""
    offsets: Literal["codepoints", "utf16", "bytes", "crlf"] | None = None
    """Unit of the offsets in the files: code points (the default), UTF-16 code units, UTF-8 bytes, or characters with
    each CRLF as one."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many training documents, after the holdout was taken. Of several files, what the later ones add
    or replace is used before the rest of the first."""
    dev_limit: int | None = Field(None, ge=1)
    """Use at most this many dev documents."""
    test_limit: int | None = Field(None, ge=1)
    """Use at most this many test documents."""
    holdout: float = Field(0.1, ge=0, lt=1)
    """Share of the first file of `train` that is held out for dev, from its beginning, if `dev` is not given."""
    too_long: Literal["error", "split"] = "error"
    """What to do with a document of more than `train.max_tokens`. `error`: refuse it; `split`: cut it at the ends of
    sentences, or of clauses if a sentence is too long."""

    @property
    def f1_on(self) -> Literal["test", "dev"]:
        """The split of the final figures: `dev`, whose documents chose the adapter, where there is no test set."""
        return "test" if self.test is not None and self.test != self.dev else "dev"


class Spans(Section):
    """The head that reads spans, where `task.answer` is `spans`."""

    view: Literal["whole", "twice", "causal"] = "whole"
    """What a token of the text sees. `whole`: all of the text; `causal`: the text before it, as when writing; `twice`:
    the text is given twice, and the second copy, which sees all of the first, is read."""
    instruction: bool = False
    """Whether the instruction of the task stands before the text. It costs tokens; see docs/quality.md."""
    longest: int | None = Field(None, ge=1)
    """Most characters of an entity. That of the longest annotated entity, of dev and test too, but at least 32, if not
    given."""
    size: int = Field(256, ge=8, multiple_of=2)
    """Width of the features of a character in the head."""
    convolution: int = Field(5, ge=0)
    """Characters that the convolution of the head spans, an odd number; 0 for none."""
    types: Literal["names", "learnt"] = "names"
    """What an entity type is made from: `names`: the embedded name and description of its label; `learnt`: nothing."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the features of a character."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of the head; the adapter's is `train.learning_rate`."""

    @model_validator(mode="after")
    def _is_centred(self) -> Spans:
        if self.convolution and self.convolution % 2 == 0:
            raise ValueError(f"convolution must be odd or 0, found {self.convolution}; use {self.convolution + 1}")
        return self


class Lora(Section):
    """The adapter; `lora: full` trains the model's own weights instead (full fine-tuning)."""

    full: bool = False
    """Train every weight of the decoder layers itself, without an adapter; for models under 1 B weights. The
    embeddings stay frozen."""
    rank: int | None = Field(None, ge=1)
    """Rank r. Chosen by corpus and model if not given."""
    alpha: float | None = Field(None, gt=0)
    """Scale of the update, which is alpha / rank times B A. Twice the rank if not given."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the input of the adapter. Shared packs are exact only with 0."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, which keeps high ranks stable (arXiv 2312.03732)."""
    dora: bool = False
    """Train magnitude and direction of the weights separately (DoRA, arXiv 2402.09353); slower."""
    plus_ratio: float = Field(1.0, ge=1)
    """The ratio of B's learning rate to A's (LoRA+, arXiv 2402.12354); its authors recommend 16."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Different ranks for some modules, such as `{down_proj: 32}`. A name that matches nothing is an error."""
    targets: str | tuple[str, ...] = "all-linear"
    """The modules that get an adapter: `all-linear`, or a list of names, each of which must match."""
    allow_unmatched: bool = False
    """Accept targets that match nothing, which is the tutorial's flaw on Phi-4."""

    @field_validator("rank_pattern")
    @classmethod
    def _names_are_patterns(cls, ranks: dict[str, int]) -> dict[str, int]:
        for name in ranks:
            try:
                re.compile(name)
            except re.error as error:
                raise ValueError(
                    f"{name!r} is read as a regular expression and is none: {error}; name modules, such as down_proj"
                ) from None
        return ranks


class Train(Section):
    """Optimisation."""

    from_: str | None = Field(None, alias="from", min_length=1)
    """A run folder, or an adapter folder, whose adapter training goes on with instead of a new one; `lora` is then that
    of the adapter, the learning rate a third of that run's where none is named, and the optimizer starts anew."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """`adamw`: with fp32 states; `adamw_8bit`: a quarter of that memory, needs bitsandbytes; `paged_adamw_8bit`: moves
    states to CPU memory when the GPU's is short."""
    normalize: Normalize = "tokens"
    """Whether every answer token has the same weight in the loss of a step, or every example. Where spans are read,
    every example has the same."""
    batch_examples: int | None = Field(None, ge=1)
    """Examples in an optimizer step, on all devices together, however they are packed. Chosen by corpus and model if
    not given."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. Chosen by corpus and model if not given."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the training documents, unless `max_steps` is given. Chosen by corpus and model if not given."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrides `epochs`."""
    masked_epochs: float = Field(0.0, ge=0)
    """Passes over the training texts before all others, in which the model learns to predict masked tokens from both
    sides; they use no annotation. For `task.answer: spans`. Five made it better on 15,000 sentences, and training three
    times as long (docs/quality.md)."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop after this training time, not counting evaluations. The learning rate then follows the clock."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after the warm-up."""
    warmup: float = Field(0.05, ge=0)
    """Length of the warm-up: below 1 a share of all steps, from 1 on a number of steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Clip gradients to this norm."""
    average: float | None = Field(None, gt=0, lt=1)
    """Evaluate and keep the exponential moving average of the trained weights, with this decay, such as 0.995. None if
    not given. It made reading better together with dropout (docs/quality.md)."""
    pack: Literal["shared", "none"] = "shared"
    """`shared`: pack several examples behind one instruction; `none`: padded batches, for comparison."""
    pack_tokens: int | None = Field(None, ge=64)
    """Largest number of tokens in a pack. If not given 1,024 on a CPU and 4,096 on a GPU, or up to twice as many where
    a step has them for each device, and its memory is predicted to hold them with room to spare."""
    loss_on: LossOn | None = None
    """Tokens that have a loss. `answer`: every token of the answer; `choices`: only tokens where the grammar leaves a
    choice, and among the allowed ones. That is faster, but the model then needs the grammar to answer. Chosen by corpus
    and model if not given."""
    micro_batch: int = Field(4, ge=1)
    """Examples in a padded batch, with `pack: none`."""
    max_tokens: int = Field(2048, ge=16)
    """Largest number of tokens of a document with its prompt and answer. For longer ones see `data.too_long`."""
    cut_tokens: int | None = Field(None, ge=16)
    """Cut off every sample after this many tokens, as the tutorial does. Only to reproduce it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the decoder layers, which takes about 20 s before the first step and makes steps three times as fast.
    `auto`: on CUDA with shared packs."""
    keep: Keep | Literal["auto"] = "auto"
    """What compiled layers keep in memory for the backward pass: `none` (the least memory), `some` (attention and
    narrow matrix products), `fp8` (all matrix products, those of MLPs whose gate and up are one layer in 8 bits) or
    `most` (all matrix products). `auto`: `most` where the free memory holds it, else `some`."""
    graphs: Literal["auto", "off"] = "auto"
    """Launch the passes over a pack as CUDA graphs, in one go. `auto`: on CUDA with shared packs, where these are so
    short that the GPU would wait for the host, and layers are neither recomputed as a whole nor compiled with
    `lora.dropout`."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute layers in the backward pass to save memory, if they are not compiled. `auto`: on CUDA."""
    eval_steps: int | None = Field(None, ge=1)
    """Steps between evaluations. About four evaluations a run if not given."""
    eval_documents: int | None = Field(None, ge=1)
    """Largest number of dev documents in such an evaluation. 200 if not given, and all where spans are read, which is
    fast."""
    eval_share: float = Field(0.15, gt=0, le=1)
    """Largest share of the training time for these evaluations. It limits their documents, but not below 8."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations in a row without a better F1. Never if not given."""
    eval_before: bool = True
    """Score the model before training too."""
    save_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints. Those of `eval_steps` if not given."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints to keep, besides that of the best evaluation."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What to do in a step whose loss or gradient is not finite: `stop` the run, or `skip` the step. Both name its
    documents."""
    log_steps: int = Field(1, ge=1)
    """Steps between two lines in `metrics.jsonl`."""

    @property
    def on_choices(self) -> bool:
        """Whether the loss is on the grammar's choices alone."""
        return self.loss_on == "choices"


class Distributed(Section):
    """Training by several processes, which torchrun or `accelerate launch` starts; without them it has no effect."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: every process holds the whole base, in any number type. `fsdp`: the layers of a bf16 or fp32 base are
    divided over the processes, for a base that does not fit one GPU; slower."""
    timeout_minutes: float = Field(30.0, gt=0)
    """How long a process waits for another one that neither goes on nor ends."""


class Extract(Section):
    """Extraction."""

    batch_size: int | None = Field(None, ge=1, le=65_536)
    """How many documents to decode together. Chosen by device if not given."""
    max_new_tokens: int = Field(1024, ge=1)
    """Largest number of tokens in an answer that is written. An answer that reaches it is reported."""
    grounded: bool = True
    """Decode with the grammar of the document, which allows only entities of its text."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the decoder layers on a GPU, which takes some seconds before the first document and makes extraction
    faster. `auto`: for a model of a billion weights and more, where more documents wait than are computed together."""
    merge: Literal["auto", "always"] = "auto"
    """When to merge the adapter into the base model. `auto`: where the base is in 16 or 32 bits; over a quantised one
    it is computed beside it. `always`: also with `model.base: fp8`, where the merged weights are then quantised. That
    is faster, and scores and entities may differ a little from those that the training evaluated."""
    chunk_tokens: int | None = Field(None, ge=1)
    """Largest number of tokens of a text that the model reads at once; longer texts are read in overlapping chunks. If
    not given, what `train.max_tokens` and the window of the model leave besides the instruction and the answer; with
    `task.answer: spans` the longest training text, and 64 at least."""
    overlap: int = Field(64, ge=0)
    """How many characters a chunk shares with the one before it, so that an entity at a cut is whole in one of them."""
    max_characters: int = Field(500_000, ge=1)
    """Largest number of characters of a text. Longer texts are refused, not cut."""


class Track(Section):
    """Where the run is recorded beside `metrics.jsonl`."""

    swanlab: Literal["local", "offline", "online", "off"] = "local"
    """SwanLab mode: on this machine, kept here to be sent by `spantune sync`, sent while it runs, or not at all."""
    board: Path | None = None
    """Folder of the local board, which shows all runs that are recorded there; `<run.folder>/swanlab` when absent."""
    also: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Further trackers; each is an extra to install, such as `spantune[tensorboard]`."""
    project: str = Field("spantune", pattern=r"^[0-9A-Za-z_\-+.]{1,100}$")
    """SwanLab project: ASCII only."""
    workspace: str | None = Field(None, pattern=r"^[0-9A-Za-z_\-]{1,25}$")
    """User or organisation in SwanLab's cloud that the project belongs to; that of the key when absent."""
    experiment: str | None = Field(None, min_length=1, max_length=512)
    """Name of the run in the trackers, in any language; `run.name` when absent."""
    description: str | None = Field(None, min_length=1, max_length=1024)
    """What the run is for."""
    tags: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field((), max_length=30)
    """Words to find the run by."""
    group: str | None = Field(None, min_length=1, max_length=128)
    """What the run belongs to, such as an ablation."""
    job_type: str | None = Field(None, min_length=1, max_length=128)
    """What kind of run it is, such as `train` or `search`; to group and filter by."""
    predictions: int = Field(20, ge=0, le=100)
    """Documents in the `Prediction` text panel, the same at every evaluation."""
    notify: tuple[Literal["webhook", "email", "lark", "dingtalk", "wecom"], ...] = ()
    """Who is told when the run ends; addresses and passwords are taken from environment variables, see tracking."""

    @model_validator(mode="before")
    @classmethod
    def _bare_string_is_a_list(cls, values: object) -> object:
        """Turn a bare string in `also`, `tags` or `notify` into a list of one."""
        if not isinstance(values, dict):
            return values
        lists = {"also", "tags", "notify"}
        return {key: [value] if key in lists and isinstance(value, str) else value for key, value in values.items()}


class Config(Section):
    """A whole recipe."""

    run: Run = Run()
    model: Model
    task: Task
    data: Data
    spans: Spans = Spans()
    lora: Lora = Lora()
    train: Train = Train()
    distributed: Distributed = Distributed()
    extract: Extract = Extract()
    track: Track = Track()

    @model_validator(mode="after")
    def _run_is_not_the_board(self) -> Config:
        if self.run.name == "swanlab" and self.track.swanlab == "local" and self.track.board is None:
            raise ValueError("run.name=swanlab is the folder of SwanLab's board; give another, or set track.board")
        return self

    @model_validator(mode="before")
    @classmethod
    def _full_is_short(cls, values: object) -> object:
        """Turn `lora: full` into a section."""
        if isinstance(values, dict) and values.get("lora") == "full":
            return {**values, "lora": {"full": True}}
        return values

    @model_validator(mode="after")
    def _full_has_no_adapter(self) -> Config:
        fields = Lora.model_fields.items()
        others = [name for name, field in fields if name != "full" and getattr(self.lora, name) != field.default]
        if self.lora.full and others:
            raise ValueError(
                f"lora.full=true trains the weights themselves, and lora.{others[0]} is of an adapter: leave one of "
                "them out; lora=full takes the place of the whole section"
            )
        return self

    @model_validator(mode="after")
    def _reading_has_no_settings_of_writing(self) -> Config:
        if self.task.answer != "spans":
            return self
        if self.train.pack != "shared" or self.train.cut_tokens:
            raise ValueError("task.answer=spans needs train.pack=shared and no train.cut_tokens")
        if self.train.on_choices:
            raise ValueError("task.answer=spans writes nothing: leave train.loss_on out, or set task.answer=jsonl")
        if not self.extract.grounded:
            raise ValueError("task.answer=spans writes nothing, with a grammar or without: leave extract.grounded out")
        if self.task.empty_answer is not None:
            raise ValueError("task.answer=spans writes nothing: leave task.empty_answer out, or set task.answer=jsonl")
        if self.task.template == "tutorial":
            raise ValueError("task.template=tutorial is a prompt for writing: leave it out, or set task.answer=jsonl")
        return self

    @model_validator(mode="after")
    def _masked_tokens_are_seen_from_both_sides(self) -> Config:
        if not self.train.masked_epochs:
            return self
        if self.task.answer != "spans" or self.spans.view != "whole":
            raise ValueError("train.masked_epochs needs task.answer=spans and spans.view=whole; leave it out")
        if self.train.max_minutes is not None:
            raise ValueError(
                "train.masked_epochs has no share of train.max_minutes: set train.epochs or train.max_steps instead of "
                "train.max_minutes"
            )
        return self

    @model_validator(mode="after")
    def _choices_need_the_grammar(self) -> Config:
        if self.train.on_choices and (self.train.pack != "shared" or self.train.cut_tokens):
            raise ValueError("train.loss_on=choices needs train.pack=shared and no train.cut_tokens")
        if self.train.on_choices and not self.extract.grounded:
            raise ValueError("train.loss_on=choices needs extract.grounded=true: the model learns choices only")
        return self

    @model_validator(mode="after")
    def _weights_need_packs(self) -> Config:
        if self.train.normalize == "examples" and self.train.pack != "shared":
            raise ValueError("train.normalize=examples needs train.pack=shared; padded rows take the model's own loss")
        return self

    @property
    def run_folder(self) -> Path:
        """`run.folder / run.name`."""
        return self.run.folder / self.run.name

    def __repr__(self) -> str:
        labels = self.task.preset or ", ".join(label.code for label in self.task.labels or ())
        model, files = masked(self.model.source), masked(name_of(self.data.train))
        return f"Config(run {self.run.name}, model {model}, labels {labels}, train {files})"

    __str__ = __repr__

    def save(self, folder: str | Path) -> None:
        """Write the resolved recipe as `config.yaml` into `folder`, with credentials masked."""
        expect(folder, (str, Path), "Config.save", "the path of a folder")
        text = yaml.safe_dump(masked_values(self.model_dump(mode="json")), allow_unicode=True, sort_keys=False)
        replace_text(Path(folder) / "config.yaml", text)


def filled(value: Value | None) -> Value:
    """Return the value of a key that a recipe may lack, of a recipe that `training.prepare` has filled."""
    assert value is not None, "a key is not filled yet: take the recipe of training.prepare"
    return value
