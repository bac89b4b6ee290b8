"""The recipe: all settings of a run as immutable values. The module `recipes` reads it from YAML and overrides.

Unknown keys are refused, and all values are checked before torch is imported. Keys whose best value depends on the
corpus and the model may be absent; `training.prepare` fills them. The filled recipe is saved with the run as
`config.yaml`.
"""

# This module is longer than others because half of it is the descriptions of keys, from which docs/recipe.md is made.
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
    """Turn a list of a single path into that path.

    Raises:
        ValueError: a value is not a path, or a path is empty, repeated or has a NUL character.
    """
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
"""One corpus file or several. A list of one path becomes that path."""


def files_of(files: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the corpus files that a key of `data` names; an empty tuple if the key is absent."""
    return () if files is None else (files,) if isinstance(files, str) else files


def name_of(files: str | tuple[str, ...]) -> str:
    """Return the corpus files that a key of `data` names as one text, separated by commas."""
    return ", ".join(files_of(files))


def _is_number(annotation: object) -> bool:
    """Whether a key takes a number and no boolean. pydantic itself would accept true and false as numbers."""
    kinds = {annotation, *get_args(annotation)}
    return bool(kinds & {int, float}) and bool not in kinds


class Section(BaseModel):
    """A section of a recipe: immutable, and refuses unknown keys."""

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
        """Check texts and numbers, and turn true and false into "on" and "off" for keys that have the choice "off".

        YAML reads the bare words on and off as booleans.
        """
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
    """The place of the run folder, and the random seed."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=128)
    """Name of the run folder: ASCII letters, digits, dots, dashes and underscores, not beginning with a dot."""
    folder: Path = Path("runs")
    """The folder in which the run folder is made."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Random seed of shuffling, of the initial adapter and of dropout."""


class Model(Section):
    """The base model."""

    source: str = Field(min_length=1)
    """The model to train: `bundled:NAME`, `modelscope:OWNER/NAME`, `hf:OWNER/NAME` or a local folder."""
    base: Base = "auto"
    """Number type of the frozen weights. `auto`: bf16 if it is faster on the device, else fp32. `fp8`: takes half the
    memory of bf16 and is the fastest on GPUs of the Hopper generation and later. `nf4` and `int8`: take less memory and
    need bitsandbytes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run. `auto`: on the GPU if there is one."""
    verify: bool = True
    """Check that a known model agrees with its model card (special token ids, RoPE base), and that every weight in the
    files belongs to the model. Turn it off only to reproduce a flaw, or to ignore weights that do not belong to the
    model."""


class Task(Section):
    """What to extract."""

    preset: Literal["cmeee", "cmeee_tutorial", "biomedical"] | None = None
    """A ready label set and instruction. The keys `labels` and `instruction` replace its parts."""
    labels: tuple[Label, ...] | None = Field(None, min_length=1)
    """Entity types: `{code, name, description}`. A bare string is a code."""
    instruction: str | None = None
    """The instruction to the model. Made from the labels if not given."""
    answer: AnswerFormat | None = None
    """How the model answers. In the first four formats it writes the entities. `jsonl`: one JSON object for each
    entity. `grouped`: the entities grouped by label, the shortest answer. `inline`: the text with marks around the
    entities, which gives exact offsets. `jsonl_seed`: the format of the tutorial. With `spans` it reads the entities: a
    head scores every span of the text in one pass, and nothing is written (see section `spans`)."""
    empty_answer: str | None = None
    """What the model writes for a text without entities."""
    language: Literal["zh", "en"] | None = None
    """Language of the instruction that is made from the labels. If not given, the language of the preset, or en."""
    template: Literal["chat", "tutorial"] | None = None
    """The prompt around instruction and text. `chat`: the chat template of the model. `tutorial`: the exact prompt of
    the tutorial."""
    nested: bool = True
    """Whether entities may overlap. If false, the instruction says that they do not overlap, the grammar forbids it,
    and if two entities overlap nevertheless, only the one with the higher score is kept."""

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
    """The training corpus: a file, `bundled:NAME`, or a list of them. In a list, a document of a later file replaces
    the document with the same text in an earlier file."""
    dev: Files | None = None
    """The corpus whose F1 chooses the best adapter, or a list. If not given, the share `holdout` of the first file of
    `train`, from its beginning, is used for it and not for training."""
    test: Files | None = None
    """The corpus for the final figures, or a list. The dev documents if not given."""
    format: str | None = None
    """Format of all files. If not given, the format of each file is detected from its content."""
    column: int | str | None = None
    """The column or field that holds the tags, the entities or the text, for formats that need it."""
    joiner: str | None = None
    """Text between two tokens, such as a space, for formats with tokens. Chosen from the tokens if not given."""
    label: str | None = None
    """Label for tags that name none (`B`, `I`, `O`)."""
    encoding: str | None = None
    """Encoding of text files, such as `windows-1252`. If not given, the encoding of the byte-order mark, or UTF-8."""
    offsets: Literal["codepoints", "utf16", "bytes", "crlf"] | None = None
    """Unit of the offsets in the files. `codepoints`: Unicode code points. `utf16`: UTF-16 code units. `bytes`: UTF-8
    bytes. `crlf`: characters, where each CRLF counts as one. Code points if not given."""
    limit: int | None = Field(None, ge=1)
    """Use at most this many training documents. The holdout is taken before. If `train` has several files, documents
    that the later files add or replace are used first."""
    dev_limit: int | None = Field(None, ge=1)
    """Use at most this many dev documents."""
    test_limit: int | None = Field(None, ge=1)
    """Use at most this many test documents."""
    holdout: float = Field(0.1, ge=0, lt=1)
    """If `dev` is not given: the share of the documents of the first file of `train`, from its beginning, that is held
    out for dev."""
    too_long: Literal["error", "split"] = "error"
    """What to do with a document of more than `train.max_tokens` tokens. `error`: refuse it. `split`: cut it at the
    ends of sentences, or at the ends of clauses where a sentence is too long."""

    @property
    def f1_on(self) -> Literal["test", "dev"]:
        """The split of the final figures: `test`, or `dev` if there is no test set of its own.

        Figures on `dev` are biased, since its documents chose the adapter.
        """
        return "test" if self.test is not None and self.test != self.dev else "dev"


class Spans(Section):
    """The span head, which reads the entities if `task.answer` is `spans`."""

    view: Literal["whole", "twice", "causal"] = "whole"
    """Which tokens a token of the text attends to. `whole`: all tokens of the text. `causal`: the tokens before it, as
    in writing. `twice`: the text is given twice, and the head reads the second copy, whose tokens attend to all of the
    first copy."""
    instruction: bool = False
    """Whether the instruction of the task is put before the text. It costs tokens; see docs/quality.md."""
    longest: int | None = Field(None, ge=1)
    """The maximum length of an entity in characters. If not given, the length of the longest annotated entity of train,
    dev and test, but at least 32."""
    size: int = Field(256, ge=8, multiple_of=2)
    """Number of features of a character in the head."""
    convolution: int = Field(5, ge=0)
    """Width of the head's convolution in characters, an odd number; 0 for no convolution."""
    types: Literal["names", "learnt"] = "names"
    """How the head represents an entity type. `names`: by the embedded name and description of its label, and by
    learnt weights. `learnt`: by learnt weights alone."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate on the features of a character."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of the head. The adapter has `train.learning_rate`."""

    @model_validator(mode="after")
    def _is_centred(self) -> Spans:
        if self.convolution and self.convolution % 2 == 0:
            raise ValueError(f"convolution must be odd or 0, found {self.convolution}; use {self.convolution + 1}")
        return self


class Lora(Section):
    """The adapter; `lora: full` trains the model's own weights instead (full fine-tuning)."""

    full: bool = False
    """Train every weight of the decoder layers, without an adapter. For models of less than a billion weights. The
    embeddings stay frozen."""
    rank: int | None = Field(None, ge=1)
    """Rank r of the matrices A and B. Chosen by corpus and model if not given."""
    alpha: float | None = Field(None, gt=0)
    """Scale of the weight update, which is alpha / rank times B A. Twice the rank if not given."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate on the input of the adapter. Shared packs give exactly the results of separate examples only with
    0."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, which keeps training with high ranks stable (rsLoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Train magnitude and direction of the weights separately (DoRA, arXiv 2402.09353). Slower."""
    plus_ratio: float = Field(1.0, ge=1)
    """The ratio of the learning rate of B to that of A (LoRA+, arXiv 2402.12354). Its authors recommend 16."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Other ranks for some modules, such as `{down_proj: 32}`. A name that matches no module is an error."""
    targets: str | tuple[str, ...] = "all-linear"
    """The modules that get an adapter: `all-linear`, or a list of names, each of which must match a module."""
    allow_unmatched: bool = False
    """Accept names in `targets` that match no module. The tutorial has such names for Phi-4, which is a flaw."""

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
    """Optimisation, packing, evaluations during training and checkpoints."""

    from_: str | None = Field(None, alias="from", min_length=1)
    """Warm start: a run folder or an adapter folder. Training begins with its adapter instead of a new one. The section
    `lora` is then that of the adapter, and the optimizer starts anew. If no learning rate is given, it is a third of
    that run's."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """`adamw`: with states in fp32. `adamw_8bit`: with states in 8 bits, a quarter of that memory; needs bitsandbytes.
    `paged_adamw_8bit`: moves such states to CPU memory when GPU memory is short."""
    normalize: Normalize = "tokens"
    """What has equal weight in the loss of a step. `tokens`: every answer token. `examples`: every example. If spans
    are read, every example always has equal weight."""
    batch_examples: int | None = Field(None, ge=1)
    """Number of examples in an optimizer step, on all devices together, however they are packed. Chosen by corpus and
    model if not given."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate. Chosen by corpus and model if not given."""
    epochs: float | None = Field(None, gt=0)
    """Number of passes over the training documents, unless `max_steps` is given. Chosen by corpus and model if not
    given."""
    max_steps: int | None = Field(None, ge=1)
    """Number of optimizer steps. Takes precedence over `epochs`."""
    masked_epochs: float = Field(0.0, ge=0)
    """Number of passes over the training texts, before all other training, in which the model learns to predict masked
    tokens from the text on both sides. They need no annotation. Only for `task.answer: spans`. On 15,000 sentences,
    five such passes raised F1, and training took three times as long (docs/quality.md)."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop after this training time in minutes, evaluations not counted. The learning rate then follows the time that
    has passed."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate changes after the warm-up."""
    warmup: float = Field(0.05, ge=0)
    """Length of the warm-up. Below 1: a share of all steps. From 1 on: a number of steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The maximum norm of the gradient. A larger gradient is scaled down to it."""
    average: float | None = Field(None, gt=0, lt=1)
    """Evaluate and keep the exponential moving average (EMA) of the trained weights, with this decay, such as 0.995. No
    average if not given. For reading, it raised F1 together with dropout (docs/quality.md)."""
    pack: Literal["shared", "none"] = "shared"
    """`shared`: pack several examples behind one instruction. `none`: padded batches, for comparison."""
    pack_tokens: int | None = Field(None, ge=64)
    """The maximum number of tokens of a pack. If not given: 1,024 on a CPU and 4,096 on a GPU. It is up to twice as
    many if a step has enough tokens for each device and memory for them is predicted to suffice with a margin."""
    loss_on: LossOn | None = None
    """Which tokens have a loss. `answer`: every token of the answer. `choices`: only tokens at which the grammar allows
    more than one, and the loss compares the allowed tokens only. That is faster, but the model then needs the grammar
    to answer. Chosen by corpus and model if not given."""
    micro_batch: int = Field(4, ge=1)
    """Number of examples in a padded batch, with `pack: none`."""
    max_tokens: int = Field(2048, ge=16)
    """The maximum number of tokens of an example: prompt, text and answer. For longer documents see `data.too_long`."""
    cut_tokens: int | None = Field(None, ge=16)
    """Cut off every example after this many tokens, as the tutorial does. Use it only to reproduce the tutorial."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the decoder layers, which takes about 20 s before the first step and makes steps three times as fast.
    `auto`: on CUDA with shared packs."""
    keep: Keep | Literal["auto"] = "auto"
    """Which results compiled layers keep in memory for the backward pass. `none`: nothing, which takes the least
    memory. `some`: attention and narrow matrix products. `fp8`: all matrix products, in 8 bits for MLPs whose gate and
    up projections are one layer. `most`: all matrix products. `auto`: `most` if the free memory suffices, else
    `some`."""
    graphs: Literal["auto", "off"] = "auto"
    """Launch the forward and backward pass of a pack as CUDA graphs. `auto`: on CUDA with shared packs, if the packs
    are so short that the GPU would wait for the CPU, and if layers are not recomputed as a whole. Not with
    `model.base: nf4` or `int8`, nor with `distributed.strategy: fsdp`."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Recompute layers in the backward pass to save memory, if they are not compiled. `auto`: on CUDA."""
    eval_steps: int | None = Field(None, ge=1)
    """Number of steps between evaluations on dev documents. If not given, a run has about four evaluations."""
    eval_documents: int | None = Field(None, ge=1)
    """The maximum number of dev documents in such an evaluation. If not given: 200, or all if spans are read, which is
    fast."""
    eval_share: float = Field(0.15, gt=0, le=1)
    """The maximum share of the training time that these evaluations may take. It reduces the number of their documents,
    but not below 8."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations in a row without a better F1. Never if not given."""
    eval_before: bool = True
    """Also measure F1 before training."""
    save_steps: int | None = Field(None, ge=1)
    """Number of steps between checkpoints. As `eval_steps` if not given."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints to keep, besides that of the best evaluation."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What to do in a step whose loss or gradient is not finite: `stop` the run, or `skip` the step. Both name the
    documents of the step."""
    log_steps: int = Field(1, ge=1)
    """Number of steps between two lines of `metrics.jsonl`."""

    @property
    def on_choices(self) -> bool:
        """Whether only the tokens at which the grammar allows more than one have a loss."""
        return self.loss_on == "choices"


class Distributed(Section):
    """Training by several processes, which torchrun or `accelerate launch` starts. No effect on a single process."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: every process holds the whole base model, in any number type. `fsdp`: the layers of a bf16 or fp32 base
    model are divided over the processes, for a model that does not fit into one GPU. Slower."""
    timeout_minutes: float = Field(30.0, gt=0)
    """How many minutes a process waits for another one that has stopped responding without ending."""


class Extract(Section):
    """Extraction of entities from texts."""

    batch_size: int | None = Field(None, ge=1, le=65_536)
    """How many documents to decode together. Chosen by device if not given."""
    max_new_tokens: int = Field(1024, ge=1)
    """The maximum number of tokens of an answer that is written. An answer that reaches it is cut off and reported."""
    grounded: bool = True
    """Decode with the grammar of the document, which allows only entities that are in its text."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the decoder layers on a GPU, which takes some seconds before the first document and makes extraction
    faster. `auto`: for a model of a billion weights or more, if there are more documents than one batch."""
    merge: Literal["auto", "always"] = "auto"
    """When to merge the adapter into the base model. `auto`: if the base is in 16 or 32 bits; with a quantised base the
    adapter is computed separately. `always`: also with `model.base: fp8`, where the merged weights are then quantised.
    That is faster, but scores and entities may differ a little from those of the evaluations in training."""
    chunk_tokens: int | None = Field(None, ge=1)
    """The maximum number of tokens of a text that the model reads at once. Longer texts are read in overlapping chunks.
    If not given: what `train.max_tokens` and the context window of the model leave besides the instruction and the
    answer, or with `task.answer: spans` the tokens of the longest training text, but at least 64."""
    overlap: int = Field(64, ge=0)
    """How many characters a chunk shares with the chunk before it, so that an entity at a cut is complete in one of
    them."""
    max_characters: int = Field(500_000, ge=1)
    """The maximum number of characters of a text. Longer texts are refused, not cut."""


class Track(Section):
    """The dashboards that record the run, besides `metrics.jsonl`."""

    swanlab: Literal["local", "offline", "online", "off"] = "local"
    """SwanLab mode. `local`: a board on this machine. `offline`: recorded here, to be sent later by `spantune sync`.
    `online`: sent to SwanLab's cloud during training. `off`: not recorded."""
    board: Path | None = None
    """Folder of the local board, which shows all runs that are recorded in it. `<run.folder>/swanlab` if not given."""
    also: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Further trackers. Each is an extra to install, such as `spantune[tensorboard]`."""
    project: str = Field("spantune", pattern=r"^[0-9A-Za-z_\-+.]{1,100}$")
    """Name of the project in the trackers, in ASCII."""
    workspace: str | None = Field(None, pattern=r"^[0-9A-Za-z_\-]{1,25}$")
    """User or organisation in SwanLab's cloud that the project belongs to. If not given, that of the API key."""
    experiment: str | None = Field(None, min_length=1, max_length=512)
    """Name of the run in the trackers, in any language. `run.name` if not given."""
    description: str | None = Field(None, min_length=1, max_length=1024)
    """The purpose of the run."""
    tags: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field((), max_length=30)
    """Words by which the run can be found."""
    group: str | None = Field(None, min_length=1, max_length=128)
    """A group of runs that this run belongs to, such as an ablation study."""
    job_type: str | None = Field(None, min_length=1, max_length=128)
    """The kind of run, such as `train` or `search`, by which runs can be grouped and filtered."""
    predictions: int = Field(20, ge=0, le=100)
    """Number of documents in the text panel `Prediction`. They are the same documents at every evaluation."""
    notify: tuple[Literal["webhook", "email", "lark", "dingtalk", "wecom"], ...] = ()
    """How to send a notification when the run ends. Addresses and passwords are taken from environment variables; see
    docs/tracking.md."""

    @model_validator(mode="before")
    @classmethod
    def _bare_string_is_a_list(cls, values: object) -> object:
        """Turn a bare string in `also`, `tags` or `notify` into a list of one."""
        if not isinstance(values, dict):
            return values
        lists = {"also", "tags", "notify"}
        return {key: [value] if key in lists and isinstance(value, str) else value for key, value in values.items()}


class Config(Section):
    """A complete recipe. Its attributes are the sections."""

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
        """Turn the short form `lora: full` into the section `lora: {full: true}`."""
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
        """The path of the run folder: `run.folder / run.name`."""
        return self.run.folder / self.run.name

    def __repr__(self) -> str:
        labels = self.task.preset or ", ".join(label.code for label in self.task.labels or ())
        model, files = masked(self.model.source), masked(name_of(self.data.train))
        return f"Config(run {self.run.name}, model {model}, labels {labels}, train {files})"

    __str__ = __repr__

    def save(self, folder: str | Path) -> None:
        """Write the recipe as `config.yaml` into `folder`, with credentials masked.

        Raises:
            ConfigError: `folder` is not a path.
            OSError: the file cannot be written.
        """
        expect(folder, (str, Path), "Config.save", "the path of a folder")
        text = yaml.safe_dump(masked_values(self.model_dump(mode="json")), allow_unicode=True, sort_keys=False)
        replace_text(Path(folder) / "config.yaml", text)


def filled(value: Value | None) -> Value:
    """Return `value`, the value of an optional key of a recipe that `training.prepare` has filled, as not None."""
    assert value is not None, "a key is not filled yet: take the recipe of training.prepare"
    return value
