"""What is exported: a finished run with its base model, and how its export is asked for."""

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
        dtype: the type of merged weights, `bf16` or `fp32`; that of the base's own files where absent.
        shard_size: the most bytes of a weights file, such as `4GB`.
        split: for `adapter`: give fused projections (qkv_proj, gate_up_proj) one adapter for each of their parts.
        base_name: for `adapter`: the name of the base model on a hub; that of the run's recipe where absent.
        verify: how many dev documents the export is compared with the run on; 0 leaves the comparison out.
        data: a corpus file to take these documents from instead of the run's dev corpus.
        keep: keep an export that failed the comparison, under the name `OUT.differs`.
        license: the licence that the model card states, such as `mit`.
        quantize: for `gguf`: the type of its weights, such as `f16` or `q8_0`.
        as_adapter: for `gguf`: write the adapter alone.
        push: the repository to upload the export to, `modelscope:OWNER/NAME` or `hf:OWNER/NAME`.
        public: make that repository public where it is new.
        device: where the model is computed: `auto`, `cpu` or `cuda`.
        accept_changes: go on with an adapter whose files were changed after training, with a warning.
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
    """A finished run that is exported, with what is read of its base model before the weights."""

    folder: RunFolder
    settings: ExportSettings
    recipe: Config
    task: TaskSpec
    files: ModelFiles = field(repr=False)

    @staticmethod
    def open(run: Path, settings: ExportSettings) -> Source:
        """Read what the folder of a finished run says.

        Raises:
            RunError: it is no finished run, or its adapter was changed.
            ModelError: its base model cannot be had, or its head is damaged.
        """
        folder = RunFolder(run)
        recipe = folder.require_finished()
        task = folder.adapter_task(accept_changes=settings.accept_changes)
        check_head_files(folder.adapter, task)
        return Source(folder, settings, recipe, task, read_files(folder.model().source, folder.adapter))

    @property
    def adapter(self) -> Path:
        """The folder of what the run has trained."""
        return self.folder.adapter

    @property
    def dtype(self) -> Dtype:
        """The type that merged weights are written in."""
        own: Dtype = "bf16" if self.files.config.dtype in (torch.bfloat16, "bfloat16") else "fp32"
        return self.settings.dtype or own

    @property
    def evaluation(self) -> Path:
        """What was measured on dev when the adapter was saved."""
        return self.folder.evaluation_file

    @property
    def terms(self) -> list[Path]:
        """The files of the base model that say under which terms it is given; they are copied into an export."""
        return sorted({path for pattern in TERMS for path in self.files.folder.glob(pattern) if path.is_file()})

    @property
    def most_tokens(self) -> int:
        """The most tokens of a text, with what stands before it, that the model reads at once."""
        window = int(self.files.config.get_text_config().max_position_embeddings)
        return most_tokens(self.encoder, self.recipe.extract, window) or window

    @cached_property
    def encoder(self) -> TextEncoder:
        """The encoder of the run."""
        spans = read_head_config(self.adapter, self.task).settings if self.task.reads else self.recipe.spans
        return make_encoder(self.files.tokenizer, self.task, spans, self.recipe.train.max_tokens)

    @cached_property
    def documents(self) -> Sequence[Document]:
        """The documents that the export is compared with the run on; empty where it is not.

        Raises:
            DataError: the dev corpus cannot be read any more, and no other is given; or there are no documents.
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
        known = self.task.codes  # their texts are what counts, so that a corpus with other labels will do
        return tuple(doc.with_entities(entity for entity in doc.entities if entity.label in known) for doc in documents)

    def load_base(self, dtype: Dtype = "fp32") -> CausalLM:
        """Load the base model in `dtype`, whatever type the run was trained over.

        Raises:
            ModelError: it cannot be loaded.
        """
        changes = {"base": cast(config.Base, dtype), "device": self.settings.device}
        return load(self.recipe.model.model_copy(update=changes), self.files).model
