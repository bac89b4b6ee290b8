"""Read entities with a model that spantune exported; needs only transformers and torch, not spantune.

    from span_reader import SpanReader

    reader = SpanReader(".")  # the folder with reader.json
    for entity in reader("患者因急性阑尾炎行腹腔镜手术。"):
        print(entity["start"], entity["end"], entity["label"], entity["text"], entity["score"])

The text goes through the model once, and a span head scores every span of characters for every type.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv1d, gelu, layer_norm, linear
from transformers import AutoModelForCausalLM, AutoTokenizer


class SpanReader:
    """An exported model with its span head.

    Args:
        folder: the exported folder.
        base: the base model, if the folder holds an adapter instead of the whole model; this needs peft.
        device: the torch device to compute on.
        dtype: the type to compute in; the head always computes in float32.
    """

    def __init__(
        self, folder: str | Path, base: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
    ):
        self.about: dict[str, Any] = json.loads(Path(folder, "reader.json").read_text(encoding="utf-8"))
        weights = load_file(Path(folder, "head.safetensors"))
        self.head = {name: weight.float().to(device) for name, weight in weights.items()}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(base or folder, dtype=dtype, trust_remote_code=False)
        if base is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        self.model = model.to(device).eval()
        self.device = torch.device(device)

    def __call__(self, text: str) -> list[dict[str, Any]]:
        """Return the entities of a text, sorted by start, with half-open offsets in characters (code points).

        Each entity is a dict with `start`, `end`, `label`, `text` and `score`, a probability.

        Raises:
            ValueError: the text has more tokens than the model reads at once; cut it at the end of a sentence.
        """
        logits, labels = self.logits(text), self.about["labels"]
        scores = torch.sigmoid(logits.double()) ** (1 / self.about["temperature"])
        places = (logits > self.about["lowest_logit"]).nonzero().tolist()
        rows = [(c, c + more + 1, labels[kind], scores[c, more, kind].item()) for c, more, kind in places]
        rows = sorted(rows, key=lambda row: -row[3])[: 2 * len(text)]
        rows = [row for row in rows if row[3] >= self.about["thresholds"][row[2]]]
        if not self.about["nested"]:  # keep the higher score; of equal scores the earlier, then the longer entity
            covered: set[int] = set()
            ranked, rows = sorted(rows, key=lambda row: (-row[3], row[0], -row[1], row[2])), []
            for row in ranked:
                if covered.isdisjoint(range(row[0], row[1])):
                    covered.update(range(row[0], row[1]))
                    rows.append(row)
        names = ("start", "end", "label", "score")
        return [{**dict(zip(names, row, strict=True)), "text": text[row[0] : row[1]]} for row in sorted(rows)]

    @torch.inference_mode()
    def logits(self, text: str) -> Tensor:
        """Return the logits [characters, width, types]; [c, o, t] is the span of characters c to c + o, type t.

        Raises:
            ValueError: the text has more tokens than the model reads at once.
        """
        if not text:
            return torch.zeros(0, 1, len(self.about["labels"]))
        options = {"add_special_tokens": False, "split_special_tokens": True}
        encoded = self.tokenizer(text, return_offsets_mapping=True, **options)
        start, text_ids = list(self.about["prefix"]), encoded["input_ids"]
        if self.about["view"] == "twice":
            start += [*text_ids, *self.about["between"]]
        ids = [*start, *text_ids]
        if len(ids) > self.about["tokens"]:
            raise ValueError(f"{len(ids)} tokens, and {self.about['tokens']} are read at once: cut the text")
        token, before, after = self._characters(text, encoded["offset_mapping"])
        single = {sign: self.tokenizer(sign, **options)["input_ids"] for sign in set(text)}
        nearest = [text_ids[index] if index >= 0 else start[-1] for index in token]
        own = [(single[sign] or [other])[-1] for sign, other in zip(text, nearest, strict=True)]
        inputs = {"input_ids": self._tensor([ids]), "attention_mask": self._mask(len(ids)), "use_cache": False}
        states = self.model.base_model(**inputs).last_hidden_state[0]
        at = self._tensor([len(start) + index for index in token])
        embeddings = self.model.get_input_embeddings().weight[self._tensor(own)]
        return self._scores(states[at].float(), embeddings.float(), self._tensor(before), self._tensor(after))

    def _tensor(self, values: list[Any]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _mask(self, size: int) -> Tensor | dict[str, Tensor]:
        """Return the additive mask [1, 1, size, size]; with the view `whole`, tokens of the text see all of the text.

        There is one mask for each kind of layer if the model has several kinds.
        """
        place = torch.arange(size, device=self.device)
        reach = place.clone()
        if self.about["view"] == "whole":
            reach[len(self.about["prefix"]) :] = size - 1
        masks = {}
        for kind, window in self.about["windows"].items():  # one entry for each kind of layer; "" if there is only one
            hidden = place[None] > reach[:, None]
            if window is not None:
                hidden = hidden | ((place[None] - place[:, None]).abs() >= window)
            mask = torch.zeros(size, size, dtype=self.model.dtype, device=self.device)
            masks[kind] = mask.masked_fill(hidden, torch.finfo(mask.dtype).min)[None, None]
        return masks.get("", masks)

    @staticmethod
    def _characters(text: str, offsets: list[tuple[int, int]]) -> tuple[list[int], list[int], list[int]]:
        """Return the token of each character, and how many characters of the same token come before and after it."""
        token, before, after = [-1] * len(text), [0] * len(text), [0] * len(text)
        for index, (start, end) in enumerate(offsets):
            for place in range(start, end):
                token[place], before[place], after[place] = index, place - start, end - 1 - place
        held = next((index for index in token if index >= 0), -1)
        for place, index in enumerate(token):  # a character without a token takes the token of the one before it
            held = token[place] = index if index >= 0 else held
        return token, before, after

    def _scores(self, states: Tensor, own: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """Compute the head, an Efficient GlobalPointer over characters: logits [characters, width, types]."""
        head, sizes = self.head, states.shape[-1:]
        added = linear(
            layer_norm(states, sizes, head["norm.weight"], head["norm.bias"]), head["state.weight"], head["state.bias"]
        )
        added = added + linear(layer_norm(own, sizes), head["own.weight"])
        furthest = len(head["before.weight"]) - 1
        added = (
            added + head["before.weight"][before.clamp(max=furthest)] + head["after.weight"][after.clamp(max=furthest)]
        )
        features = gelu(added)
        if "convolution.weight" in head:
            kernel = head["convolution.weight"]
            around = conv1d(features.T[None], kernel, head["convolution.bias"], padding=kernel.shape[-1] // 2)
            features = features + gelu(around[0].T)
        query, key = map(self._rotated, linear(features, head["pointer.weight"], head["pointer.bias"]).chunk(2, -1))
        first, last = linear(features, head["edges.weight"], head["edges.bias"]).chunk(2, -1)
        types = head["types"]
        if "names.weight" in head:
            named = linear(layer_norm(head["label_states"], sizes), head["names.weight"])
            types = types + torch.stack(named.chunk(2, -1))
        first, last = (
            half @ kind.T / math.sqrt(half.shape[-1]) for half, kind in zip((first, last), types, strict=True)
        )
        characters = torch.arange(len(states), device=self.device)
        ends = characters[:, None] + torch.arange(min(self.about["longest"], len(states)), device=self.device)
        outside, ends = ends >= len(states), ends.clamp(max=len(states) - 1)
        pointed = torch.einsum("cd,cwd->cw", query, key[ends]) / math.sqrt(query.shape[-1])
        logits: Tensor = pointed[:, :, None] + first[:, None] + last[ends] + head["bias"]
        return logits.masked_fill(outside[:, :, None], -math.inf)

    def _rotated(self, features: Tensor) -> Tensor:
        """Apply rotary positions, which count characters, to `features` [characters, size]."""
        steps = torch.arange(0, features.shape[-1], 2, device=self.device, dtype=torch.float64)
        places = torch.arange(len(features), device=self.device)
        angles = places[:, None] * 10_000.0 ** (-steps / features.shape[-1])
        cosine, sine, even, odd = angles.cos().float(), angles.sin().float(), features[:, 0::2], features[:, 1::2]
        return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2)
