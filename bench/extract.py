"""Measure the speed of extraction: documents and tokens per second, milliseconds per pass and on the host.

    python bench/extract.py                               the embedded model and corpus
    python bench/extract.py --run runs/demo --data FILE   a trained run: its own answers, with their F1
    python bench/extract.py --model FOLDER --data FILE    a model folder; without weights in it they are drawn at random
    python bench/extract.py --model FOLDER --data FILE --base fp8 --compile off

Without a run, every system is forced to write the gold answers, so that the work is that of real answers with any
weights (see `following.py`). spantune is measured at each number of rows in `--rows`, after its cache and CUDA graphs
are warm. The batched `generate` of transformers is measured at each size in `--batches`. It has neither a grammar nor
continuous batching, so it is only a reference; `vllm_peer.py` measures a real alternative. For a run that reads spans,
only its own rate is measured. `span_extract.py` measures reading spans without a run, and `passes.py` the kernels of a
pass that writes.

Progress is printed to stderr. The parts share `--minutes`. A part that is not finished in its share reports the rates
of what it has done and is marked `stopped`; its documents are then counted by their tokens. `--json` prints one JSON
object as the last line, with the results so far if the bench is stopped (Ctrl-C, SIGTERM).
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from following import Follower, Gold, TimeUp, drafted, generated, record

from spantune.core import Document, Extraction, Status, TaskSpec, config, keep_for_good
from spantune.data import formats
from spantune.encoding import SpanEncoder, TextEncoder, make_encoder, make_task
from spantune.extraction import load_bare, rates
from spantune.metrics import score
from spantune.models import NAME, attach, load, load_tokenizer, pack_weights, pick_device, to_fp8

BATCHES = {"cpu": [4, 8, 16, 32], "cuda": [32, 64, 128, 256]}
ROWS = {"cpu": [32], "cuda": [256, 352]}
LIMIT = {"cpu": 1024, "cuda": 2000}
DOCUMENTS = {"cpu": 64, "cuda": 1024}  # documents per pass, for a run that reads spans


def main() -> None:
    """Measure what the command line asks for."""
    chosen, began = _options(), time.monotonic()
    device = pick_device(chosen.device)
    if device.type == "cpu" and chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.run is None and chosen.answer == "spans":
        sys.exit("spans are read by a trained head: give --run, or measure random weights with span_extract.py")
    model, encoder, choices = _model(chosen, device)
    documents = [document for document in formats.read(chosen.data).documents if document.text.strip()]
    documents = [document for document in documents if len(document.text) <= chosen.longest]
    documents = documents[: chosen.limit or LIMIT[device.type]]
    _say(f"{len(documents)} documents; at most {chosen.minutes:g} minutes")
    gold: Gold | None = None
    if chosen.run is None:
        gold = {document.id: encoder.answer_ids(document) for document in documents}
    bench = Bench(model, encoder, documents, gold, choices)
    bench.end, bench.compile = began + 60 * chosen.minutes, chosen.compile
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    result = {"device": _device_name(device), "model": model.config.model_type, "dtype": str(model.dtype)[6:]}
    try:
        if isinstance(encoder, SpanEncoder):
            result |= bench.read(chosen.rows or [DOCUMENTS[device.type]])
        else:
            rows, batches = chosen.rows or ROWS[device.type], chosen.batches or BATCHES[device.type]
            bench.run(result, batches, rows, [*chosen.skip, *([] if chosen.drafts else ["drafts"])])
    except KeyboardInterrupt:
        result["stopped"] = True
        _say("stopped; what is measured so far:")
    if chosen.profile and not result.get("stopped"):
        print(bench.profile(), file=sys.stderr)
    print(json.dumps(result, indent=None if chosen.json else 2), flush=True)


class Bench:
    """The systems to compare, on one model and one corpus."""

    def __init__(
        self, model: Any, encoder: TextEncoder, documents: Sequence[Document], gold: Gold | None, choices: bool
    ):
        self.model, self.encoder, self.documents, self.gold, self.choices = model, encoder, documents, gold, choices
        self.cuda = next(model.parameters()).is_cuda
        self.rows: int | None = None
        self.compile: Literal["auto", "on", "off"] = "auto"
        self.end = time.monotonic() + 3600
        self.parts = 1  # parts that are not measured yet; they share the remaining time

    def run(self, found: dict[str, Any], batches: Sequence[int], rows: Sequence[int], skip: Sequence[str]) -> None:
        """Measure every part that `skip` does not name; each result is put into `found` as soon as it is measured."""
        bursts = {}
        self.parts = len(rows) + len({"free", "replay", "first", "generate"} - set(skip)) + 8 * ("drafts" not in skip)
        if self.gold is not None:
            kept, bursts = record(self.tool(), self.documents, self.gold)
            _say(
                f"left out: {len(self.documents) - len(kept)} of {len(self.documents)} gold answers, not the grammar's"
            )
            self.documents = kept
        found["documents"] = len(self.documents)
        ours: dict[int, dict[str, Any]] = {}
        for number in rows:
            ours[number] = self.ours(number)
            self.rows = max(ours, key=lambda number: ours[number]["documents_per_s"])
            found["ours"] = {"rows": self.rows, **ours[self.rows]}
            found["ours_by_rows"] = {number: one["documents_per_s"] for number, one in ours.items()}
        assert self.rows is not None
        if "free" not in skip and not self.choices:
            found["free"] = self.ours(self.rows, grounded=False)
        if self.gold is not None and "replay" not in skip:
            replayed = self.ours(self.rows, bursts=bursts)
            found["without_grammar"] = replayed["documents_per_s"]
            if replayed["documents"] == found["ours"]["documents"]:
                found["grammar_share"] = round(1 - found["ours"]["documents_per_s"] / found["without_grammar"], 3)
        if self.gold is not None and "drafts" not in skip:
            found["drafts"] = self.drafts(bursts)
        if "first" not in skip:
            found["seconds_to_first_entity"] = self.first_entity()
        if "generate" not in skip:
            found |= self.generate(batches)
            found["ratio_to_generate"] = round(
                found["ours"]["documents_per_s"] / found["generate"]["documents_per_s"], 2
            )

    def read(self, rows: Sequence[int]) -> dict[str, Any]:
        """Measure a run that reads spans; `rows` are the numbers of documents per pass."""
        ours = {number: self.ours(number) for number in rows}
        self.rows = max(ours, key=lambda number: ours[number]["documents_per_s"])
        by_rows = {number: figures["documents_per_s"] for number, figures in ours.items()}
        best = {"rows": self.rows, **ours[self.rows]}
        return {"documents": len(self.documents), "reads": best, "reads_by_rows": by_rows}

    def share(self) -> float:
        """Return the `time.monotonic` at which the next part must end; the remaining parts share the time equally."""
        now, parts = time.monotonic(), max(1, self.parts)
        self.parts -= 1
        return now + max(1.0, self.end - now) / parts

    def tool(self, rows: int | None = None, grounded: bool = True) -> Follower:
        """Return an extractor over this model that records its passes."""
        gc.collect()  # free the cache of the previous extractor
        settings = config.Extract(batch_size=rows, grounded=grounded, compile=self.compile)
        made = Follower(self.model, self.encoder, settings, on_choices=self.choices)
        made.gold = self.gold
        return made

    def ours(self, rows: int, grounded: bool = True, bursts: Any = None) -> dict[str, Any]:
        """Extract all documents with spantune after a warm-up; return rates, counts and memory.

        Args:
            rows: documents that are computed at a time.
            grounded: whether the grammar constrains the answers.
            bursts: forced tokens of each answer, used in place of grammars (see `following.record`).
        """
        writes = not isinstance(self.encoder, SpanEncoder)
        name = "replay" if bursts else "reads" if not writes else "grounded" if grounded else "free"
        until = self.share()
        _say(f"ours {name}, {rows} rows: at most {until - time.monotonic():.0f} s")
        tool = self.tool(rows, grounded)
        tool.bursts = bursts or None
        warm = self.documents[: rows + 8] if self.cuda else self.documents[:2]
        list(tool.stream(warm))
        keep_for_good()  # as `spantune extract` does
        if writes:
            tool.seen.passes.clear()
            tool.seen.waited = 0.0
        before = vars(tool.effort).copy()
        torch.cuda.reset_peak_memory_stats() if self.cuda else None
        extractions: list[Extraction] = []
        if writes:
            tool.seen.until = until
        seconds, stopped = _timed(lambda: _collected(tool, _until(self.documents, until), extractions))
        effort = {name: value - before[name] for name, value in vars(tool.effort).items()}
        tokens = effort["tokens"] + writes * len(extractions)  # one stop token per answer
        done: float = len(extractions)
        if stopped and self.gold is not None:  # also count the tokens of unfinished answers
            done = tokens * len(self.documents) / sum(len(self.gold[document.id]) for document in self.documents)
        found: dict[str, Any] = {
            "documents": len(extractions),
            **({"stopped": True} if stopped or len(extractions) < len(self.documents) else {}),
            "documents_per_s": round(done / seconds, 2),
            "tokens_per_s": round(tokens / seconds, 1),
            "passes": effort["passes"],
        }
        found |= (
            {
                "forced_share": round(effort["forced"] / max(1, tokens), 3),
                "steps_ratio": round((tokens - effort["forced"]) / tokens, 3),
                "grammar_seconds_share": round(effort["grammar_seconds"] / seconds, 3),
                **self._passes(tool, seconds, done),
            }
            if writes
            else {}
        )
        if self.cuda:
            found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found |= self.quality(extractions)
        _say(f"ours {name}, {rows} rows: {found}")
        return found

    def _passes(self, tool: Follower, seconds: float, documents: float) -> dict[str, Any]:
        """Return milliseconds per pass by its width, host milliseconds per document, and the idle share of a GPU."""
        by_width = tool.seen.by_width()
        computing = tool.seen.computing()
        host = seconds - (tool.seen.waited if self.cuda else computing)
        idle = {}
        if self.cuda:
            between = tool.seen.between() / seconds
            idle = {
                "gpu_idle_share": round(max(0.0, 1 - computing / seconds), 3),
                "gpu_idle_share_between_passes": round(between, 3),
            }
        return {
            "host_ms_per_document": round(1000 * host / max(0.01, documents), 2),
            "ms_by_width": {width: round(1000 * total / count, 1) for width, (count, total) in by_width.items()},
            "passes_by_width": {width: count for width, (count, _) in by_width.items()},
            **idle,
        }

    def generate(self, batches: Sequence[int]) -> dict[str, Any]:
        """Measure `generate` at each batch size on some documents, then at the fastest one on all of them."""
        gc.collect()
        torch.cuda.empty_cache() if self.cuda else None
        self.model.set_attn_implementation("sdpa")
        tries: dict[int, tuple[float, list[list[int]]]] = {}
        until = self.share()
        _say(f"generate: at most about {until - time.monotonic():.0f} s")
        for batch in batches:
            if tries and time.monotonic() + 2 * max(seconds for seconds, _ in tries.values()) > until:
                break
            some = self.documents[: max(2 * batch, 64) if self.cuda else batch]
            try:
                tries[batch] = _timed(lambda: self._generate(some, batch))  # noqa: B023
            except torch.cuda.OutOfMemoryError:
                _say(f"generate, batch {batch}: out of memory")
                break
            _say(f"generate, batch {batch}: {len(some) / tries[batch][0]:.2f} documents/s on {len(some)}")
        if not tries:
            sys.exit(f"generate ran out of memory at a batch of {batches[0]}; give smaller --batches")
        by_batch = {batch: round(len(answers) / seconds, 2) for batch, (seconds, answers) in tries.items()}
        best = max(by_batch, key=lambda batch: by_batch[batch])
        seconds, answers = tries[best]
        expected = seconds * len(self.documents) / max(1, len(answers))
        if len(answers) < len(self.documents) and time.monotonic() + expected < until:
            seconds, answers = _timed(lambda: self._generate(self.documents, best))
        self.model.set_attn_implementation(NAME)
        extractions = [self._read(document, ids) for document, ids in zip(self.documents, answers, strict=False)]
        found = {"batch": best, "documents_per_s": round(len(answers) / seconds, 2), **self.quality(extractions)}
        _say(f"generate: {found}")
        return {"generate": found, "generate_by_batch": by_batch}

    def drafts(self, bursts: dict[str, list[list[int]]]) -> dict[str, float]:
        """Return upper bounds of what prompt lookup could gain, as ratios of rates: with all rows and with one row."""
        found = {}
        texts = {d.id: self.encoder.tokenizer(d.text, add_special_tokens=False)["input_ids"] for d in self.documents}
        assert self.gold is not None and self.rows is not None
        every, few = self.documents, self.documents[:24]
        for name, rows, documents in (("all_rows", self.rows, every), ("one_row", 1, few)):
            self.documents = documents
            plain = self.ours(rows, bursts=bursts)["documents_per_s"]
            for size in (1, 2, 4):
                merged = {key: drafted(self.gold[key], bursts[key], texts[key], size) for key in bursts}
                found[f"{name}_{size}"] = round(self.ours(rows, bursts=merged)["documents_per_s"] / plain, 3)
        self.documents = every
        return found

    def first_entity(self) -> float:
        """Return the median seconds from a text's arrival to its first entity, with one text at a time."""
        tool, until = self.tool(1), self.share()
        tool.seen.watches_first = True
        found = []
        for document in [document for document in self.documents if document.entities][:9]:
            tool.seen.first, began = None, time.perf_counter()
            list(tool.stream([document.with_entities(())]))
            if tool.seen.first is not None:
                found.append(tool.seen.first - began)
            if time.monotonic() > until and len(found) > 1:
                break
        median = round(
            statistics.median(found[1:] or found or [float("nan")]), 3
        )  # the first text also builds the cache and the graphs
        _say(f"seconds to the first entity, one text at a time: {median}")
        return median

    def quality(self, extractions: Sequence[Extraction]) -> dict[str, Any]:
        """Return F1 with its interval and the rates of faulty answers; nothing if the answers are given."""
        if self.gold is not None:
            return {}
        figure = score(self.documents, [one.document for one in extractions], self.encoder.task.codes).micro
        found = {"f1": figure.f1, "f1_low": figure.f1_low, "f1_high": figure.f1_high, **rates(extractions)}
        return {name: round(value or 0.0, 4) for name, value in found.items()}

    def profile(self) -> str:
        """Return the profiler's table of operators during extraction, sorted by GPU (or CPU) time."""
        from torch.profiler import ProfilerActivity, profile

        tool = self.tool(self.rows)
        list(tool.stream(self.documents[:300]))
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.cuda else [])]
        with profile(activities=kinds) as seen:
            list(tool.stream(self.documents[:600]))
        by = "self_cuda_time_total" if self.cuda else "self_cpu_time_total"
        table: str = seen.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=70)
        return table

    def _generate(self, documents: Sequence[Document], batch: int) -> list[list[int]]:
        answers = []
        for start in range(0, len(documents), batch):
            some = documents[start : start + batch]
            answers += generated(self.model, self.encoder, some, self.gold, config.Extract().max_new_tokens)
        return answers

    def _read(self, document: Document, ids: list[int]) -> Extraction:
        answer = self.encoder.decode(ids)
        parsed = self.encoder.format.parse(answer, document.text, self.encoder.task)
        status = Status.STOPPED if len(ids) < config.Extract().max_new_tokens else Status.LENGTH
        return Extraction(document.with_entities(parsed.entities), answer, status, parsed.problems)


def _model(chosen: argparse.Namespace, device: torch.device) -> tuple[Any, TextEncoder, bool]:
    """Return the model, its encoder, and whether it was trained on choices only (`train.loss_on: choices`)."""
    if chosen.run is not None:
        tool = load_bare(chosen.run, device.type)
        return tool.model.requires_grad_(False), tool.encoder, tool.on_choices
    task = _task(chosen)
    folder = Path(chosen.model)
    if folder.is_dir() and not list(folder.glob("*.safetensors")):
        model, tokenizer = _random(folder, device, chosen.base), load_tokenizer(folder)
    else:
        loaded = load(config.Model(source=chosen.model, device=device.type))
        model, tokenizer = loaded.model, loaded.tokenizer
        pack_weights(model)  # as `load_run` does; `generate` is faster with packed weights too
    return (
        model.eval().requires_grad_(False),
        make_encoder(tokenizer, task, config.Spans(), chosen.max_tokens),
        chosen.choices,
    )


def _task(chosen: argparse.Namespace) -> TaskSpec:
    return make_task(config.Task(preset="cmeee", answer=chosen.answer))


def _random(folder: Path, device: torch.device, base: str) -> Any:
    """Return a model with random weights, made on `device` from the config in `folder`.

    `fp8` and `nf4` quantize the base and put an adapter beside it; `fp8-merged` has no adapter.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    torch.set_default_dtype(torch.bfloat16)
    with device, no_init_weights():
        shape = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(shape, attn_implementation=NAME, trust_remote_code=False)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    if base == "bf16":
        return model
    if base == "nf4":
        return attach(_four_bits(model), config.Lora(rank=64, alpha=128))[0]
    model = to_fp8(model, device, model.lm_head)
    return model if base == "fp8-merged" else attach(model, config.Lora(rank=64, alpha=128))[0]


def _four_bits(model: Any) -> Any:
    """Convert the linear layers of the model to NF4 in place, as `model.base: nf4` loads them; return the model."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and child is not model.lm_head:
                sizes, weight = (child.in_features, child.out_features), child.weight.detach()
                layer = Linear4bit(*sizes, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
                layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
                setattr(parent, name, layer.to(weight.device))
    return model


def _collected(tool: Follower, documents: Iterator[Document], extractions: list[Extraction]) -> bool:
    """Append to `extractions`; return whether the time was over before all documents were done."""
    try:
        extractions.extend(tool.stream(documents))
    except TimeUp:
        return True
    return False


def _until(documents: Sequence[Document], end: float) -> Iterator[Document]:
    """Yield documents until `end` (`time.monotonic`), at least two."""
    for number, document in enumerate(documents):
        if number > 1 and time.monotonic() > end:
            return
        yield document


def _timed(job: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = job()
    torch.cuda.synchronize() if torch.cuda.is_available() else None
    return time.perf_counter() - began, result


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained run; without it the gold answers are written")
    parser.add_argument("--model", default="bundled:gemma3-270m")
    parser.add_argument("--data", default="bundled:clinical-zh-test")
    parser.add_argument("--answer", default="jsonl", help="answer format, without a run")
    parser.add_argument("--choices", action="store_true", help="score among what is allowed, as a run on choices does")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--limit", type=int, help="documents; 2,000 on a GPU if not given")
    parser.add_argument("--minutes", type=float, default=5, help="of all parts together")
    parser.add_argument("--longest", type=int, default=400, help="characters of a document, at the most")
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes of generate")
    parser.add_argument("--rows", type=int, nargs="+", help="rows of ours")
    parser.add_argument("--skip", nargs="*", default=[], choices=["free", "replay", "first", "generate"])
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="the layers, on a GPU")
    parser.add_argument(
        "--base",
        choices=["bf16", "fp8", "fp8-merged", "nf4"],
        default="bf16",
        help="of random weights; fp8 and nf4 with an adapter beside it, fp8-merged as with extract.merge=always",
    )
    parser.add_argument("--drafts", action="store_true", help="also bound what prompt lookup could bring")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
