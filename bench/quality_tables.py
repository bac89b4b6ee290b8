"""Print the results of quality.py as Markdown tables."""

from __future__ import annotations

import statistics
from typing import Any

from quality_jobs import BASE


def tables(lines: list[dict[str, Any]]) -> None:
    """Print the tables of the study; `lines` are the lines of the results file."""
    results = list({line["name"]: line for line in lines if "f1" in line}.values())
    curve_table([line for line in results if line["group"] == "curve"])
    ablation_table([line for line in results if line["group"] == "ablation"])
    for group, title in (
        ("final", "The finalist"),
        ("answers", "Ways of writing"),
        ("pilot", "Pilots"),
        ("corpora", "Other corpora"),
    ):
        final_table(title, [line for line in results if line["group"] == group])
    soup_table([line for line in results if line["group"] == "soup"])
    done = {line["name"] for line in results} | {line["name"] for line in lines if "done" in line}
    for line in {line["name"]: line for line in lines if line["name"] not in done}.values():
        print(f"- no result: {line['name']}: {(line.get('error') or 'unfinished').strip().splitlines()[-1]}")


def curve_table(results: list[dict[str, Any]]) -> None:
    """Print F1 by corpus size for both ways of answering: the mean over seeds, the minimum and the maximum."""
    if not results:
        return
    print("### Learning curves\n\n| sentences | reading spans | seeds | writing | seeds | reading - writing |")
    print("|---|---|---|---|---|---|")
    for size in sorted({line["size"] for line in results}):
        cells, means = [], {}
        for way in BASE:
            values = [line["f1"] for line in results if (line["size"], line["way"]) == (size, way)]
            if values:
                means[way] = statistics.fmean(values)
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            single = [with_interval(line) for line in results if (line["size"], line["way"]) == (size, way)]
            cells += [(f"{means[way]:.3f}{spread}" if spread else single[0]) if values else "–", str(len(values))]
        gap = f"{means['spans'] - means['jsonl']:+.3f}" if len(means) == 2 else "–"
        print(f"| {size:,} | {' | '.join(cells)} | {gap} |")
    print()


def ablation_table(results: list[dict[str, Any]]) -> None:
    """Print the jobs of the ablation, the best first, with the difference from the base."""
    if not results:
        return
    base = next((line["f1"] for line in results if line["title"] == "base"), None)
    print(
        "### Ablations\n\n| changed | F1 (95 % interval) | to the base | precision | recall | train s | documents/s |"
    )
    print("|---|---|---|---|---|---|---|")
    for line in sorted(results, key=lambda line: -line["f1"]):
        gap = f"{line['f1'] - base:+.3f}" if base is not None else "–"
        cells = [line["title"], with_interval(line), gap, f"{line['precision']:.3f}", f"{line['recall']:.3f}"]
        print(f"| {' | '.join(cells)} | {line['training_seconds']:.0f} | {line['documents_per_s']:.0f} |")
    print()


def final_table(title: str, results: list[dict[str, Any]]) -> None:
    """Print a row for each result, and then its F1 by type."""
    if not results:
        return
    print(f"### {title}\n")
    print("| what | corpus | seed | on | F1 (95 % interval) | dev F1 | precision | recall | train s | GiB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for line in results:
        cells = [line["title"], line["corpus"], str(line["seed"]), line["report"], with_interval(line)]
        cells += [f"{line[name]:.3f}" for name in ("dev_f1", "precision", "recall")]
        cells += [f"{line['training_seconds']:.0f}", f"{line['peak_gib']:.1f}" if line["peak_gib"] else "–"]
        print(f"| {' | '.join(cells)} |")
    print()
    for line in results:
        types = ", ".join(f"{name} {value:.2f}" for name, value in line["types"].items() if value is not None)
        print(f"- {line['title']}, {line['corpus']}, seed {line['seed']}: {types}")
    print()


def soup_table(results: list[dict[str, Any]]) -> None:
    """Print a row for each member of a soup, and for each average of members."""
    if not results:
        return
    print("### Model soups\n\n| seed | what | F1 on half A | F1 (95 % interval) | precision | recall |")
    print("|---|---|---|---|---|---|")
    for line in results:
        for part in line.get("soups", [line]):
            what = f"{part['kind']} of {len(part['members'])} averaged" if "kind" in part else line["title"]
            cells = [f"{part[name]:.3f}" for name in ("dev_f1", "precision", "recall")]
            print(f"| {line['seed']} | {what} | {cells[0]} | {with_interval(part)} | {cells[1]} | {cells[2]} |")
    print()


def with_interval(line: dict[str, Any]) -> str:
    """Return F1 with its interval, if there is one."""
    return f"{line['f1']:.3f}" + (
        f" ({line['f1_low']:.3f}–{line['f1_high']:.3f})" if line["f1_low"] is not None else ""
    )
