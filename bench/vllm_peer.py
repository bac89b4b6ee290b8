"""Measure the speed of vLLM (`LLM.generate`) at the work of `extract.py`: same documents, prompts, grammars, answers.

    python bench/vllm_peer.py prepare MODEL JOBS --data FILE      where spantune is installed; takes seconds
    python bench/vllm_peer.py measure MODEL JOBS --rows 512 256   where vllm 0.26 is (it wants other versions)

`prepare` writes one line per document: the token ids of its prompt and of its gold answer, and its grammar.

`measure` makes vLLM write the gold answers, as `extract.py` does. A plugin that vLLM loads (`register`) raises the
logit of the gold token on the GPU, after the mask of vLLM's own grammar, so that a token that the grammar forbids stays
forbidden. Each answer is compared with the gold answer. The times do not include the start, compilation, graphs and a
warm-up on other documents. The prefix cache starts with the instruction in it, as ours does. The prompts are given as
ids, and the answers are not parsed.

One engine, made for the largest `--rows`, serves all settings; for fewer rows the plugin lowers the limit of its
scheduler. A folder without weights (`random_phi4.py FOLDER --tokenizer-only`) gets vLLM's dummy weights. Progress is
printed to stderr, and one JSON object per setting as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RAISED = 1e4
LONGEST = 2048  # most tokens of an answer
SPARE = 64  # documents for the warm-up; they follow those that are measured
STEPS = "PEER_STEPS"

Job = dict[str, Any]


def main() -> None:
    """Prepare the jobs, or measure."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("prepare", "measure"):
        options = commands.add_parser(command)
        options.add_argument("model", type=Path, help="folder with config and tokenizer")
        options.add_argument("jobs", type=Path, help="the file of jobs, JSON lines")
        options.add_argument("--limit", type=int, default=2000, help="documents that are measured")
        if command == "prepare":
            options.add_argument("--data", required=True)
            options.add_argument("--answer", default="jsonl", help="answer format")
            options.add_argument("--longest", type=int, default=400, help="characters of a document, at the most")
        else:
            options.add_argument("--rows", type=int, nargs="+", default=[512, 256], help="answers at a time")
            options.add_argument("--capture", type=int, default=1024, help="tokens of the largest CUDA graph")
            options.add_argument("--quantization", help="vLLM's, such as fp8")
            options.add_argument("--free", action="store_true", help="then also without the grammar, at the best rows")
            options.add_argument("--minutes", type=float, default=5, help="no setting is begun after so long")
    chosen = parser.parse_args()
    if chosen.command == "prepare":
        prepare(chosen)
    else:
        measure(chosen, began)


def prepare(chosen: argparse.Namespace) -> None:
    """Write the jobs of the first documents that `extract.py` would choose, and SPARE more for the warm-up."""
    from spantune.core import config
    from spantune.data import formats
    from spantune.encoding import Encoder, make_task
    from spantune.models import load_tokenizer

    task = make_task(config.Task(preset="cmeee", answer=chosen.answer))
    encoder = Encoder(load_tokenizer(chosen.model), task, LONGEST)
    documents = [document for document in formats.read(chosen.data).documents if document.text.strip()]
    documents = [document for document in documents if len(document.text) <= chosen.longest][: chosen.limit + SPARE]
    with chosen.jobs.open("w", encoding="utf-8") as out:
        for document in documents:
            job = {
                "prompt": encoder.prompt_ids(document.text),
                "gold": encoder.answer_ids(document),
                "grammar": encoder.format.grammar(document.text, task, None),
            }
            print(json.dumps(job, ensure_ascii=False), file=out)
    _say(f"{len(documents)} jobs in {chosen.jobs}")


def measure(chosen: argparse.Namespace, began: float) -> None:
    """Make the engine, then measure each setting; `began` is when the program started (`time.perf_counter`)."""
    jobs = [json.loads(line) for line in chosen.jobs.read_text(encoding="utf-8").splitlines()]
    jobs, spare = jobs[: chosen.limit], jobs[chosen.limit :]
    if not jobs or not spare:
        sys.exit(f"{chosen.jobs} has {len(jobs)} jobs; {chosen.limit} and some for the warm-up are needed")
    if max(len(job["gold"]) for job in jobs) > LONGEST:
        sys.exit(f"an answer of {chosen.jobs} has more than {LONGEST} tokens")
    with tempfile.TemporaryDirectory() as folder:
        _announce(Path(folder))
        engine = _engine(chosen, max(len(job["prompt"]) + len(job["gold"]) for job in [*jobs, *spare]))
        _say(f"the engine was made in {time.perf_counter() - began:.0f} s")
        peer = Peer(engine, jobs, spare)
        for with_grammar in (True, False)[: 1 + chosen.free]:
            peer.warm(max(chosen.rows), with_grammar)
        figures: dict[int, float] = {}
        for rows in chosen.rows:
            if time.perf_counter() - began < 60 * chosen.minutes:
                figures[rows] = _put(peer.measured(rows), chosen)["documents_per_s"]
        if chosen.free and figures and time.perf_counter() - began < 60 * chosen.minutes:
            _put(peer.measured(max(figures, key=lambda rows: figures[rows]), with_grammar=False), chosen)


class Peer:
    """vLLM's engine, the jobs to measure, and the jobs for the warm-up."""

    def __init__(self, engine: Any, jobs: Sequence[Job], spare: Sequence[Job]):
        self.engine, self.jobs, self.spare = engine, jobs, spare

    def warm(self, rows: int, with_grammar: bool) -> None:
        """Write the answers of the warm-up, so that vLLM compiles and allocates before it is measured."""
        seconds, answers = self.written(self.spare, rows, with_grammar)
        right = sum(answer == job["gold"] for answer, job in zip(answers, self.spare, strict=True))
        _say(f"warm-up: {len(answers)} documents in {seconds:.1f} s, {right} of them gold")

    def measured(self, rows: int, with_grammar: bool = True) -> dict[str, Any]:
        """Write all answers with at most `rows` at a time; return the figures."""
        _say(f"vLLM, {rows} rows, {'each text its grammar' if with_grammar else 'no grammar'}")
        self.engine.reset_prefix_cache()
        self.written(self.spare[:1], rows, with_grammar)  # cache the instruction, the common prefix
        began = time.monotonic()
        seconds, answers = self.written(self.jobs, rows, with_grammar)
        ended = time.monotonic()
        self.engine.reset_prefix_cache()  # writes the steps to the file
        steps = [step for step in json.loads(Path(os.environ[STEPS]).read_text()) if began <= step[0] <= ended]
        tokens = sum(len(answer) for answer in answers)
        return {
            "rows": rows,
            "grammar": with_grammar,
            "documents": len(answers),
            "answers_as_gold": sum(answer == job["gold"] for answer, job in zip(answers, self.jobs, strict=True)),
            "seconds": round(seconds, 2),
            "documents_per_s": round(len(answers) / seconds, 2),
            "tokens": tokens,
            "tokens_per_s": round(tokens / seconds, 1),
            **_in_steps(steps, ended),
        }

    def written(self, jobs: Sequence[Job], rows: int, with_grammar: bool) -> tuple[float, list[list[int]]]:
        """Write the answers of `jobs`; return the seconds that this took, and the token ids of each answer."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import StructuredOutputsParams

        prompts = [TokensPrompt(prompt_token_ids=job["prompt"]) for job in jobs]
        settings = [
            SamplingParams(
                temperature=0,
                max_tokens=len(job["gold"]),
                stop_token_ids=[job["gold"][-1]],
                extra_args={"gold": job["gold"], "rows": rows},
                structured_outputs=StructuredOutputsParams(grammar=job["grammar"]) if with_grammar else None,
            )
            for job in jobs
        ]
        began = time.perf_counter()
        outputs = self.engine.generate(prompts, settings, use_tqdm=False)
        return time.perf_counter() - began, [list(output.outputs[0].token_ids) for output in outputs]


def register() -> None:
    """Make vLLM's engine write gold answers and record its steps; vLLM calls this in each of its processes."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState

    if not hasattr(Scheduler, "steps"):
        _note_steps(Scheduler)
        _raise_gold(LogitBiasState)


def _note_steps(kind: Any) -> None:
    """Make a scheduler class record its steps and take at most as many requests at a time as the requests ask for.

    A step is recorded as (time, rows, tokens). When the prefix cache is emptied, the steps are written to the file that
    the environment variable PEER_STEPS names.
    """
    add_request, schedule, reset_prefix_cache = kind.add_request, kind.schedule, kind.reset_prefix_cache
    kind.steps = []

    def added(self: Any, request: Any) -> None:
        extra = request.sampling_params.extra_args or {} if request.sampling_params else {}
        self.max_num_running_reqs = extra.get("rows", self.max_num_running_reqs)
        add_request(self, request)

    def scheduled(self: Any, *arguments: Any, **settings: Any) -> Any:
        began, output = time.monotonic(), schedule(self, *arguments, **settings)
        if output.total_num_scheduled_tokens:
            self.steps.append((began, len(output.num_scheduled_tokens), output.total_num_scheduled_tokens))
        return output

    def emptied(self: Any, *arguments: Any, **settings: Any) -> bool:
        Path(os.environ[STEPS]).write_text(json.dumps(self.steps))
        self.steps.clear()
        return bool(reset_prefix_cache(self, *arguments, **settings))

    kind.add_request, kind.schedule, kind.reset_prefix_cache = added, scheduled, emptied


def _raise_gold(kind: Any) -> None:
    """Make the sampler raise each row's next gold token, in its logit bias, which follows the grammar's mask."""
    import numpy as np
    import torch

    make, add_request, apply_logit_bias = kind.__init__, kind.add_request, kind.apply_logit_bias

    def made(self: Any, rows: int, device: Any) -> None:
        make(self, rows, device)
        self.gold = torch.zeros((rows, LONGEST), dtype=torch.int64, device=device)
        self.starts = torch.zeros(rows, dtype=torch.int64, device=device)
        self.has_gold = np.zeros(rows, bool)

    def added(self: Any, row: int, prompt_length: int, settings: Any) -> None:
        add_request(self, row, prompt_length, settings)
        gold = (settings.extra_args or {}).get("gold")
        self.has_gold[row] = gold is not None
        if gold is not None:
            ids = torch.tensor(gold, dtype=torch.int64).pin_memory()
            self.gold[row, : len(gold)].copy_(ids, non_blocking=True)
            self.starts[row] = prompt_length

    def applied(self: Any, logits: Any, row_of_logits: Any, rows: Any, positions: Any) -> None:
        apply_logit_bias(self, logits, row_of_logits, rows, positions)
        if self.has_gold[rows].any():
            raise_gold(logits, self.gold, self.starts, row_of_logits.long(), positions.long())

    kind.__init__, kind.add_request, kind.apply_logit_bias = made, added, applied


def raise_gold(logits: Any, gold: Any, starts: Any, rows: Any, positions: Any) -> None:
    """Raise the gold tokens in `logits` [n, vocabulary], in place.

    Args:
        logits: the logits of n tokens [n, vocabulary].
        gold: the gold ids of each row [rows, most tokens].
        starts: the length of each row's prompt [rows].
        rows: the row of each of the n tokens [n].
        positions: the position of each of the n tokens in its row [n]; the next gold token is raised.
    """
    import torch

    places = (positions + 1 - starts[rows]).clamp_(0, gold.shape[1] - 1)
    tokens = gold[rows, places][:, None]
    logits.scatter_add_(1, tokens, torch.full_like(tokens, RAISED, dtype=logits.dtype))


def _announce(folder: Path) -> None:
    """Write package metadata into the folder, by which vLLM and its processes find `register` as a plugin."""
    package = folder / "vllm_peer-0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-peer\nVersion: 0\n")
    (package / "entry_points.txt").write_text("[vllm.general_plugins]\nvllm_peer = vllm_peer:register\n")
    places = [str(folder), str(Path(__file__).resolve().parent)]
    sys.path[:0] = places
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    os.environ[STEPS] = str(folder / "steps.json")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def _engine(chosen: argparse.Namespace, longest: int) -> Any:
    from vllm import LLM

    weights = {} if list(chosen.model.glob("*.safetensors")) else {"load_format": "dummy"}
    return LLM(
        model=str(chosen.model),
        dtype="bfloat16",
        quantization=chosen.quantization,
        max_model_len=-(-(longest + 1) // 1024) * 1024,
        max_num_seqs=max(chosen.rows),
        compilation_config={"max_cudagraph_capture_size": chosen.capture},
        structured_outputs_config={"backend": "guidance"},
        **weights,
    )


def _in_steps(steps: Sequence[tuple[float, int, int]], ended: float) -> dict[str, Any]:
    """Return the number of steps, and their count and median milliseconds by size, rounded up to a power of two.

    The size of a step in which all rows write is its rows; if prompts are computed too, it is its tokens. A step lasts
    until the next one begins.
    """
    writing: dict[int, list[float]] = defaultdict(list)
    reading: dict[int, list[float]] = defaultdict(list)
    ends = [step[0] for step in steps[1:]] + [ended]
    for (began, rows, tokens), end in zip(steps, ends, strict=True):
        kind, size = (writing, rows) if rows == tokens else (reading, tokens)
        kind[1 << (size - 1).bit_length()].append(1000 * (end - began))
    found: dict[str, Any] = {"steps": len(steps)}
    for name, kind in (("ms_of_writing_by_rows", writing), ("ms_with_prompts_by_tokens", reading)):
        found[name] = {size: [len(kind[size]), round(statistics.median(kind[size]), 1)] for size in sorted(kind)}
    return found


def _put(figures: dict[str, Any], chosen: argparse.Namespace) -> dict[str, Any]:
    import torch
    import vllm

    place = {"device": torch.cuda.get_device_name(), "vllm": vllm.__version__, "torch": torch.__version__}
    line = {**place, "quantization": chosen.quantization, "capture": chosen.capture, **figures}
    print(json.dumps(line), flush=True)
    return figures


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
