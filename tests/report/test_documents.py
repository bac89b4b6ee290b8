"""The page that shows a corpus: complete, self-contained, no text is executed, and the filters work."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.chromium import BROWSER, driven
from helpers.real import SHARED
from spantune.core import DataError, Document, Entity
from spantune.data import formats
from spantune.report import write_page
from spantune.report.documents import PAGE

EVIL = (
    "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
    " <!-- & \u2028 癌 e\u0301 😀"
)


def corpus() -> list[Document]:
    """120 documents: 40 with nested entities, 40 with one flat entity, 40 without; the first has hostile text."""
    documents = [
        Document("evil</script>", EVIL, (Entity(0, 9, "<b>x</b>"), Entity(2, 8, "bod"), Entity(5, 20, "dis"))),
        *(Document(f"n{n}", f"腹部胀痛第{n}例", (Entity(0, 4, "sym"), Entity(0, 2, "bod"))) for n in range(39)),
        *(Document(f"f{n}", f"Aspirin {n} mg", (Entity(0, 7, "dru"),)) for n in range(40)),
        *(Document(f"e{n}", f"无异常{n}") for n in range(40)),
    ]
    return documents


def page(tmp_path: Path, documents: list[Document]) -> str:
    path = tmp_path / "page.html"
    write_page(path, documents, "corpus & <i>title</i>")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    return path.read_text(encoding="utf-8")


def rows(markup: str) -> list[Any]:
    found = re.search(r'<script type="application/json" id="documents">(.*?)</script>', markup, re.DOTALL)
    assert found
    return list(json.loads(found[1]))


def test_every_document_is_in_the_page_with_its_text_labels_and_drawing(tmp_path: Path) -> None:
    documents = corpus()
    found = rows(page(tmp_path, documents))
    assert [(row[0], row[1]) for row in found] == [(document.id, document.text) for document in documents]
    assert [row[3] for row in found] == [True] * 40 + [False] * 80
    assert [len(row[2]) for row in found[:1] + found[40:41] + found[80:81]] == [3, 1, 0]
    assert found[1][4].count('class="tag') == 2 and 'data-tag="sym"' in found[1][4]


def test_the_page_loads_nothing_and_its_policy_knows_its_own_script_only(tmp_path: Path) -> None:
    markup = page(tmp_path, corpus())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', markup)
    script = re.search(r"<script>(.*?)</script>", markup, re.DOTALL)
    assert policy and script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy[1] == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    outside = markup.replace(script[1], "")
    assert not re.search(r"<(link|iframe|object|embed|base|img)\b|url\(|@import", outside)
    assert "http://" not in outside and "https://" not in outside


def test_what_came_from_data_is_escaped(tmp_path: Path) -> None:
    markup = page(tmp_path, corpus())
    assert markup.count("<script") == markup.count("</script>") == 2
    assert "<i>title" not in markup and "<b>x" not in markup and "&lt;b&gt;x&lt;/b&gt;" in markup
    assert "<img" not in rows(markup)[0][4] and "&lt;img src=x onerror=" in rows(markup)[0][4]


def test_key_figures_and_tables_are_there(tmp_path: Path) -> None:
    markup = page(tmp_path, [*corpus(), Document("z", "腹部", (Entity(0, 2, "sym"),))])
    for name, value in (("documents", "121"), ("entities", "122"), ("nested", "40"), ("without entities", "40")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in markup
    assert re.search(r"腹部</th><td>39 bod, 1 sym", markup)


def test_colours_and_names_are_those_of_the_task_else_of_the_sorted_labels(tmp_path: Path) -> None:
    documents = [Document("a", "ab", (Entity(0, 1, "sym"), Entity(0, 1, "bod"), Entity(1, 2, "sym")))]
    assert chips(page(tmp_path, documents)) == [("1", "sym", ""), ("0", "bod", "")]
    write_page(tmp_path / "page.html", documents, "x", {"dis": "disease", "sym": "symptom", "bod": "bod"})
    markup = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert chips(markup) == [("1", "sym", "symptom"), ("2", "bod", "")] and "under entity-1" in rows(markup)[0][4]


def chips(markup: str) -> list[tuple[str, str, str]]:
    """Return colour, code and name of each label of the filter."""
    return re.findall(r'class="chip entity-(\d+)">.*?<b>(\w+)</b>(?: <span>([a-z]+)</span>)?', markup)


def test_a_corpus_without_entities_has_a_page(tmp_path: Path) -> None:
    markup = page(tmp_path, [Document("a", "无"), Document("b", "")])
    assert len(rows(markup)) == 2 and "<fieldset" not in markup


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no documents"):
        write_page(tmp_path / "page.html", [], "x")
    with pytest.raises(DataError, match="surrogate"):
        write_page(tmp_path / "page.html", [Document("a", "x\ud800")], "x")
    with pytest.raises(DataError, match="no folder"):
        write_page(tmp_path / "none" / "page.html", corpus(), "x")
    assert list(tmp_path.iterdir()) == []


# --- in a browser --------------------------------------------------------------------------------------------------

# A script that uses the page as a reader would, and leaves its results in the page for --dump-dom.
DRIVE = """
const seen = [];
const note = (name) => seen.push([name, document.querySelector(".place").textContent, list.children.length,
  list.querySelector("h3")?.textContent ?? ""]);
const fill = (name, value) => { form.elements[name].value = value; filter(); };
note("all"); document.querySelector(".on").click(); note("second"); document.querySelector(".on").click(); note("last");
document.querySelector(".back").click(); note("back");
fill("which", "nested"); note("nested"); fill("which", "empty"); note("empty"); fill("which", "");
fill("words", "ASPIRIN 1"); note("words"); fill("words", "nowhere"); note("none"); fill("words", "");
const box = [...form.querySelectorAll(".chip")].find((chip) => chip.textContent.includes("dru")).firstChild;
box.click(); note("dru"); box.click(); note("again");
const evil = list.querySelector(".drawn");
seen.push(["text", evil.textContent === rows[0][TEXT], document.title, list.querySelectorAll("img").length]);
seen.push(["width", document.documentElement.scrollWidth <= innerWidth]);
const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen);
document.body.append(out);
"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
def test_a_reader_pages_and_filters_and_no_text_runs(tmp_path: Path) -> None:
    page(tmp_path, corpus())
    assert driven(tmp_path / "page.html", DRIVE, 500) == [
        ["all", "1–50 of 120", PAGE, "evil</script>"],
        ["second", "51–100 of 120", 50, "f10"],
        ["last", "101–120 of 120", 20, "e20"],
        ["back", "51–100 of 120", 50, "f10"],
        ["nested", "1–40 of 40", 40, "evil</script>"],
        ["empty", "1–40 of 40", 40, "e0"],
        ["words", "1–11 of 11", 11, "f1"],
        ["none", "none", 0, ""],
        ["dru", "1–40 of 40", 40, "f0"],
        ["again", "1–50 of 120", 50, "evil</script>"],
        ["text", True, "corpus & <i>title</i> – spantune corpus", 0],
        ["width", True],
    ]


@pytest.mark.skipif(BROWSER is None or not SHARED.is_dir(), reason="no Chromium, or no shared data, here")
def test_a_real_corpus_is_drawn_quickly(tmp_path: Path) -> None:
    documents = formats.read(SHARED / "cmeee_v2_few_shot/cmeee.jsonl").documents
    write_page(tmp_path / "page.html", documents, "cmeee")
    assert (tmp_path / "page.html").stat().st_size < 6_000_000
    script = (
        'const out = document.createElement("pre"); out.id = "seen"; const start = performance.now(); filter();'
        "out.textContent = JSON.stringify([list.children.length, shown.length, performance.now() - start]);"
        "document.body.append(out);"
    )
    drawn, shown, milliseconds = driven(tmp_path / "page.html", script)
    assert (drawn, shown) == (PAGE, 2500) and milliseconds < 1000
