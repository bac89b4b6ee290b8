"""The model card of an export: what the model finds, how well, what it was made from, and its use without spantune.

One template serves all forms: merged weights, a plain adapter, GGUF, and weights with a span head and its loader. The
card names nothing of the machine on which the run was trained.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from spantune.core import RunError, to_json
from spantune.encoding import Encoder
from spantune.export.commands import sentence_of
from spantune.export.source import Form, Source
from spantune.models import public_name
from spantune.runs import dev_figures, label_lines

_TEXT = """\
# {title}

{what} It finds entities of {count} types in texts of the language `{language}`.

{labels}

## How well it does

{figures}

## How to use it

{use}
## From what it was made

{made}
"""

_WRITES = """\
The model writes its answer in the format `{answer}` after exactly this prompt:

```python
{load}
before = {before}
after = {after}
text = {text}
ids = tokenizer(before + text + after, add_special_tokens=False, return_tensors="pt")
answer = model.generate(**ids)[0, ids["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```

It was measured with answers under the grammar of each text, which makes every entity a part of the text: `example.json`
is such a request for a server.
"""

_LOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")\
"""

_LOAD_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
base = AutoModelForCausalLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, ".")\
"""

_SERVED = """\
It is a GGUF file for llama.cpp and what is built on it. Start its server over the file, and send it `example.json`:

```bash
llama-server -m {file} --port 8080
curl http://127.0.0.1:8080/v1/completions -H 'Content-Type: application/json' -d @example.json
```

The prompt is token ids. The answer is of the format `{answer}`; the grammar in the request, made for its text, lets the
model write nothing else. spantune makes prompt and grammar for every text, and the offsets of what comes back.
"""

_READS = """\
The model writes nothing: a head scores every span of the text in one pass. `span_reader.py` reads with transformers and
torch alone:

```python
from span_reader import SpanReader

reader = SpanReader("."{base})
for entity in reader({text}):
    print(entity["start"], entity["end"], entity["label"], entity["text"], round(entity["score"], 3))
```

Offsets are in characters (code points), the end excluded. It reads up to {tokens} tokens at once, and refuses a longer
text: cut it at the end of a sentence.
"""


def write_card(source: Source, form: Form, out: Path, base: str = "") -> None:
    """Write `README.md`, the model card, into the folder of an export.

    Args:
        source: the run.
        form: the form of the export.
        out: the folder of the export.
        base: the name of the base model; if empty, that of the settings or of the run's recipe.

    Raises:
        OSError: the file cannot be written.
    """
    base = base or source.settings.base_name or public_name(source.recipe.model.source)
    adapter, reads = form == "adapter" or source.settings.as_adapter, source.task.reads
    about: dict[str, object] = {
        "library_name": "gguf" if form == "gguf" else "peft" if adapter else "transformers",
        "pipeline_tag": "token-classification" if reads else "text-generation",
        "language": source.task.language,
        "tags": ["named-entity-recognition", "spantune", *(["lora"] if adapter else [])],
    }
    if source.settings.license:
        about["license"] = source.settings.license
    if base and ":" not in base:
        about |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    named = f"`{base}`" if base else "a model in a local folder"
    text = _TEXT.format(
        title=source.folder.path.resolve().name,
        what=f"A LoRA adapter for {named}, trained by spantune." if adapter else f"{named}, fine-tuned by spantune.",
        count=len(source.task.labels),
        language=source.task.language,
        labels=label_lines(source.task),
        figures=_figures(source),
        use=_served(source, out) if form == "gguf" else _use(source, adapter, base),
        made=_made(source, base),
    )
    front_matter = yaml.safe_dump(about, allow_unicode=True, sort_keys=False)
    (out / "README.md").write_text(f"---\n{front_matter}---\n\n{text}", encoding="utf-8")


def _use(source: Source, adapter: bool, base: str) -> str:
    encoder, text = source.encoder, _quoted(sentence_of(source))
    name = _quoted(base if base and ":" not in base else "the folder of the base model")
    if not isinstance(encoder, Encoder):
        return _READS.format(base=f", base={name}" if adapter else "", text=text, tokens=source.most_tokens)
    before, _, after = encoder.render_prompt("\0").partition("\0")
    return _WRITES.format(
        answer=source.task.answer,
        load=_LOAD_ADAPTER.format(base=name) if adapter else _LOAD,
        before=_quoted(before),
        after=_quoted(after),
        text=text,
    )


def _served(source: Source, out: Path) -> str:
    file = next((path.name for path in out.glob("*.gguf")), "")
    options = f"BASE.gguf --lora {file}" if source.settings.as_adapter else file
    return _SERVED.format(file=options, answer=source.task.answer)


def _quoted(text: str) -> str:
    """Return `text` as a Python string literal on one line."""
    return to_json(text)


def _figures(source: Source) -> str:
    """Return sentences with the figures on dev, and on the test documents if there are any."""
    sentences = [dev_figures(source.evaluation)]
    try:
        scores = json.loads((source.folder.path / "scores.json").read_text(encoding="utf-8"))
        micro = scores["strict"]["micro"]
        if scores["f1_on"] == "test":
            sentences.append(
                f"On {scores['documents']} test documents: strict micro F1 {micro['f1']:.4f} (95 % interval "
                f"{micro['f1_low']:.4f} to {micro['f1_high']:.4f}), precision {micro['precision']:.4f}, recall "
                f"{micro['recall']:.4f}."
            )
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return "\n".join(sentences)


def _made(source: Source, base: str) -> str:
    """Return lines about the base model with its hash and terms, the hashes of the data, and the training."""
    try:
        environment = source.folder.environment()
    except RunError:
        environment = {}
    hashes = {
        "base model": environment.get("model_sha256"),
        "task": environment.get("task_sha256"),
        "training documents": environment.get("train_sha256"),
        "dev documents": environment.get("dev_sha256"),
        "test documents": environment.get("test_sha256"),
    }
    terms = [f"`{path.name}`" for path in source.terms]
    licence = source.settings.license
    lines = [
        f"- Base model: {f'`{base}`' if base else 'a model in a local folder'}",
        f"- Terms of the base model, which hold for this copy too: {', '.join(terms) or 'see its own page'}",
        f"- Licence of this export: {licence or 'not stated'}",
        *(f"- SHA-256 of the {name}: `{value}`" for name, value in hashes.items() if value),
        f"- Trained: {_trained(source)}",
    ]
    versions = [f"{name} {environment[name]}" for name in ("spantune", "transformers", "torch") if name in environment]
    return "\n".join([*lines, *([f"- Made with {', '.join(versions)}"] if versions else [])])


def _trained(source: Source) -> str:
    lora = source.recipe.lora
    if lora.full:
        return "full fine-tuning"
    kind = "DoRA" if lora.dora else "rsLoRA" if lora.rslora else "LoRA"
    return f"{kind}, rank {lora.rank}, alpha {lora.alpha:g}" if lora.rank and lora.alpha else kind
