"""Measure the seconds to write a report, and the milliseconds to open it and to use its filters in headless Chromium.

    python bench/report.py CORPUS [--browser chromium] [--documents 2500] [--keep FOLDER]

The predictions are made from the gold entities with a fixed seed: some entities are dropped, moved, renamed or
invented. Opening lasts from the start of navigation to the load event, which includes the page's script. The time of a
filter includes the layout that it causes.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from spantune.core import Document, Entity, Extraction, Problem, ProblemKind, Status
from spantune.data import formats
from spantune.metrics import System, compare, score
from spantune.report import CalibrationView, Report, write_comparison, write_report

COLUMNS = ("load", "kind", "type", "text", "cell", "clear", "next")
MEASURE = """
const ways = {
  kind: () => { form.querySelector(".kinds .chip:nth-of-type(3) input").checked = true; filter(); },
  type: () => { form.querySelector(".types input").checked = true; filter(); },
  text: () => { form.reset(); form.elements.words.value = "患者"; filter(); },
  cell: () => { cells[1].click(); },
  clear: () => { form.reset(); choose(null); filter(); },
  next: () => { turn(50); },
};
addEventListener("load", () => {
  const found = { load: performance.now() };
  for (const [name, way] of Object.entries(ways)) {
    if (name === "cell" && !cells.length) continue;
    const start = performance.now();
    way();
    document.body.offsetHeight;
    found[name] = performance.now() - start;
  }
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
"""


def predicted(documents: Sequence[Document], labels: Sequence[str], seed: int, wrong: float) -> list[Extraction]:
    """Return the gold documents as predictions, in which a fraction `wrong` of the entities has some error."""
    chance = random.Random(seed)
    return [_predicted(document, labels, chance, wrong) for document in documents]


def _predicted(document: Document, labels: Sequence[str], chance: random.Random, wrong: float) -> Extraction:
    found = []
    for entity in document.entities:
        way = chance.choice(["dropped", "moved", "renamed", "both", "invented"]) if chance.random() < wrong else ""
        if way == "dropped":
            continue
        end = entity.end
        if way in ("moved", "both"):
            end = min(len(document.text), end + 1) if chance.random() < 0.5 else max(entity.start + 1, end - 1)
        label = chance.choice(labels) if way in ("renamed", "both") else entity.label
        found.append(Entity(entity.start, end, label, chance.random()))
        if way == "invented":
            start = chance.randrange(len(document.text))
            found.append(Entity(start, min(len(document.text), start + 3), chance.choice(labels), chance.random()))
    ailing = chance.random() < 0.02
    annotated = Document(document.id, document.text, tuple(set(found)))
    if not ailing:
        return Extraction(annotated)
    return Extraction(annotated, '{"entity', Status.LENGTH, (Problem(ProblemKind.TRUNCATED, '{"entity'),))


def report_of(gold: Sequence[Document], labels: Sequence[str]) -> Report:
    """Return a report in which every section has content."""
    guessed = predicted(gold, labels, 1, 0.4)
    scores = score(
        gold, [extraction.document for extraction in guessed], labels, train=gold[: len(gold) // 2], resamples=500
    )
    untrained = [extraction.document for extraction in predicted(gold, labels, 2, 0.9)]
    before = score(gold, untrained, labels, resamples=500)
    chance = random.Random(3)
    return Report(
        title="spantune · made up",
        before=before,
        after=scores,
        labels={label: label for label in labels},
        curve=[(step, 2.0 / (1 + step / 60) + 0.1 * chance.random()) for step in range(1, 600, 3)],
        evaluations=[(step, 0.65 * step / (step + 90), 0.6 * step / (step + 90), 0.7 * step / (step + 90))
                     for step in range(0, 601, 100)],
        gold=gold,
        predicted=guessed,
        facts={"training examples/s (median)": "12.30"},
        config="run:\n  name: made-up\n",
        environment={"python": "3.11"},
        rates={"invalid_rate": 0.0, "ungrounded_rate": 0.0, "non_stop_rate": 0.02},
        calibration=CalibrationView(
            bins=[(low / 10, low / 10 + 0.1, 90, low / 10 + 0.05, (low / 10 + 0.05) ** 1.4) for low in range(10)],
            ece=0.067, ece_after=0.031, temperature=1.31, threshold=0.3, data="made up", stored=True,
            curve=[(t / 50, 0.5 + t / 110, 0.7 - 0.6 * (t / 50) ** 2, 0.58 - 0.5 * (t / 50 - 0.3) ** 2)
                   for t in range(50)],
        ),
        run="made-up",
        data="made up",
    )  # fmt: skip


def systems_of(report: Report, labels: Sequence[str]) -> list[System]:
    """Return three systems on the documents of `report`."""
    found = [System("first", report.gold, report.predicted)]
    for number, name in enumerate(("second", "third")):
        found.append(System(name, report.gold, predicted(report.gold, labels, 7 + number, 0.3 + number / 10)))
    return found


def opened(page: Path, browser: str) -> dict[str, float]:
    """Return the milliseconds of loading a page and of each filter."""
    markup = page.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(MEASURE.encode()).digest()).decode()
    markup = markup.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    measured = page.with_name("measured.html")
    measured.write_text(markup.replace("</body>", f"<script>{MEASURE}</script></body>"), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, *options, f"--user-data-dir={profile}", measured.absolute().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    measured.unlink()
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)
    assert found, done.stderr
    return dict(json.loads(found[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--documents", type=int, default=2500)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp())
    gold = formats.read(arguments.corpus).documents[: arguments.documents]
    labels = sorted({entity.label for document in gold for entity in document.entities})
    report = report_of(gold, labels)
    systems = systems_of(report, labels)
    comparison = compare(systems, labels, resamples=500)
    print("| page | documents | MB | write s | load ms | filter: kind | type | text | cell | clear | next |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in ("report", "compared"):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        if name == "report":
            write_report(place, report)
        else:
            write_comparison(place, comparison, systems, report.labels, "made up")
        seconds = time.perf_counter() - began
        size = (place / "report.html").stat().st_size / 1e6
        found = opened(place / "report.html", arguments.browser)
        times = [f"{found[key]:.0f}" if key in found else "" for key in COLUMNS]
        cells = [name, str(len(gold)), f"{size:.1f}", f"{seconds:.2f}", *times]
        print("|", " | ".join(cells), "|")
    if not arguments.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
