"""Model folders that ask to run their own code, as `auto_map` allows a transformers model folder to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from helpers.fakes import MERGES, save_model

OwnPart = Literal["config", "tokenizer", "model", "native"]


def save_own_code(folder: Path, marker: Path, part: OwnPart = "config") -> Path:
    """Save a tiny model whose `auto_map` names code in its folder; this code writes the file `marker` when it runs.

    `part` is the part for which transformers has no class: `config`; `tokenizer`, which also has an unknown
    configuration type; `model`, whose configuration type has no causal LM; or `native`, none of them, as in Phi-3's
    upload, whose code nobody needs.
    """
    save_model(folder, "phi3", MERGES)
    code = f"from pathlib import Path\nPath({str(marker)!r}).write_text('the code was run')\n"
    (folder / "own_code.py").write_text(
        code + "from transformers import Phi3Config as OwnConfig, Phi3ForCausalLM as OwnModel\n"
        "from transformers import PreTrainedTokenizerFast as OwnTokenizer\n",
        encoding="utf-8",
    )
    kinds = {"config": "own_type", "tokenizer": "own_type", "model": "vit", "native": "phi3"}
    classes = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"}
    change(folder / "config.json", auto_map=classes, model_type=kinds[part])
    if part == "tokenizer":
        change(folder / "config.json", auto_map={})
        change(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer")
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own_code.OwnTokenizer"]})
    return folder


def change(path: Path, **values: object) -> None:
    """Change values of the JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
