"""The head that reads entities: a score for every span of characters and every type, from one pass of the model.

A character is the hidden state of its token, its place in the token and its own frozen embedding, added up, through a
GELU and a small convolution over the characters around it. Its span scores are those of Efficient GlobalPointer (Su et
al., arXiv 2208.03054): one query and key with rotary positions for all types, plus for each type a score of the first
and of the last character. Only spans of at most `longest` characters exist, as a band [characters, longest, types]. A
type is made from the embedded name and description of its label, as GLiNER does (arXiv 2311.08526), and from weights of
its own, so that few examples are enough. The head computes in float32.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, pad

from spantune.core import ModelError, TaskSpec, config, first_line, foreign, to_json
from spantune.encoding import Tokenizer
from spantune.models.architecture import causal_lm
from spantune.models.interfaces import CausalLM
from spantune.models.weights import few, require_finite

HEAD_WEIGHTS, HEAD_CONFIG = "head.safetensors", "head.json"
HEAD_NAME = "span_head"  # of the submodule of the model
PLACES = 8  # a character further from an end of its token counts as this far
POINTER_SIZE = 64  # of queries and keys, of all types together
EDGE_SIZE = 64  # of the features that the type scores of first and last characters are made from
ROTARY_BASE = 10_000.0
TYPE_DIMENSIONS = {"types": 1, "bias": 0, "label_states": 0, "thresholds": 0}  # of the weights with an entry a type
START_LOGIT = -4.0  # nearly every span is no entity


class HeadConfig(BaseModel):
    """What a head was made for; saved as `head.json`.

    `labels` are the codes of the types in order, `hidden` and `layers` the sizes of the model.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: Literal[1] = 1
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1, strict=False)
    hidden: int = Field(gt=0)
    layers: int = Field(gt=0)
    longest: int = Field(gt=0)
    view: Literal["whole", "twice", "causal"]
    instruction: bool
    size: int = Field(gt=0)
    convolution: int = Field(ge=0)
    types: Literal["names", "learnt"]

    @model_validator(mode="after")
    def _is_of_a_recipe(self) -> HeadConfig:
        """Check the sizes as those of a recipe are checked."""
        _ = self.settings
        return self

    @property
    def settings(self) -> config.Spans:
        """The section `spans` of a recipe that makes such a head."""
        return config.Spans.model_validate(self.model_dump(include=set(config.Spans.model_fields)))


class SpanHead(nn.Module):
    """Scores spans from the last hidden states of a model.

    Args:
        head_config: its sizes and labels.
        dropout: on the features of a character, in training.
        label_states: the embeddings [types, hidden] that types are made from, with `types: names`; zeros when absent.
    """

    def __init__(self, head_config: HeadConfig, dropout: float = 0.0, label_states: Tensor | None = None):
        super().__init__()
        self.config = head_config
        hidden, size, types = head_config.hidden, head_config.size, len(head_config.labels)
        self.norm, self.state = nn.LayerNorm(hidden), nn.Linear(hidden, size)
        self.before, self.after = nn.Embedding(PLACES, size), nn.Embedding(PLACES, size)
        self.own = nn.Linear(hidden, size, bias=False)
        width = head_config.convolution
        self.convolution = nn.Conv1d(size, size, width, padding=width // 2) if width else None
        self.dropout = nn.Dropout(dropout)
        self.pointer = nn.Linear(size, 2 * POINTER_SIZE)
        self.edges = nn.Linear(size, 2 * EDGE_SIZE)
        self.types = nn.Parameter(torch.empty(2, types, EDGE_SIZE).normal_(std=0.02))
        self.bias = nn.Parameter(torch.full((types,), START_LOGIT))
        self.names = nn.Linear(hidden, 2 * EDGE_SIZE, bias=False) if head_config.types == "names" else None
        if self.names is not None:
            states = torch.zeros(types, hidden) if label_states is None else label_states.float().cpu()
            self.register_buffer("label_states", states)
        self.register_buffer("thresholds", torch.zeros(types))

    thresholds: Tensor
    """The logit [types] from which on a span is an entity; chosen on dev."""
    label_states: Tensor

    def forward(self, states: Tensor, own: Tensor, where: Band) -> Tensor:
        """Return the logits [characters, width, types] of the spans of a pack.

        `[c, o, t]` is that of the span from character c to character c + o, both included, for type t. Where the span
        is not inside one text, the logit means nothing (see `Band.inside`).

        Args:
            states: the last hidden state of the token of each character [characters, hidden], of any type.
            own: the frozen embedding of each character by itself [characters, hidden], of any type.
            where: the places of the characters.
        """
        with torch.autocast(states.device.type, enabled=False):
            features = self._features(states.float(), own.float(), where)
            query, key = (_rotated(half, where.place) for half in self.pointer(features).chunk(2, -1))
            first, last = self._edge_scores(features)
            pointed = band(query, key, where.width) / math.sqrt(POINTER_SIZE)
            ends = pad(last, (0, 0, 0, where.width - 1)).unfold(0, where.width, 1).transpose(1, 2)
            return pointed[:, :, None] + first[:, None] + ends + self.bias

    def _features(self, states: Tensor, own: Tensor, where: Band) -> Tensor:
        """Return the features [characters, size]; those of the gaps between texts are 0 before the convolution."""
        added = self.state(self.norm(states)) + self.own(layer_norm(own, own.shape[-1:]))
        added = added + self.before(where.before) + self.after(where.after)
        features = gelu(added) * where.is_text[:, None]
        if self.convolution is not None:
            features = features + gelu(self._convolved(features, self.convolution))
        dropped: Tensor = self.dropout(features)
        return dropped

    @staticmethod
    def _convolved(features: Tensor, convolution: nn.Conv1d) -> Tensor:
        """Return a convolution over characters as one product in float32, for which cuDNN would use TF32."""
        (width,) = convolution.kernel_size
        around = pad(features, (0, 0, width // 2, width // 2)).unfold(0, width, 1)
        return linear(around.flatten(1), convolution.weight.flatten(1), convolution.bias)

    def _edge_scores(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores [characters, types] of being the first, and the last, character of each type."""
        types: Tensor = self.types
        if self.names is not None:
            named = self.names(layer_norm(self.label_states, self.label_states.shape[-1:]))
            types = types + torch.stack(named.chunk(2, -1))
        first, last = self.edges(features).chunk(2, -1)
        return first @ types[0].T / math.sqrt(EDGE_SIZE), last @ types[1].T / math.sqrt(EDGE_SIZE)

    def set_thresholds(self, overall: float, labels: Mapping[str, float]) -> None:
        """Store the probabilities from which on a span is an entity: for all types, and for some of them."""
        values = torch.tensor([labels.get(code, overall) for code in self.config.labels], dtype=torch.float64)
        self.thresholds.copy_(torch.logit(values, eps=1e-6))


class Band:
    """Where the characters of a pack are: all texts one after another, with a gap of zeros between two.

    Args:
        place: of each character in its text; 0 in gaps; all four are long [characters].
        before: characters of its token before it.
        after: characters of its token after it.
        room: how many spans begin at it: those that end in its text; 0 in gaps.
        width: the most characters of a span.
    """

    def __init__(self, place: Tensor, before: Tensor, after: Tensor, room: Tensor, width: int):
        self.place, self.room, self.width = place, room, width
        self.before, self.after = before.clamp(max=PLACES - 1), after.clamp(max=PLACES - 1)
        self.is_text = room > 0

    @property
    def inside(self) -> Tensor:
        """Which spans are inside one text: bool [characters, width]."""
        return torch.arange(self.width, device=self.room.device)[None] < self.room[:, None]


def band(query: Tensor, key: Tensor, width: int) -> Tensor:
    """Return the products [rows, width] of each row of `query` with the rows of `key` from the same one on.

    Both are [rows, size]; products with rows after the last are 0. Computed in blocks of `width` rows, so that the cost
    is linear in the rows.
    """
    rows = len(query)
    blocks = -(-rows // width)
    queries = pad(query, (0, 0, 0, blocks * width - rows)).view(blocks, width, -1)
    keys = pad(key, (0, 0, 0, (blocks + 1) * width - rows)).view(blocks + 1, width, -1)
    products = queries @ torch.cat((keys[:-1], keys[1:]), dim=1).transpose(1, 2)
    # row i of a block needs the columns i to i + width - 1: in rows that are longer by one, these are the first ones
    skewed = pad(products.flatten(1), (0, width)).view(blocks, width, 2 * width + 1)
    return skewed[:, :, :width].reshape(blocks * width, width)[:rows]


def _rotated(features: Tensor, place: Tensor) -> Tensor:
    """Rotate each pair of features [characters, size] by an angle that grows with the place (RoPE).

    Angles are in float64: in float32 those of the 100,000th character would be wrong by up to 0.4 %.
    """
    size = features.shape[-1]
    steps = torch.arange(0, size, 2, device=features.device, dtype=torch.float64)
    angles = place[:, None] * ROTARY_BASE ** (-steps / size)
    cosine, sine = angles.cos().float(), angles.sin().float()
    even, odd = features[:, 0::2], features[:, 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)


def make_head(model: CausalLM, tokenizer: Tokenizer, task: TaskSpec, settings: config.Spans) -> SpanHead:
    """Make an untrained head for a model, on its device; a seed set before decides its weights.

    Args:
        model: the causal LM whose states it reads.
        tokenizer: encodes the names of the labels.
        task: its labels are the types.
        settings: the recipe's section `spans`, with `longest` filled.
    """
    base = causal_lm(model)
    states = _label_states(base, tokenizer, task) if settings.types == "names" else None
    return SpanHead(_head_config(base, task, settings), settings.dropout, states).to(next(base.parameters()).device)


def head_weights(model: CausalLM, task: TaskSpec, settings: config.Spans) -> int:
    """Count the weights of the head that `make_head` would make for a model, which may be on the meta device."""
    with torch.device("meta"):
        head = SpanHead(_head_config(causal_lm(model), task, settings))
    return sum(weight.numel() for weight in head.parameters())


def _head_config(base: CausalLM, task: TaskSpec, settings: config.Spans) -> HeadConfig:
    return HeadConfig(
        labels=task.codes,
        hidden=base.config.hidden_size,
        layers=base.config.num_hidden_layers,
        longest=config.filled(settings.longest),
        view=settings.view,
        instruction=settings.instruction,
        size=settings.size,
        convolution=settings.convolution,
        types=settings.types,
    )


def _label_states(model: CausalLM, tokenizer: Tokenizer, task: TaskSpec) -> Tensor:
    """Return the mean of the frozen embeddings [types, hidden] of each label's name and description."""
    table = model.get_input_embeddings().weight
    rows = []
    for label in task.labels:
        text = f"{label.name or label.code} {label.description}".strip()
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        states = table[torch.tensor(ids, dtype=torch.long, device=table.device)].detach().float()
        rows.append(states.mean(0) if ids else states.new_zeros(table.shape[1]))  # a name of spaces only
    return torch.stack(rows)


def attach_head(model: CausalLM, head: SpanHead) -> None:
    """Make `head` a part of `model`, so that it is trained, saved and moved with it."""
    model.add_module(HEAD_NAME, head)


def head_of(model: CausalLM) -> SpanHead | None:
    """Return the head of a model; None where it has none."""
    head = getattr(model, HEAD_NAME, None)
    assert head is None or isinstance(head, SpanHead)
    return head


def require_head(model: CausalLM) -> SpanHead:
    """Return the head of a model that must have one.

    Raises:
        ModelError: it has none.
    """
    head = head_of(model)
    if head is None:
        raise ModelError("the model has no head to read spans with; spantune.load loads both from a run")
    return head


def save_head(head: SpanHead, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write `head.safetensors` and `head.json` into `folder`; `weights`, where given, instead of the head's own."""
    from safetensors.torch import save_file

    state = head.state_dict() | dict(weights or {})
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / HEAD_WEIGHTS)
    (folder / HEAD_CONFIG).write_text(to_json(head.config.model_dump()) + "\n", encoding="utf-8")


def copy_head(folder: Path, target: Path) -> None:
    """Copy the files of the head in `folder` into the folder `target`.

    Raises:
        OSError: the disk refuses it.
    """
    for name in (HEAD_CONFIG, HEAD_WEIGHTS):
        shutil.copyfile(folder / name, target / name)


def load_head(model: CausalLM, folder: Path, task: TaskSpec) -> SpanHead:
    """Read the head in `folder`, and attach it to `model`, on its device.

    Raises:
        ModelError: there is none, it is damaged, or it was made for other labels or for another model.
    """
    head = SpanHead(read_head_config(folder, task))
    base = causal_lm(model).config
    sizes = (head.config.hidden, head.config.layers)
    if sizes != (own_sizes := (base.hidden_size, base.num_hidden_layers)):
        raise ModelError(
            f"{folder}: the head is for another model: one of hidden size {sizes[0]} and {sizes[1]} layers, and this "
            f"has {own_sizes[0]} and {own_sizes[1]}; name the model that it was trained on"
        )
    load_head_weights(head, folder)
    attach_head(model, head.to(next(causal_lm(model).parameters()).device))
    return head.eval()


def check_head_files(folder: Path, task: TaskSpec) -> None:
    """Check, before a model is loaded, that what is trained in `folder` has a head where `task` is answered by reading.

    Raises:
        ModelError: as `read_head_config`; or there is a head, and `task` is answered by writing.
    """
    if task.reads:
        read_head_config(folder, task)
    elif (folder / HEAD_CONFIG).is_file():
        raise ModelError(
            f"{folder}: {HEAD_CONFIG} is here, so this was trained to read spans, and task.json says "
            f"answer={task.answer}; restore task.json of the run"
        )


def read_head_config(folder: Path, task: TaskSpec) -> HeadConfig:
    """Return what the head in `folder` was made for.

    Raises:
        ModelError: there is no head, its configuration is damaged, or its labels are not those of `task`.
    """
    head_config = _read_config(folder)
    if head_config.labels != task.codes:
        raise ModelError(
            f"{folder}: the head reads the labels {', '.join(head_config.labels)}, and the task has "
            f"{', '.join(task.codes)}; restore head.json and task.json of the same run"
        )
    return head_config


def _read_config(folder: Path) -> HeadConfig:
    path = folder / HEAD_CONFIG
    if not path.is_file() or not (folder / HEAD_WEIGHTS).is_file():
        missing = HEAD_WEIGHTS if path.is_file() else HEAD_CONFIG
        raise ModelError(
            f"{folder}: no {missing} here, and the task is answered by reading spans; restore it, or train again"
        )
    try:
        return HeadConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join((*map(str, first["loc"][:1]), first["msg"].removeprefix("Value error, ")))
    except (OSError, ValueError, RecursionError) as error:
        problem = first_line(error)
    raise ModelError(f"{folder}: {HEAD_CONFIG} is damaged ({problem}); restore it")


def load_head_weights(head: SpanHead, folder: Path) -> None:
    """Give a head the weights that are saved in `folder`.

    Of a head of fewer labels, or of the same in another order, each label gets its own, and the others stay as they
    are.

    Raises:
        ModelError: they are absent, damaged or not finite, or are those of another head.
    """
    from safetensors.torch import load_file

    with foreign(folder, f"the head is damaged: {HEAD_WEIGHTS} cannot be read", "restore it"):
        weights: dict[str, Tensor] = load_file(folder / HEAD_WEIGHTS)
    require_finite(folder, weights)
    own, labels = head.state_dict(), _read_config(folder).labels
    if labels != head.config.labels and set(labels) <= set(head.config.labels):
        weights = _by_label(weights, own, [head.config.labels.index(label) for label in labels])
    wrong = sorted(weights.keys() ^ own.keys())
    wrong += [name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape]
    if wrong:
        raise ModelError(
            f"{folder}: {HEAD_WEIGHTS} is not that of {HEAD_CONFIG}; it differs in {few(wrong)}; restore both"
        )
    head.load_state_dict(weights)


def _by_label(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], places: list[int]) -> dict[str, Tensor]:
    """The weights of a head whose label number `places[i]` is number i of `weights`; other labels are as in `own`."""
    moved = dict(weights)
    for name, dimension in TYPE_DIMENSIONS.items():
        if name in weights and name in own and weights[name].shape[dimension] == len(places):
            index = torch.tensor(places, device=own[name].device)
            moved[name] = own[name].clone().index_copy_(dimension, index, weights[name].to(own[name].device))
    return moved
