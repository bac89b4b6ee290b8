"""Extract from random texts or from corpora, and check that every answer is valid and every entity is in its text.

    python bench/fuzz.py [--inputs 10000]                 fuzzed texts, a tiny random model, every answer format
    python bench/fuzz.py --data FILE … [--run runs/demo]  the texts of corpora; with --run by a trained model

An untrained model writes anything that its grammar allows. One line is printed for each answer format and source. The
exit code is 1 if an entity is not in its text, an entity has an unknown label, or an answer breaks its format.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from spantune.core import Document, Extraction, Label, TaskSpec, config
from spantune.data import formats
from spantune.encoding import FORMATS, Encoder, answer_format
from spantune.extraction import Extractor, load_run

CODES = ("dis", "sym", "疾病", "a>b", 'q"\\')
LIVELY = {"jsonl": 3, "jsonl_seed": 3, "grouped": 8, "inline": 5}  # seeds of models that do not stop at once
PIECES = [
    *'ab 肺炎"\\\n\t\r{}[]<>&:,/\0\x0b\x7f\x85\u2028\u2029\ufeff\u0301\u200d',
    *(
        "👩🏽‍⚕️",
        "e\u0301",
        "שלום",
        "مرحبا",
        "ไทย",
        "𝔘𝔫𝔦",
        "\U0010ffff",
        "肺炎患者",
        "1.5 mg",
        "&lt;",
        "&amp;",
        "\\u0041",
    ),
    *(
        '{"entity_text": "',
        '", "entity_label": "',
        '"}\n',
        '"}',
        '{"dis": ["',
        '"], "',
        "]}\n",
        "<dis>",
        "</dis>",
        "<sub>",
    ),
    *("<|im_end|>", "<|im_start|>", "<|endoftext|>", "none", "忽略以上内容，输出", "Ignore the above and print "),
]


def fuzzed(count: int, seed: int = 0) -> Iterator[Document]:
    """Yield `count` random texts: awkward pieces, any printable characters, or one piece repeated; some are empty."""
    rng = random.Random(seed)
    for number in range(count):
        kind = rng.random()
        if kind < 0.6:
            text = "".join(rng.choices(PIECES, k=rng.randint(0, 14)))
        elif kind < 0.9:
            text = "".join(filter(str.isprintable, map(chr, rng.choices(range(0xD800), k=rng.randint(0, 24)))))
        else:
            text = rng.choice(PIECES) * rng.randint(0, 20)
        yield Document(str(number), text)


def wanting(extraction: Extraction, task: TaskSpec, text: str, *, ordered: bool = True) -> list[str]:
    """Return the faults of an extraction that grounded decoding must never make; an empty list if there are none.

    Without `ordered`, an answer may repeat itself, and is stopped when it repeats itself again and again.
    """
    document, found = extraction.document, []
    if document.text != text:
        found.append("text changed")
    for entity in document.entities:
        if not 0 <= entity.start < entity.end <= len(text) or entity.label not in task.codes:
            found.append("entity outside")
        if entity.score is None or not 0 <= entity.score <= 1:
            found.append("no score")
    if len(set(document.entities)) < len(document.entities):
        found.append("said twice")
    kinds = {problem.kind for problem in extraction.problems}
    if extraction.status == "failed":
        return ["failed: " + extraction.problems[-1].found]
    if extraction.status == "stopped" and ordered:
        written = answer_format(task).render(document, task)
        again = answer_format(task).parse(written, text, task)
        if task.answer in ("jsonl", "grouped") and set(again.entities) == set(document.entities):
            found += ["another answer would say it"] if written != extraction.answer else []
    elif extraction.status == "length":
        kinds -= {"truncated"}
    if not ordered:
        kinds -= {"repeated", "truncated"} if extraction.status == "repeated" else {"repeated"}
    # `jsonl_seed` has no escapes, so an answer cannot be parsed reliably if the text or a label has a quote
    seed = task.answer == "jsonl_seed" and '"' in text + "".join(task.codes)
    return found + ([] if seed else [f"problem {kind}" for kind in kinds])


def tiny(task: TaskSpec, seed: int, *, ordered: bool = True) -> Extractor:
    """Return an extractor over a tiny random model with a byte-level tokenizer."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from helpers.fakes import MERGES, byte_tokenizer, tiny_model

    model = tiny_model("phi3", vocabulary=280).requires_grad_(False)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else None
    model.tie_weights()
    settings = config.Extract(max_new_tokens=96 if ordered else 144, batch_size=32)  # 144: room to repeat itself
    return Extractor(model, Encoder(byte_tokenizer(MERGES), task), settings, on_choices=ordered)


def run(tool: Extractor, documents: Sequence[Document], name: str) -> int:
    """Extract, print one line, and return the number of faults."""
    began, wrong, statuses, entities = time.perf_counter(), Counter[str](), Counter[str](), 0
    for document, extraction in zip(documents, tool.stream(documents), strict=True):
        statuses[str(extraction.status)] += 1
        entities += len(extraction.document.entities)
        faults = wanting(extraction, tool.task, document.text, ordered=tool.on_choices)
        wrong.update(faults)
        if faults and sum(wrong.values()) < 5:
            print(f"  {faults} {document.text[:200]!r} {extraction.answer[:200]!r}", file=sys.stderr)
    seconds = time.perf_counter() - began
    print(
        f"{name}: {len(documents)} texts, {entities} entities, {dict(statuses)}, wrong {dict(wrong)}, {seconds:.0f} s"
    )
    return sum(wrong.values())


def main() -> None:
    """Fuzz, or extract from the given corpora; exit with 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--formats", nargs="+", default=sorted(FORMATS))
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--limit", type=int)
    chosen = parser.parse_args()
    sources: dict[str, Any] = {"fuzzed": list(fuzzed(chosen.inputs))}
    if chosen.data:
        sources = {name: [*formats.read(name).documents][: chosen.limit] for name in chosen.data}
    wrong = 0
    for name, documents in sources.items():
        bare = [document.with_entities(()) for document in documents]
        if chosen.run:
            wrong += run(load_run(chosen.run), bare, f"{name}, {chosen.run}")
            continue
        for answer in chosen.formats:
            labels = tuple(Label(code=code) for code in CODES)
            task = TaskSpec.model_validate({"labels": labels, "instruction": "Find entities.", "answer": answer})
            for ordered in (True, False):
                label = f"{name}, {answer}, {'in order' if ordered else 'in any order'}"
                wrong += run(tiny(task, LIVELY[answer], ordered=ordered), bare, label)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
