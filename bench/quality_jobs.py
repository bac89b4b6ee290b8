"""The jobs of the study in quality.py: their groups, what each job changes, and the recipe of a job.

The recipe of a job is the base of its way of answering (`BASE`) with the job's own `recipe`, a mapping of `section.key`
to value. The dev split of CMeEE V1 has two halves: A is for choosing checkpoints, thresholds and settings; B is
reported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MODEL = "bundled:gemma3-270m"
SEEDS = (42, 43, 44)
MEMBERS = 3
"""The number of runs whose weights a soup averages."""
CURVE = {
    100: {"spans": (45, 8), "jsonl": (32, 8), "dev": 100},
    300: {"spans": (30, 8), "jsonl": (8, 8), "dev": 100},
    1000: {"spans": (10, 16), "jsonl": (4, 8), "dev": 100},
    3000: {"spans": (6, 32), "jsonl": (4, 8), "dev": 300},
}
"""By the number of training sentences: the epochs and the examples per step of each way of answering, and the number of
dev sentences for both.

The epochs of writing are twice those of a recipe that names none. The size of 15,000 is in the groups `final` and
`answers`.
"""
FINALIST: dict[str, Any] = {
    "train.epochs": 2.5,
    "train.batch_examples": 64,
    "train.average": 0.995,
    "train.masked_epochs": 5,
    "spans.size": 512,
    "spans.dropout": 0.2,
    "lora.dropout": 0.2,
}
"""The settings of recipes/cmeee-spans.yaml that differ from the base."""
BASE: dict[str, dict[str, Any]] = {
    "spans": {
        "task.answer": "spans",
        "lora.rank": 64,
        "lora.alpha": 128,
        "train.learning_rate": 3e-4,
        "train.eval_documents": 1250,
        "train.eval_share": 1.0,
    },
    "jsonl": {
        "task.answer": "jsonl",
        "train.loss_on": "choices",
        "train.eval_documents": 100,
        "train.eval_share": 0.5,
        "extract.batch_size": 32,
    },
}
"""The settings of every job, by its way of answering. For writing, rate, batch and rank are spantune's defaults."""
ANSWERS: dict[str, Any] = {
    "train.loss_on": "answer",
    "train.epochs": 2,
    "train.batch_examples": 32,
    "train.learning_rate": 5e-4,
    "train.eval_steps": 469,
    "lora.rank": 64,
    "lora.alpha": 128,
}
"""The settings for comparing answer formats: the loss is on all answer tokens, as in Phi-4's recipe."""
ABLATIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "view causal": {"spans.view": "causal"},
    "view twice": {"spans.view": "twice"},
    "instruction": {"spans.instruction": True},
    "no convolution": {"spans.convolution": 0},
    "types learnt": {"spans.types": "learnt"},
    "rank 16": {"lora.rank": 16, "lora.alpha": 32},
    "rank 256": {"lora.rank": 256, "lora.alpha": 512},
    "full, rate 5e-5": {"lora": "full", "train.learning_rate": 5e-5},
    "full, rate 1e-4": {"lora": "full", "train.learning_rate": 1e-4},
    "full, rate 2e-4": {"lora": "full", "train.learning_rate": 2e-4},
    "adapter rate 2e-4": {"train.learning_rate": 2e-4},
    "adapter rate 1e-3": {"train.learning_rate": 1e-3},
    "head rate 3e-4": {"spans.learning_rate": 3e-4},
    "head rate 3e-3": {"spans.learning_rate": 3e-3},
    "dropout 0": {"spans.dropout": 0.0},
    "dropout 0.3": {"spans.dropout": 0.3},
    "5 epochs": {"train.epochs": 5},
    "8 epochs": {"train.epochs": 8},
    "batch 16": {"train.batch_examples": 16},
    "batch 64": {"train.batch_examples": 64},
    "EMA 0.999": {"train.average": 0.999},
    "R-Drop 1": {"tricks": "rdrop=1.0", "train.graphs": "off"},
    "FGM 0.5": {"tricks": "fgm=0.5", "train.graphs": "off"},
}
"""The settings in which each job of the ablation differs from the base; `tricks` are those of quality_tricks.py.

The command line adds more: `--also "NAME: key=value …"`.
"""
WEIBO = {"PER": "人名", "ORG": "机构", "GPE": "行政区", "LOC": "地点"}
TASKS: dict[str, dict[str, Any]] = {
    "cmeee_v1": {"preset": "cmeee"},
    "cmeee_v2": {"preset": "cmeee"},
    "bc5cdr": {
        "labels": [
            {"code": "Chemical", "description": "drugs and other chemical substances, abbreviations included"},
            {"code": "Disease", "description": "diseases, syndromes, symptoms and adverse effects"},
        ],
        "nested": False,
    },
    "ncbi_disease": {
        "labels": [
            {"code": "Disease", "description": "diseases, syndromes and classes of them, abbreviations included"}
        ],
        "nested": False,
    },
    "wnut17": {
        "labels": [
            {"code": "person", "description": "names of people"},
            {"code": "location", "description": "places, countries and facilities"},
            {"code": "corporation", "description": "companies"},
            {"code": "group", "description": "bands, teams and organisations that are no companies"},
            {"code": "product", "description": "things that are sold, and services"},
            {"code": "creative-work", "description": "songs, films, books, games and the like"},
        ],
        "nested": False,
    },
    "weibo_ner": {
        "labels": [
            {"code": f"{code}.{kind}", "name": name + word}
            for code, name in WEIBO.items()
            for kind, word in (("NAM", "名称"), ("NOM", "泛指"))
        ],
        "language": "zh",
        "nested": False,
    },
}
LONGEST = {"cmeee_v1": 96, "cmeee_v2": 118, "bc5cdr": 174, "ncbi_disease": 84, "wnut17": 85, "weibo_ner": 32}
"""Characters of the longest entity of a corpus, including dev and test: a run refuses gold entities that are longer."""
EPOCHS_OF_CORPUS = {"cmeee_v2": 9, "bc5cdr": 4, "ncbi_disease": 3.5, "wnut17": 6, "weibo_ner": 8}
"""Epochs of the finalist on the other corpora: about 600 steps each."""


def make_jobs(data: Path, group: str, base: dict[str, Any], also: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the jobs of a group.

    Args:
        data: the folder that `quality.py data` wrote.
        group: the name of the group.
        base: settings of every job that reads spans.
        also: more jobs of the ablation, by title.
    """
    if group == "curve":
        return [job for way in BASE for job in curve(way, base)]
    if group == "ablation":
        lines = ABLATIONS | also
        return [
            spans_job(group, title, "cmeee_v1", 42, {"train.epochs": 3, "train.batch_examples": 32} | base | line)
            for title, line in lines.items()
        ]
    if group == "answers":
        return [
            spans_job(group, answer, "cmeee_v1", seed, ANSWERS | {"task.answer": answer}, report="B", way="jsonl")
            for seed in SEEDS
            for answer in ("jsonl", "grouped")
        ]
    if group == "soup":
        return [job for seed in SEEDS for job in soup(seed, FINALIST | base)]
    if group == "final":
        return [spans_job(group, "finalist", "cmeee_v1", seed, FINALIST | base, report="B") for seed in SEEDS]
    jobs = []
    for corpus, epochs in EPOCHS_OF_CORPUS.items():
        size = sum(1 for _ in (data / f"{corpus}-train.jsonl").open(encoding="utf-8"))
        settings = FINALIST | base | {"train.epochs": epochs, "train.batch_examples": 32 if size > 1500 else 16}
        jobs.append(spans_job(group, "finalist", corpus, 42, settings, size=size, report="test"))
    return jobs


def spans_job(group: str, title: str, corpus: str, seed: int, settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a job that reads spans, or answers by `way` in `more`.

    `tricks` in `settings` becomes a key of the job, because it is no key of a recipe.
    """
    if "tricks" in settings:
        more["tricks"], settings = settings["tricks"], {key: settings[key] for key in settings if key != "tricks"}
    job = {"group": group, "title": title, "corpus": corpus, "way": "spans", "size": 15000, "seed": seed, "report": "A"}
    job |= more | {"recipe": settings}
    return {"name": f"{group}, {title}, {corpus}, {job['size']}, seed {seed}, on {job['report']}"} | job


def curve(way: str, base: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the jobs of the learning curve of one way of answering."""
    jobs = []
    for size, values in CURVE.items():
        epochs, batch = values[way]
        settings = {"train.epochs": epochs, "train.batch_examples": batch, "data.dev_limit": values["dev"]}
        if way == "spans":
            settings = base | settings
        jobs += [spans_job("curve", way, "cmeee_v1", seed, settings, size=size, report="B", way=way) for seed in SEEDS]
    return jobs


def soup(seed: int, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the jobs of a model soup (arXiv 2203.05482), which share their first weights and the masked-token stage.

    The first job stops after the masked-token stage. The members resume from it, each with another order of the
    examples. The last job averages the weights of the members. The first job takes the places of all members, so that
    they can begin as soon as it ends.
    """

    def job(title: str, more: dict[str, Any], trick: str) -> dict[str, Any]:
        return spans_job("soup", title, "cmeee_v1", seed, settings | {"tricks": trick}, report="B", **more)

    first = job("masked tokens", {"stops": True, "places": MEMBERS}, "masked_only=1")
    members = [job(f"order {number}", {"start": first["name"]}, f"order={number}") for number in range(1, MEMBERS + 1)]
    average = job("average", {"way": "average", "members": [member["name"] for member in members]}, "")
    return [first, *members, average]


def recipe_of(job: dict[str, Any], data: Path, folder: Path, device: str) -> dict[str, Any]:
    """Return the recipe of a job as nested sections; its run is written to `folder`/run."""
    corpus = job["corpus"]
    on_gpu: dict[str, Any] = {"model.base": "bf16", "train.pack_tokens": 8192} if device == "cuda" else {}
    dev, test = ("devA", f"dev{job['report']}") if corpus == "cmeee_v1" else ("dev", "test")
    settings = {
        "run": {"name": "run", "folder": str(folder), "seed": job["seed"]},
        "model": {"source": MODEL, "device": device},
        "task": TASKS[corpus],
        "data.train": str(data / f"{corpus}-train.jsonl"),
        "data.dev": str(data / f"{corpus}-{dev}.jsonl"),
        "data.test": str(data / f"{corpus}-{test}.jsonl"),
        "data.limit": job["size"],
        "data.too_long": "split",
        "train.gradient_checkpointing": "off",
        "train.eval_before": False,
        "train.log_steps": 50,
        "train.keep_checkpoints": 1,
        "track.swanlab": "off",
    }
    if job["way"] == "spans":
        settings["spans.longest"] = LONGEST[corpus]
    recipe: dict[str, Any] = {}
    for key, value in (settings | on_gpu | BASE[job["way"]] | job["recipe"]).items():
        section, _, name = key.partition(".")
        if name and recipe.get(section) != "full":
            recipe[section] = {**recipe.get(section, {}), name: value}
        elif not name:
            recipe[section] = value
    return recipe


def passes(job: dict[str, Any]) -> float:
    """Return the number of epochs of a job."""
    return float(job["recipe"].get("train.epochs", 1))
