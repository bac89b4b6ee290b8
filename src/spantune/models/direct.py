"""A faster way to read tokenizers and models that spantune itself has written.

transformers parses a tokenizer's file three times, and makes a model on the meta device first, for which torch imports
its compiler. With the embedded model this is half of the time of loading. Here tokenizer and model are read once. Files
that are not exactly as spantune writes them are left to transformers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from spantune.encoding import Tokenizer
from spantune.models.bundled import RECORD
from spantune.models.interfaces import CausalLM, ModelConfig

TOKENIZER, TOKENIZER_CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
WEIGHTS = "model.safetensors"
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
SETTINGS = {
    "backend",
    "clean_up_tokenization_spaces",
    "is_local",
    "local_files_only",
    "model_max_length",
    "padding_side",
    "tokenizer_class",
    *SPECIAL,
}
"""The keys that a `tokenizer_config.json` written by spantune may have."""
INITIALISING = ("torch.nn.init", "transformers.initialization")
RANDOM = {"normal_", "uniform_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "trunc_normal_"}
"""The functions of the modules INITIALISING that fill a weight with random numbers."""
HEAD = 1 << 22
"""The added tokens are looked for in this many characters at the beginning of tokenizer.json."""


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Read the tokenizer of a folder that spantune has written; None if transformers has to read it.

    Raises:
        Exception: a file is damaged; the error is that of the library that reads it.
    """
    if not (folder / TOKENIZER_CONFIG).is_file() or not (folder / TOKENIZER).is_file():
        return None
    settings = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    others = ("added_tokens.json", "special_tokens_map.json", "additional_chat_templates")
    if (
        not isinstance(settings, dict)
        or settings.get("tokenizer_class") != "TokenizersBackend"
        or not settings.keys() <= SETTINGS
        or not all(isinstance(settings.get(name, ""), str) for name in SPECIAL)
        or any((folder / name).exists() for name in others)
    ):
        return None
    added = _added_tokens(folder / TOKENIZER)
    return None if added is None else _tokenizer(folder, settings, added)


def _added_tokens(path: Path) -> list[dict[str, Any]] | None:
    """Return the added tokens in tokenizer.json; None if they are not at its beginning, where `tokenizers` has them."""
    with path.open(encoding="utf-8") as file:
        head = file.read(HEAD)
    before, key, after = head.partition('"added_tokens":')
    if not key or '"model"' in before:
        return None
    try:
        added, _ = json.JSONDecoder().raw_decode(after.lstrip())
    except ValueError:  # the added tokens do not end within HEAD characters
        return None
    return added if isinstance(added, list) else None


def _tokenizer(folder: Path, settings: dict[str, Any], added: list[dict[str, Any]]) -> Tokenizer:
    """Make the same tokenizer as `TokenizersBackend.from_pretrained`."""
    from transformers import AddedToken, TokenizersBackend

    tokens = {row["id"]: AddedToken(**{key: row[key] for key in row.keys() - {"id"}}) for row in added}
    by_name = {str(token): token for token in tokens.values()}
    options = {key: value for key, value in settings.items() if key != "tokenizer_class"}
    options |= {name: by_name.get(settings[name], settings[name]) for name in SPECIAL if name in settings}
    if (folder / TEMPLATE).is_file():
        options["chat_template"] = (folder / TEMPLATE).read_text(encoding="utf-8")
    places = {"name_or_path": str(folder), "is_local": True, "local_files_only": False}
    tokenizer: Tokenizer = TokenizersBackend(
        **options | places, tokenizer_file=str(folder / TOKENIZER), added_tokens_decoder=tokens
    )
    return tokenizer


def read_model(folder: Path, model_config: ModelConfig, dtype: torch.dtype) -> CausalLM | None:
    """Read a model that spantune has converted, with weights in `dtype`; None if transformers has to read it.

    Raises:
        Exception: the file is damaged; the error is that of the library that reads it.
    """
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    if not (folder / RECORD).is_file() or not (folder / WEIGHTS).is_file():
        return None
    with _Uninitialised():  # made with sdpa at first, for the reason given in `loading`
        model: CausalLM = AutoModelForCausalLM.from_config(
            copy.deepcopy(model_config), dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
        )
    own = dict(model.named_parameters())  # without weights that are tied to others
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        stored = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        if stored != {name: list(weight.shape) for name, weight in own.items()}:
            return None
        for name, weight in own.items():
            weight.data = file.get_tensor(name).to(dtype, copy=True)
    return model


class _Uninitialised(TorchFunctionMode):
    """Leaves new weights without random numbers, since their values are read afterwards."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if getattr(func, "__name__", "") in RANDOM and getattr(func, "__module__", None) in INITIALISING:
            weight = options.get("tensor", args[0] if args else None)
            if isinstance(weight, Tensor):
                return weight
        return func(*args, **options)
