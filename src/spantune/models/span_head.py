"""The span head: it computes a score for every span of characters and every type, from one pass of the model.

The feature of a character is computed from three inputs: the hidden state of its token, its place in the token, and its
own frozen embedding. Their sum goes through a GELU and a small convolution over the neighbouring characters. The scores
of spans are those of Efficient GlobalPointer (Su et al., arXiv 2208.03054): a query of the first and a key of the last
character with rotary positions, the same for all types, plus for each type a score of the first and of the last
character. Only spans of at most `longest` characters have scores, as a band [characters, longest, types]. The vector of
a type is the sum of learnt weights and a projection of the embedded name and description of its label, as in GLiNER
(arXiv 2311.08526), so that few examples are enough. The head computes in float32.
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
HEAD_NAME = "span_head"  # the name of the head as a submodule of the model
PLACES = 8  # distances from an end of the token are 0 to PLACES - 1; longer ones count as PLACES - 1
POINTER_SIZE = 64  # the size of queries and keys, which all types share
EDGE_SIZE = 64  # the size of the features for the scores of first and last characters
ROTARY_BASE = 10_000.0
TYPE_DIMENSIONS = {"types": 1, "bias": 0, "label_states": 0, "thresholds": 0}  # weights, and their dimension of types
START_LOGIT = -4.0  # the bias of a new head, since nearly no span is an entity


class HeadConfig(BaseModel):
    """The configuration of a span head, which is saved as `head.json`.

    Attributes:
        version: the version of this format.
        labels: the codes of the labels; their order is that of the types.
        hidden: the hidden size of the model.
        layers: the number of layers of the model.
        longest: the most characters of a span.
        view: what a token attends to; like all following fields, as in the section `spans` of a recipe.
        instruction: whether the instruction comes before each text.
        size: the size of the features of a character.
        convolution: the width of the convolution in characters; 0 for none.
        types: whether types are made from the names of labels, or only learnt.
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
        """Check the values in the same way as those of a recipe."""
        _ = self.settings
        return self

    @property
    def settings(self) -> config.Spans:
        """The section `spans` of a recipe for a head of this configuration."""
        return config.Spans.model_validate(self.model_dump(include=set(config.Spans.model_fields)))


class SpanHead(nn.Module):
    """Scores spans from the last hidden states of a model.

    Args:
        head_config: the sizes and labels of the head.
        dropout: the dropout on the features of characters, in training.
        label_states: with `types: names`, the embeddings [types, hidden] of the labels; None for zeros.
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
    """[types], the lowest logit with which a span is an entity of each type; chosen on dev."""
    label_states: Tensor

    def forward(self, states: Tensor, own: Tensor, where: Band) -> Tensor:
        """Return the logits [characters, width, types] of the spans of a pack, in float32.

        The logit `[c, o, t]` is that of the span from character c to character c + o, both included, and type t. It has
        no meaning if the span is not inside one text (see `Band.inside`).

        Args:
            states: [characters, hidden], the last hidden state of the token of each character, in any float type.
            own: [characters, hidden], the frozen embedding of each character by itself, in any float type.
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
        """Return the features [characters, size]; in the gaps between texts they are 0 before the convolution."""
        added = self.state(self.norm(states)) + self.own(layer_norm(own, own.shape[-1:]))
        added = added + self.before(where.before) + self.after(where.after)
        features = gelu(added) * where.is_text[:, None]
        if self.convolution is not None:
            features = features + gelu(self._convolved(features, self.convolution))
        dropped: Tensor = self.dropout(features)
        return dropped

    @staticmethod
    def _convolved(features: Tensor, convolution: nn.Conv1d) -> Tensor:
        """Return the convolution over characters [characters, size], computed as one product in float32.

        cuDNN would compute it in TF32.
        """
        (width,) = convolution.kernel_size
        around = pad(features, (0, 0, width // 2, width // 2)).unfold(0, width, 1)
        return linear(around.flatten(1), convolution.weight.flatten(1), convolution.bias)

    def _edge_scores(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return two tensors [characters, types]: the scores of first characters, and those of last characters."""
        types: Tensor = self.types
        if self.names is not None:
            named = self.names(layer_norm(self.label_states, self.label_states.shape[-1:]))
            types = types + torch.stack(named.chunk(2, -1))
        first, last = self.edges(features).chunk(2, -1)
        return first @ types[0].T / math.sqrt(EDGE_SIZE), last @ types[1].T / math.sqrt(EDGE_SIZE)

    def set_thresholds(self, overall: float, labels: Mapping[str, float]) -> None:
        """Set the thresholds.

        Args:
            overall: the lowest probability with which a span is an entity, for all labels that are not in `labels`.
            labels: the same for single labels, by code.
        """
        values = torch.tensor([labels.get(code, overall) for code in self.config.labels], dtype=torch.float64)
        self.thresholds.copy_(torch.logit(values, eps=1e-6))


class Band:
    """The places of the characters of a pack: all texts one after another, with a gap of zeros between two texts.

    Args:
        place: [characters] long, the index of each character in its text; 0 in gaps.
        before: [characters] long, the number of characters of its token before it.
        after: [characters] long, the number of characters of its token after it.
        room: [characters] long, the number of spans that begin at the character and end in its text; 0 in gaps.
        width: the most characters of a span.
    """

    def __init__(self, place: Tensor, before: Tensor, after: Tensor, room: Tensor, width: int):
        self.place, self.room, self.width = place, room, width
        self.before, self.after = before.clamp(max=PLACES - 1), after.clamp(max=PLACES - 1)
        self.is_text = room > 0

    @property
    def inside(self) -> Tensor:
        """Whether each span is inside one text: bool [characters, width]."""
        return torch.arange(self.width, device=self.room.device)[None] < self.room[:, None]


def band(query: Tensor, key: Tensor, width: int) -> Tensor:
    """Return the products [rows, width] of each row of `query` with `width` rows of `key`.

    Entry [i, o] is the product of row i of `query` with row i + o of `key`; it is 0 if `key` has no such row. The rows
    are computed in blocks of `width` rows, so that the cost grows linearly with their number.

    Args:
        query: [rows, size].
        key: [rows, size].
        width: the number of rows of `key` for each row of `query`.
    """
    rows = len(query)
    blocks = -(-rows // width)
    queries = pad(query, (0, 0, 0, blocks * width - rows)).view(blocks, width, -1)
    keys = pad(key, (0, 0, 0, (blocks + 1) * width - rows)).view(blocks + 1, width, -1)
    products = queries @ torch.cat((keys[:-1], keys[1:]), dim=1).transpose(1, 2)
    # Row i of a block needs the columns i to i + width - 1. If the same numbers are viewed in rows that are longer by
    # one, these are the first `width` columns of row i.
    skewed = pad(products.flatten(1), (0, width)).view(blocks, width, 2 * width + 1)
    return skewed[:, :, :width].reshape(blocks * width, width)[:rows]


def _rotated(features: Tensor, place: Tensor) -> Tensor:
    """Rotate each pair of features [characters, size] by an angle that grows with the place (RoPE).

    The angles are computed in float64: in float32 those of the 100,000th character would be wrong by up to 0.4 %.
    """
    size = features.shape[-1]
    steps = torch.arange(0, size, 2, device=features.device, dtype=torch.float64)
    angles = place[:, None] * ROTARY_BASE ** (-steps / size)
    cosine, sine = angles.cos().float(), angles.sin().float()
    even, odd = features[:, 0::2], features[:, 1::2]
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)


def make_head(model: CausalLM, tokenizer: Tokenizer, task: TaskSpec, settings: config.Spans) -> SpanHead:
    """Make an untrained head for a model, on the model's device.

    Its weights are drawn from torch's global random numbers, so that a seed that was set before decides them.

    Args:
        model: the causal LM whose hidden states the head reads.
        tokenizer: encodes the names of the labels.
        task: the task, whose labels are the types.
        settings: the recipe's section `spans`, with `longest` filled in.
    """
    base = causal_lm(model)
    states = _label_states(base, tokenizer, task) if settings.types == "names" else None
    return SpanHead(_head_config(base, task, settings), settings.dropout, states).to(next(base.parameters()).device)


def head_weights(model: CausalLM, task: TaskSpec, settings: config.Spans) -> int:
    """Return the number of weights of the head that `make_head` makes for a model, which may be on the meta device."""
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
        rows.append(states.mean(0) if ids else states.new_zeros(table.shape[1]))  # a name of spaces only has no tokens
    return torch.stack(rows)


def attach_head(model: CausalLM, head: SpanHead) -> None:
    """Make `head` a submodule of `model`, so that it is trained, saved and moved together with the model."""
    model.add_module(HEAD_NAME, head)


def head_of(model: CausalLM) -> SpanHead | None:
    """Return the span head of a model; None if it has none."""
    head = getattr(model, HEAD_NAME, None)
    assert head is None or isinstance(head, SpanHead)
    return head


def require_head(model: CausalLM) -> SpanHead:
    """Return the span head of a model that must have one.

    Raises:
        ModelError: the model has no span head.
    """
    head = head_of(model)
    if head is None:
        raise ModelError("the model has no head to read spans with; spantune.load loads both from a run")
    return head


def save_head(head: SpanHead, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write `head.safetensors` and `head.json` into `folder`; `weights` replaces weights of the head, by name."""
    from safetensors.torch import save_file

    state = head.state_dict() | dict(weights or {})
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, folder / HEAD_WEIGHTS)
    (folder / HEAD_CONFIG).write_text(to_json(head.config.model_dump()) + "\n", encoding="utf-8")


def copy_head(folder: Path, target: Path) -> None:
    """Copy the files of the head in `folder` into the folder `target`.

    Raises:
        OSError: a file cannot be read, or the disk refuses it.
    """
    for name in (HEAD_CONFIG, HEAD_WEIGHTS):
        shutil.copyfile(folder / name, target / name)


def load_head(model: CausalLM, folder: Path, task: TaskSpec) -> SpanHead:
    """Read the head in `folder`, attach it to `model` on the model's device, and return it.

    Raises:
        ModelError: `folder` has no head, or it is damaged, or was made for other labels or for another model.
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
    """Check that the run in `folder` has a head if `task` is answered by reading, and none if it is not.

    It is called before the model is loaded.

    Raises:
        ModelError: the head is missing or damaged, has other labels than `task`, or is there although `task` is
            answered by writing.
    """
    if task.reads:
        read_head_config(folder, task)
    elif (folder / HEAD_CONFIG).is_file():
        raise ModelError(
            f"{folder}: {HEAD_CONFIG} is here, so this was trained to read spans, and task.json says "
            f"answer={task.answer}; restore task.json of the run"
        )


def read_head_config(folder: Path, task: TaskSpec) -> HeadConfig:
    """Return the configuration of the head in `folder`.

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
    """Load the weights that are saved in `folder` into a head.

    The saved head may have fewer labels, or the same labels in another order. Then the weights of each label are found
    by its code, and labels that the saved head lacks keep their weights.

    Raises:
        ModelError: the weights are missing, damaged or not finite, or are those of another head.
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
    """Return weights for a head with further labels, or labels in another order.

    Args:
        weights: the saved weights, by name.
        own: the weights of the head, which labels without saved weights keep.
        places: for each label of `weights`, its index among the labels of the head.
    """
    moved = dict(weights)
    for name, dimension in TYPE_DIMENSIONS.items():
        if name in weights and name in own and weights[name].shape[dimension] == len(places):
            index = torch.tensor(places, device=own[name].device)
            moved[name] = own[name].clone().index_copy_(dimension, index, weights[name].to(own[name].device))
    return moved
