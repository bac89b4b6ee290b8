"""The model card (`README.md`) of an adapter: its base model, its labels, its F1, and how to load it.

It replaces the card of PEFT, which is a form to be filled in. It names nothing of the machine of the training.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from spantune.core import Label, TaskSpec

CARD = "README.md"
FULL = "full.json"
"""The file that marks the folder of a full fine-tuning; an adapter folder does not have it."""

_TEXT = """\
# A named-entity extractor ({kind})

spantune trained {what} {base}. It finds entities of {count} types in texts of the language `{language}`{answer}:

{labels}

{figures}

## How to load it

With spantune, from the run folder that this folder is the `adapter/` of:

    spantune extract RUN FILE

With {library} alone, which {lacks}:

"""

_WRITES = ", and\nanswers in the format `{answer}`; `task.json` holds the instruction and the types"

_READS = """.
It writes nothing: a head (`head.safetensors`, with its sizes in `head.json`) scores every span of the text in one pass.
`task.json` holds the types"""

_NO_HEAD = "does not know the head, so that it finds no entities"
_NO_PROMPT = "knows neither the instruction nor the answer format"

_WITH_PEFT = """\
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained({name!r})
    model = PeftModel.from_pretrained(base, "adapter")
"""

_WITH_TRANSFORMERS = """\
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained({name!r})
    model.load_state_dict(load_file("adapter/full.safetensors"), strict=False)  # the embeddings are the base model's
"""


def write_card(adapter: Path, task: TaskSpec, base: str) -> None:
    """Write `README.md` into an adapter folder, with the F1 of its `evaluation.json` if it has this file.

    Args:
        adapter: the adapter folder.
        task: the task that the adapter was trained for.
        base: the public name of the base model; "" if it has none.

    Raises:
        OSError: the file cannot be written.
    """
    full, reads = (adapter / FULL).is_file(), task.reads
    about: dict[str, object] = {
        "library_name": "transformers" if full else "peft",
        "pipeline_tag": "token-classification" if reads else "text-generation",
        "language": task.language,
        "tags": ["full-fine-tuning" if full else "lora", "named-entity-recognition", "spantune"],
    }
    if base and ":" not in base:
        about["base_model"] = base
    name = base if base and ":" not in base else "the folder of the base model"
    text = _TEXT.format(
        kind="full fine-tuning" if full else "LoRA adapter",
        what="the weights of the layers" if full else "this adapter",
        library="transformers" if full else "PEFT",
        base=f"on `{base}`" if base else "on a model in a local folder",
        count=len(task.labels),
        language=task.language,
        answer=_READS if reads else _WRITES.format(answer=task.answer),
        lacks=_NO_HEAD if reads else _NO_PROMPT,
        labels=label_lines(task),
        figures=dev_figures(adapter / "evaluation.json"),
    )
    text += (_WITH_TRANSFORMERS if full else _WITH_PEFT).format(name=name)
    front_matter = yaml.safe_dump(about, allow_unicode=True, sort_keys=False)
    (adapter / CARD).write_text(f"---\n{front_matter}---\n\n{text}", encoding="utf-8")


def label_lines(task: TaskSpec) -> str:
    """Return a Markdown list of the labels of a task, with their names."""
    return "\n".join(map(_line, task.labels))


def _line(label: Label) -> str:
    name = " ".join(label.name.split())
    return f"- `{label.code}`" + (f": {name}" if name and name != label.code else "")


def dev_figures(evaluation: Path) -> str:
    """Describe in one sentence the dev F1 that the file `evaluation` holds, or say that none was recorded."""
    try:
        values = json.loads(evaluation.read_text(encoding="utf-8"))
        interval = f" (95 % interval {values['f1_low']:.4f} to {values['f1_high']:.4f})" if "f1_low" in values else ""
        return (
            f"After step {values['step']} its strict micro F1 on the dev documents was {values['f1']:.4f}{interval}, "
            "measured by real extraction."
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "How well it does was not recorded."
