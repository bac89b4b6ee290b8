"""How other engines load an export: the exact commands, and an example request with the grammar of one text.

vLLM takes the grammar in the Lark notation, through guidance; llama.cpp's server takes GBNF. The prompt of the example
consists of token ids, so that a server cannot add tokens to it.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from spantune.core import to_json
from spantune.encoding import Encoder
from spantune.export.source import Form, Source
from spantune.extraction import GRAMMARS, Question, Served
from spantune.models import public_name

EXAMPLE = "example.json"
SENTENCES = {"zh": "患者因急性阑尾炎行腹腔镜手术。", "en": "The patient with acute appendicitis had surgery."}
"""The texts of the examples, by language."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for --max-lora-rank."""
VLLM, LLAMACPP = "http://127.0.0.1:8000/v1", "http://127.0.0.1:8080/v1"


@dataclass(frozen=True)
class Command:
    """A shell command and its purpose."""

    purpose: str
    line: str


def sentence_of(source: Source) -> str:
    """Return an example sentence in the language of the run's task."""
    return SENTENCES.get(source.task.language, SENTENCES["en"])


def write_example(source: Source, form: Form, folder: Path, name: str) -> None:
    """Write `example.json`, a request for one text, and the text's grammar if the server takes one.

    A GGUF model also gets a `Modelfile` for Ollama. Nothing is written for a run that reads spans, since no completions
    server can serve it.

    Args:
        source: the run.
        form: the form of the export; the request is for llama.cpp if it is `gguf`, otherwise for vLLM.
        folder: the folder of the export.
        name: the server's name for the model.

    Raises:
        OSError: the files cannot be written.
    """
    encoder = source.encoder
    if not isinstance(encoder, Encoder):
        return
    text, kind = sentence_of(source), "llamacpp" if form == "gguf" else "vllm"
    has_grammar = source.task.answer in GRAMMARS[kind]
    lark = encoder.format.grammar(text, source.task, None) if has_grammar else None
    question = Question(text, encoder, source.recipe.extract.max_new_tokens, lark, source.recipe.train.on_choices)
    request = question.request(Served(name, kind))
    if has_grammar:
        grammar = request["grammar"] if kind == "llamacpp" else lark
        (folder / ("example.gbnf" if kind == "llamacpp" else "example.lark")).write_text(str(grammar), encoding="utf-8")
    (folder / EXAMPLE).write_text(to_json(request) + "\n", encoding="utf-8")
    if form == "gguf" and not source.settings.as_adapter:
        for file in sorted(folder.glob("*.gguf")):
            (folder / "Modelfile").write_text(modelfile(source, encoder, file.name), encoding="utf-8")


def modelfile(source: Source, encoder: Encoder, file: str) -> str:
    """Return the Modelfile with which Ollama sends the run's prompt to the model in `file`, without a grammar."""
    tokenizer = source.files.tokenizer
    before, _, after = encoder.render_prompt("\0").partition("\0")
    first = tokenizer("a")["input_ids"][0]
    if first == tokenizer.bos_token_id:  # Ollama adds the BOS token itself
        before = before.removeprefix(tokenizer.decode([first]))
    stop = to_json(tokenizer.decode([encoder.stop_id]))
    template = f"{_literal(before)}{{{{ .Prompt }}}}{_literal(after)}"
    return f'FROM ./{file}\nTEMPLATE """{template}"""\nPARAMETER temperature 0\nPARAMETER stop {stop}\n'


def _literal(text: str) -> str:
    """Return `text` as a literal in a Go template that stands in three quotation marks."""
    return text.replace("{{", '{{ "{{" }}').replace('"""', '""{{ "\\"" }}')


def commands_for(source: Source, form: Form, folder: Path) -> tuple[Command, ...]:
    """Return the commands that load an export and send it a text.

    They are for vLLM, llama.cpp or Ollama; a run that reads spans gets the command of its loader.
    """
    if source.task.reads:
        return (_read(source, form, folder),)
    tokens = _tokens(source)
    if form == "gguf":
        return tuple(_of_gguf(source, folder, tokens))
    grammar = f"--max-model-len {tokens} --structured-outputs-config.backend guidance"
    name, base = shlex.quote(folder.name), _base(source)
    serve = f"vllm serve {shlex.quote(str(folder))} --served-model-name {name} {grammar}"
    if form == "adapter":
        rank = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"]
        most = next((size for size in VLLM_RANKS if size >= rank), rank)
        module = shlex.quote(f"{folder.name}={folder}")
        serve = f"vllm serve {base} --enable-lora --max-lora-rank {most} --lora-modules {module} {grammar}"
    return (Command("serve it with vLLM", serve), *_ask(source, folder, VLLM))


def _of_gguf(source: Source, folder: Path, tokens: int) -> list[Command]:
    files = [shlex.quote(str(path)) for path in sorted(folder.glob("*.gguf"))]
    file = files[0] if files else shlex.quote(str(folder / "model.gguf"))
    options = f"-c {tokens} --port 8080 --alias {shlex.quote(folder.name)}"
    if source.settings.as_adapter:
        serve = f"llama-server -m BASE.gguf --lora {file} {options}"
        return [Command("serve it with llama.cpp, over the GGUF of its base", serve), *_ask(source, folder, LLAMACPP)]
    name = shlex.quote(folder.name.lower())
    model = shlex.quote(str(folder / "Modelfile"))
    ollama = f"ollama create {name} -f {model} && ollama run {name} {shlex.quote(sentence_of(source))}"
    return [
        Command("serve it with llama.cpp", f"llama-server -m {file} {options}"),
        *_ask(source, folder, LLAMACPP),
        Command("run it in Ollama, without a grammar", ollama),
    ]


def _ask(source: Source, folder: Path, url: str) -> list[Command]:
    request = shlex.quote(f"@{folder / EXAMPLE}")
    run, name = shlex.quote(str(source.folder.path)), shlex.quote(folder.name)
    return [
        Command(
            "ask it for one text, with the grammar of that text",
            f"curl {url}/completions -H 'Content-Type: application/json' -d {request}",
        ),
        Command(
            "extract entities with it",
            f"spantune extract {run} FILE --engine openai --url {url} --model {name}",
        ),
    ]


def _read(source: Source, form: Form, folder: Path) -> Command:
    base = f", base={to_json(str(source.files.folder))}" if form == "adapter" else ""
    place, text = to_json(str(folder)), to_json(sentence_of(source))
    code = f"from span_reader import SpanReader; print(SpanReader({place}{base})({text}))"
    line = f"PYTHONPATH={shlex.quote(str(folder))} python -c {shlex.quote(code)}"
    return Command("read a text with transformers and torch alone", line)


def _base(source: Source) -> str:
    """Return the base model for a command: its name on a hub if there is one, otherwise its local folder."""
    name = source.settings.base_name or public_name(source.recipe.model.source)
    return shlex.quote(name if name and ":" not in name else str(source.files.folder))


def _tokens(source: Source) -> int:
    """Return the most tokens of a prompt with its answer."""
    window = int(source.files.config.get_text_config().max_position_embeddings)
    prompt = source.recipe.train.max_tokens or window
    return min(window, prompt + source.recipe.extract.max_new_tokens)
