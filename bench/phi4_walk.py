"""Run the whole workflow at Phi-4's size on one GPU of 80 GB: plan, train, load with plain PEFT, extract.

The part `seed` also trains the recipe of the tutorial. Random weights are enough for everything except quality (see
random_phi4.py). Each part runs in a process of its own, with the command that a user would type. Prints one JSON line
for each part; keep results in bench/results/.

    python bench/phi4_walk.py --model FOLDER --data cmeee.jsonl --runs runs
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["data.test_limit=8", "train.eval_documents=8", "train.eval_before=false", "extract.max_new_tokens=96"]


def main() -> None:
    """Run the parts of `--parts`."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--runs", type=Path, default=Path("runs"))
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--parts", nargs="+", default=["plan", "ours", "peft", "extract", "seed"])
    options.add_argument("--set", nargs="*", default=[], help="more overrides for our recipe")
    chosen = options.parse_args()
    for part in chosen.parts:
        started = time.perf_counter()
        result = PARTS[part](chosen)
        print(json.dumps({"part": part, "seconds": round(time.perf_counter() - started, 1), **result}), flush=True)


def plan(chosen: argparse.Namespace) -> dict[str, object]:
    """Run `spantune plan` with the recipe phi4-cmeee.yaml."""
    done = _spantune("plan", ROOT / "recipes/phi4-cmeee.yaml", *_where(chosen, "ours"), *chosen.set, "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    return {"exit": done.returncode, "ok": found["ok"], "estimate": found["estimate"]}


def ours(chosen: argparse.Namespace) -> dict[str, object]:
    """Run `spantune train recipes/phi4-cmeee.yaml`."""
    return _train(chosen, "phi4-cmeee.yaml", "ours", [f"data.limit={16 * chosen.steps}", *chosen.set])


def seed(chosen: argparse.Namespace) -> dict[str, object]:
    """Run `spantune train recipes/phi4-cmeee-seed.yaml`."""
    return _train(chosen, "phi4-cmeee-seed.yaml", "seed", [])


def peft(chosen: argparse.Namespace) -> dict[str, object]:
    """Load the saved adapter with plain PEFT over the plain model, and check that it changes the logits."""
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM\nfrom peft import PeftModel\n"
        "options = dict(dtype=torch.bfloat16, device_map={'': 0}, trust_remote_code=False)\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], **options)\n"
        "ids = torch.arange(100, 130, device='cuda')[None]\n"
        "before = model(ids).logits\n"
        "model = PeftModel.from_pretrained(model, sys.argv[2])\n"
        "changed = (model(ids).logits - before).abs().max().item()\n"
        "names = sorted({n.split('.')[-4] for n, _ in model.named_parameters() if 'lora_A' in n})\n"
        "print(names, changed)\nassert changed > 0 and len(names) == 4\n"
    )
    command = [sys.executable, "-c", code, str(chosen.model), str(chosen.runs / "ours" / "adapter")]
    done = subprocess.run(command, capture_output=True, text=True)
    return {"exit": done.returncode, "found": done.stdout.strip() or done.stderr[-400:]}


def extract(chosen: argparse.Namespace) -> dict[str, object]:
    """Run `spantune extract` on ten sentences; count the entities whose text stands at their offsets."""
    texts = [json.loads(line)["text"] for line in chosen.data.read_text(encoding="utf-8").splitlines()[:10]]
    source = chosen.runs / "ten.txt"
    source.write_text("".join(text.replace("\n", " ") + "\n" for text in texts), encoding="utf-8")
    done = _spantune("extract", chosen.runs / "ours", source)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    entities = [(record["text"], entity) for record in records for entity in record["entities"]]
    grounded = sum(text[entity["start"] : entity["end"]] == entity["text"] for text, entity in entities)
    return {"exit": done.returncode, "lines": len(records), "entities": len(entities), "grounded": grounded,
            "error": done.stderr[-300:] if done.returncode == 2 else ""}  # fmt: skip


PARTS = {"plan": plan, "ours": ours, "peft": peft, "extract": extract, "seed": seed}


def _train(chosen: argparse.Namespace, recipe: str, name: str, more: list[str]) -> dict[str, object]:
    steps = [f"train.max_steps={chosen.steps}", f"train.eval_steps={chosen.steps}"]
    done = _spantune("train", ROOT / "recipes" / recipe, *_where(chosen, name), *steps, *SMALL, *more)
    folder = chosen.runs / name
    if done.returncode:
        return {"exit": done.returncode, "error": done.stderr[-1500:]}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps_ms = [line["step_ms"] for line in lines if "step_ms" in line]
    steps_ms = steps_ms[3:] or steps_ms  # the first steps warm up
    peak = max(line.get("peak_gib", 0) for line in lines)
    losses = [line["loss"] for line in lines if "loss" in line]
    return {
        "exit": 0,
        "ms_per_step": round(statistics.median(steps_ms), 1),
        "fastest_ms": min(steps_ms),
        "peak_gib": peak,
        "loss": [round(losses[0], 3), round(losses[-1], 3)],
        "closing": json.loads(done.stdout.splitlines()[-1]),
        "warned": [line for line in done.stderr.splitlines() if "cuts" in line],
    }


def _where(chosen: argparse.Namespace, name: str) -> list[str]:
    return [
        f"model.source={chosen.model}",
        f"data.train={chosen.data}",
        f"run.folder={chosen.runs}",
        f"run.name={name}",
    ]


def _spantune(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "spantune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


if __name__ == "__main__":
    main()
