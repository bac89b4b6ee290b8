"""A finished run folder with a real adapter, made without training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from spantune.core import Label, TaskSpec, config, parse_config
from spantune.models import attach, attach_head, copy_trained, load, make_head, public_name, save_trained
from spantune.runs import BestAdapter, write_card

TASK = TaskSpec(labels=(Label(code="dis", name="disease"), Label(code="sym")), instruction="Find entities.")
READING = TASK.model_copy(update={"answer": "spans"})


def save_run(
    folder: Path,
    model: Path,
    task: TaskSpec = TASK,
    spans: Mapping[str, object] | None = None,
    *,
    base: config.Base = "fp32",
    seed: int = 1,
) -> Path:
    """Save a finished run over the model in the folder `model`, with a random adapter.

    If the task reads spans, the run also has a random head, which finds a few entities in nearly every text. `spans`
    changes the recipe's section of that name.
    """
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {"source": str(model), "base": base, "device": "cpu"}
    recipe = parse_config(
        {
            "run": {"name": folder.name, "folder": str(folder.parent)},
            "model": settings,
            "task": {"labels": list(task.codes), "instruction": task.instruction, "answer": task.answer},
            "data": {"train": "unread.jsonl"},
            "spans": {"longest": 6, "size": 16, **(spans or {})},
            "extract": {"max_new_tokens": 40},
        }
    )
    recipe.save(folder)
    task.save(folder)
    (folder / "environment.json").write_text("{}\n", encoding="utf-8")
    loaded = load(config.Model(**settings))
    adapted, _ = attach(loaded.model, config.Lora(rank=4, alpha=8))
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if task.answer == "spans":
        head = make_head(adapted, loaded.tokenizer, task, recipe.spans)
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.25)
        torch.nn.init.constant_(head.bias, -0.3)
        attach_head(adapted, head)

    def complete(adapter: Path) -> None:
        loaded.tokenizer.save_pretrained(str(adapter))
        task.save(adapter)
        write_card(adapter, task, public_name(str(model)))

    BestAdapter(folder, adapted, complete, save_trained, copy_trained).offer(
        4, {"f1": 0.5, "f1_low": 0.25, "f1_high": 0.75}
    )
    (folder / "report.html").write_text("<html></html>", encoding="utf-8")
    return folder


def copy_run(run: Path, folder: Path) -> Path:
    """Return a copy of a run folder, which the test may damage."""
    return Path(shutil.copytree(run, folder))
