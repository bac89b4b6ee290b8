"""The source of an export: a finished run with its base model, and the settings of the export."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from spantune.core import Config, ConfigError, DataError, Document, TaskSpec, config, expect, nearest
from spantune.data import read, read_splits
from spantune.encoding import TextEncoder, make_encoder
from spantune.extraction import most_tokens
from spantune.models import CausalLM, ModelFiles, check_head_files, load, read_files, read_head_config
from spantune.runs import RunFolder

Form = Literal["merged", "adapter", "gguf", "spans"]
FORMS: tuple[Form, ...] = get_args(Form)
Dtype = Literal["bf16", "fp32"]
DTYPES: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}

TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "*TERMS*")


@dataclass(frozen=True)
class ExportSettings:
    """How a run is exported.

    Args:
        dtype: the type of merged weights, `bf16` or `fp32`; None takes that of the base model's own files.
        shard_size: the most bytes of a weights file, such as `4GB`.
        split: for `adapter`: whether each part of a fused projection (qkv_proj, gate_up_proj) gets its own adapter.
        base_name: for `adapter`: the name of the base model on a hub; None takes that of the run's recipe.
        verify: the number of dev documents on which the export is compared with the run; 0 compares nothing.
        data: a corpus file with documents for the comparison; None takes the run's dev documents.
        keep: whether an export that failed the comparison is kept under the name `OUT.differs`.
        license: the licence that the model card states, such as `mit`.
        quantize: for `gguf`: the type of its weights, such as `f16` or `q8_0`.
        as_adapter: for `gguf`: whether only the adapter is written.
        push: the repository to upload the export to, `modelscope:OWNER/NAME` or `hf:OWNER/NAME`.
        public: whether that repository becomes public if it is new.
        device: where the model computes: `auto`, `cpu` or `cuda`.
        accept_changes: export an adapter whose files were changed after training, with a warning.

    Raises:
        ConfigError: `dtype` or `shard_size` is unknown, or `verify` is not a number of documents.
    """

    dtype: Dtype | None = None
    shard_size: str = "4GB"
    split: bool = False
    base_name: str | None = None
    verify: int = 50
    data: str | None = None
    keep: bool = False
    license: str | None = None
    quantize: str = "f16"
    as_adapter: bool = False
    push: str | None = None
    public: bool = False
    device: str = "auto"
    accept_changes: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype {self.dtype!r} is unknown; {nearest(str(self.dtype), DTYPES)}")
        if not re.fullmatch(r"[1-9]\d*(KB|MB|GB)", self.shard_size):
            raise ConfigError(f"shard_size {self.shard_size!r}: expected a size such as 500MB or 4GB")
        expect(self.verify, int, "verify", "a number of documents from 0 on")
        if self.verify < 0:
            raise ConfigError(f"verify={self.verify}: expected a number of documents from 0 on")


@dataclass(frozen=True)
class Source:
    """A finished run to export, with its recipe, its task, and the files of its base model without the weights."""

    folder: RunFolder
    settings: ExportSettings
    recipe: Config
    task: TaskSpec
    files: ModelFiles = field(repr=False)

    @staticmethod
    def open(run: Path, settings: ExportSettings) -> Source:
        """Open a finished run and the files of its base model, without the weights.

        Raises:
            RunError: the folder is not a finished run, or its adapter was changed.
            ModelError: the base model cannot be found or downloaded, or the run's span head is damaged.
        """
        folder = RunFolder(run)
        recipe = folder.require_finished()
        task = folder.adapter_task(accept_changes=settings.accept_changes)
        check_head_files(folder.adapter, task)
        return Source(folder, settings, recipe, task, read_files(folder.model().source, folder.adapter))

    @property
    def adapter(self) -> Path:
        """The folder with what the run trained: adapter, span head or full weights."""
        return self.folder.adapter

    @property
    def dtype(self) -> Dtype:
        """The type of merged weights: that of the settings, or else that of the base model."""
        own: Dtype = "bf16" if self.files.config.dtype in (torch.bfloat16, "bfloat16") else "fp32"
        return self.settings.dtype or own

    @property
    def evaluation(self) -> Path:
        """The file with the figures on dev of the saved adapter."""
        return self.folder.evaluation_file

    @property
    def terms(self) -> list[Path]:
        """The files of the base model that state its licence and terms; they are copied into an export."""
        return sorted({path for pattern in TERMS for path in self.files.folder.glob(pattern) if path.is_file()})

    @property
    def most_tokens(self) -> int:
        """The most tokens of a prompt with its text that the model takes in one pass."""
        window = int(self.files.config.get_text_config().max_position_embeddings)
        return most_tokens(self.encoder, self.recipe.extract, window) or window

    @cached_property
    def encoder(self) -> TextEncoder:
        """The encoder of the run."""
        spans = read_head_config(self.adapter, self.task).settings if self.task.reads else self.recipe.spans
        return make_encoder(self.files.tokenizer, self.task, spans, self.recipe.train.max_tokens)

    @cached_property
    def documents(self) -> Sequence[Document]:
        """The documents on which the export is compared with the run; empty if it is not compared.

        Raises:
            DataError: the dev documents can no longer be read and no other corpus is given, or there are no documents.
        """
        settings = self.settings
        if not settings.verify:
            return ()
        try:
            corpus = read(settings.data).documents if settings.data else read_splits(self.folder.data()).dev
        except DataError as error:
            if settings.data:
                raise
            raise DataError(
                f"the dev documents of the run, which the export is compared on, cannot be read: {error}; name others "
                "with --data FILE, or give --verify 0 to write an export that is not compared"
            ) from None
        documents = tuple(islice(corpus, settings.verify))
        if not documents:
            raise DataError("there are no documents to compare the export on; name others with --data FILE")
        known = self.task.codes  # only the texts matter, so a corpus with other labels can be used too
        return tuple(doc.with_entities(entity for entity in doc.entities if entity.label in known) for doc in documents)

    def load_base(self, dtype: Dtype = "fp32") -> CausalLM:
        """Load the base model in `dtype`, in whatever type the run used it.

        Raises:
            ModelError: the base model cannot be loaded.
        """
        changes = {"base": cast(config.Base, dtype), "device": self.settings.device}
        return load(self.recipe.model.model_copy(update=changes), self.files).model
