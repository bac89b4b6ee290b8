"""The page with the real service of the toy run in a real browser: marking, changing, saving, and refused input."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.chromium import BROWSER
from spantune.core import LABEL_COLORS

playwright = pytest.importorskip("playwright.sync_api")

TEXT = "患者腹痛😀三天，e\u0301无发热。"
"""It has an astral character, and a letter with a combining mark."""
HOSTILE = '<img src=x onerror="document.title=1">疮</script><script>document.title=1</script>\u202e疮cba\r\nend'
needs_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests."""
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER)
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, served: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens the page; errors of its scripts and violations of its policy fail the test."""
    contexts, wrong = [], []

    def open_page(url: str | None = None, width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 844}, **{"locale": "en-GB", **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
        page.goto(url or served.url)
        page.locator("#finds li").first.wait_for() if url is None else None
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def extract(page: Any, text: str, by_line: bool = False) -> None:
    """Paste a text, or one text per line, and wait for its entities."""
    if not page.locator("#pasted").is_visible():
        page.click("#adding summary")
    page.evaluate("text => { const a = document.getElementById('pasted'); a.value = text; }", text)
    page.set_checked("#by-line", by_line)
    page.click("#extract")
    page.locator("#stop").wait_for(state="hidden")
    page.locator("#progress-text", has_text="extracted").or_(
        page.locator("#progress-text", has_text="已抽取")
    ).wait_for()


def entities(page: Any) -> list[list[str]]:
    """Return label, text and offsets of the rows of the list."""
    cells = "row => ['.label', '.surface', '.offsets'].map(name => row.querySelector(name).firstChild.data)"
    found: list[list[str]] = page.evaluate(f"() => [...document.querySelectorAll('#entities li')].map({cells})")
    return found


def keys(page: Any, *names: str) -> None:
    """Press keys in the text."""
    page.focus("#text")
    for name in names:
        page.keyboard.press(name)


def emptied(page: Any) -> None:
    """Delete the entities that the toy model has found."""
    page.focus("#text")
    while entities(page):
        page.keyboard.press("n")
        page.keyboard.press("Delete")


def corner(page: Any, start: int, end: int) -> tuple[float, float, float]:
    """Return where [start, end), in UTF-16 units, is on one line of the page: left, right and vertical middle."""
    script = """([start, end]) => {
      const walker = document.createTreeWalker(document.getElementById("text"), NodeFilter.SHOW_TEXT);
      const range = document.createRange();
      for (let at = 0, node; (node = walker.nextNode()); at += node.length) {
        if (at <= start && start < at + node.length) range.setStart(node, start - at);
        if (at < end && end <= at + node.length) range.setEnd(node, end - at);
      }
      const box = range.getBoundingClientRect();
      return [box.left, box.right, box.top + box.height / 2];
    }"""
    left, right, middle = page.evaluate(script, [start, end])
    return left, right, middle


def saved_lines(served: Any) -> list[dict[str, Any]]:
    """Return the corrections on the disk."""
    path: Path = served.service.settings.corrections / "corrections.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_its_files_are_kept_by_browsers_and_load_nothing_from_elsewhere(served: Any) -> None:
    index = served.client.get("/")
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in index.headers["content-security-policy"]
    assert "trusted-types 'none'" in index.headers["content-security-policy"] and "://" not in index.text
    assert served.client.get("/", headers={"If-None-Match": f'"a", W/{index.headers["etag"]}'}).status_code == 304
    assert served.client.head("/").status_code == 200
    assert LABEL_COLORS[0][1] in served.client.get("/static/drawing.css").text
    for name in ("..%2fpage.py", "index.html", "none.js"):
        assert served.client.get(f"/static/{name}").json()["error"]["code"] == "not_found"


@needs_browser
def test_extraction_shows_what_the_service_answers(opened: Any, served: Any) -> None:
    page = opened()
    text = "😀疮\n疽"
    page.fill("#pasted", text)
    page.keyboard.press("Control+Enter")
    page.locator("#progress-text", has_text="1 of 1 text extracted").wait_for()
    answered = served.extract(text=text).json()["entities"]
    expected = [[each["label"], each["text"], f"{each['start']}–{each['end']}"] for each in answered]
    assert expected and entities(page) == expected
    drawn = page.locator("#text")
    assert drawn.evaluate("root => root.textContent") == text
    assert drawn.locator(".tag").count() == len(expected)
    assert page.locator("#text .under").first.get_attribute("title").startswith(expected[0][0])
    label = page.locator(f"#labels button[value={expected[0][0]}] b")
    place = [button.get_attribute("value") for button in page.locator("#labels button").all()].index(expected[0][0])
    red, green, blue = (int(LABEL_COLORS[place][0][index : index + 2], 16) for index in (1, 3, 5))
    assert label.evaluate("element => getComputedStyle(element).color") == f"rgb({red}, {green}, {blue})"


@needs_browser
def test_the_keyboard_alone_marks_relabels_stretches_undoes_and_saves(opened: Any, served: Any) -> None:
    page = opened()
    extract(page, TEXT)
    emptied(page)
    before = len(saved_lines(served))
    keys(page, "Escape", "Control+Home", "Control+Home", "ArrowRight", "ArrowRight", "Shift+ArrowRight", "2")
    assert entities(page) == [["sym", "腹痛", "2–4"]]
    keys(page, "]")
    assert entities(page) == [["sym", "腹痛😀", "2–5"]]
    keys(page, "]", "]", "]", "]")
    assert entities(page) == [["sym", "腹痛😀三天，e\u0301", "2–10"]]  # a letter and its mark are one character
    keys(page, *["Shift+BracketRight"] * 5, "Shift+BracketLeft", "[", "1")
    assert entities(page) == [["dis", "腹痛", "2–4"]]
    keys(page, "ArrowRight", "7")
    assert entities(page) == [["dis", "腹痛", "2–4"], ["bod", "😀", "4–5"]]
    keys(page, "Control+z", "Control+z")
    assert entities(page) == [["sym", "腹痛", "2–4"]]
    keys(page, "Control+Shift+z", "Control+y", "p", "Delete")
    assert entities(page) == [["bod", "😀", "4–5"]]
    keys(page, "Control+z", "s")
    page.locator("#corrections", has_text="1 correction is saved").wait_for()
    line = saved_lines(served)[before]
    assert len(saved_lines(served)) == before + 1 and line["text"] == TEXT
    assert line["entities"] == [
        {"start": 2, "end": 4, "label": "dis", "text": "腹痛"},
        {"start": 4, "end": 5, "label": "bod", "text": "😀"},
    ]
    assert page.locator("#queue li").inner_text().endswith("saved")


@needs_browser
def test_the_mouse_marks_relabels_stretches_and_deletes(opened: Any) -> None:
    page = opened()
    extract(page, TEXT)
    emptied(page)
    left, right, middle = corner(page, 2, 4)
    page.mouse.move(left + 1, middle)
    page.mouse.down()
    page.mouse.move(right - 1, middle, steps=3)
    page.mouse.up()
    page.click("#labels button[value=sym]")
    assert entities(page) == [["sym", "腹痛", "2–4"]]
    page.mouse.click(*corner(page, 9, 10)[1:])  # a click elsewhere
    page.click("#labels button[value=dis]")  # for every selection from now on
    left, right, middle = corner(page, 2, 6)
    page.mouse.move(left + 1, middle)
    page.mouse.down()
    page.mouse.move(right - 1, middle, steps=3)
    page.mouse.up()
    page.locator("#entities li", has_text="2–5").wait_for()
    assert sorted(entities(page)) == [["dis", "腹痛😀", "2–5"], ["sym", "腹痛", "2–4"]]  # nested
    left, _, middle = corner(page, 2, 3)
    page.mouse.click(*corner(page, 9, 10)[1:])
    page.mouse.click(left + 3, middle)  # first the inner entity, then the outer one
    assert "sym" in page.inner_text("#target")
    page.mouse.click(left + 3, middle)
    assert "dis" in page.inner_text("#target")
    box = page.locator("#grip-end").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 8)
    page.mouse.down()
    page.mouse.move(corner(page, 7, 8)[1], middle, steps=3)
    page.mouse.up()
    assert ["dis", "腹痛😀三天", "2–7"] in entities(page)
    page.click("#delete")
    assert entities(page) == [["sym", "腹痛", "2–4"]]


@needs_browser
def test_a_correction_outlives_a_service_that_does_not_answer_and_the_page(opened: Any, served: Any) -> None:
    page = opened()
    before = len(saved_lines(served))
    extract(page, "疮\n痈\n疽", by_line=True)
    page.route("**/v1/corrections", lambda route: route.abort())
    keys(page, "s", "s")
    page.locator("#corrections", has_text="2 wait in this browser").wait_for()
    page.unroute("**/v1/corrections")
    page.reload()
    page.locator("#corrections", has_text="2 corrections are saved").wait_for()
    assert len({line["text"] for line in saved_lines(served)[before:]}) == 2
    with page.expect_download() as download:
        page.click("#download")
    downloaded = Path(download.value.path()).read_text(encoding="utf-8")
    assert [json.loads(line) for line in downloaded.splitlines()] == saved_lines(served)


@needs_browser
def test_a_service_without_a_folder_leaves_the_corrections_to_be_downloaded(opened: Any, serve_with: Any) -> None:
    with serve_with() as served:
        page = opened(served.url)
        extract(page, TEXT)
        emptied(page)
        keys(page, "Escape", "Control+End", "1", "s")
        page.locator("#corrections", has_text="--corrections FOLDER").wait_for()
        with page.expect_download() as download:
            page.click("#download")
        line = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
        end = len(TEXT)
        assert line["text"] == TEXT
        assert line["entities"] == [{"start": end - 1, "end": end, "label": "dis", "text": "。"}]


@needs_browser
def test_a_hostile_text_is_only_text(opened: Any, served: Any) -> None:
    page = opened()
    paste = """text => {
      const data = new DataTransfer();
      data.setData("text/plain", text);
      const area = document.getElementById("pasted");
      area.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
      area.value = text;
    }"""
    page.evaluate(paste, HOSTILE)
    page.click("#extract")
    page.locator("#progress-text", has_text="1 of 1").wait_for()
    assert page.locator("#text").evaluate("root => root.textContent") == HOSTILE  # CRLF is kept
    assert page.locator("#text img, #text script, #queue img, #entities img").count() == 0
    keys(page, "Escape", "Control+Home", "Control+Home", "Shift+End", "3")
    assert page.title() == "spantune – entities"
    assert page.locator("#entities .surface").first.evaluate("row => getComputedStyle(row).unicodeBidi") == "isolate"


@needs_browser
def test_files_keep_their_ids_and_what_is_wrong_with_one_is_said(opened: Any, tmp_path: Path) -> None:
    page = opened()
    (tmp_path / "a.jsonl").write_text('{"id": "note-7", "text": "疮"}\n\n{"id": 8, "text": "痈"}\n', encoding="utf-8")
    (tmp_path / "b.txt").write_bytes("\ufeff疽\r\n疔\r\n".encode())
    (tmp_path / "c.jsonl").write_text('{"id": "x"}\n', encoding="utf-8")
    (tmp_path / "d.txt").write_bytes("发热".encode("gb18030"))
    page.set_input_files("#files", [tmp_path / name for name in ("a.jsonl", "b.txt", "c.jsonl", "d.txt")])
    page.locator("#progress-text", has_text="4 of 4").wait_for()
    assert page.inner_text("#document-id") == "note-7"
    assert sorted(page.locator("#queue .words").all_inner_texts()) == sorted("疮痈疽疔")
    assert page.inner_text("#alert").splitlines() == [
        'c.jsonl, line 1, has no text; expected is an object like {"id": …, "text": …}.',
        "d.txt is not UTF-8; save it as UTF-8 first.",
    ]


@needs_browser
def test_a_lower_threshold_shows_more_and_the_least_certain_text_is_first(opened: Any) -> None:
    page = opened()

    def answer(route: Any) -> None:
        scored = [("dis", 0, 1, 0.9), ("sym", 1, 2, 0.6)], [("dis", 0, 1, 0.7), ("bod", 1, 2, 0.8)]
        rows = [[dict(zip(("label", "start", "end", "score"), each, strict=True)) for each in row] for row in scored]
        lines = [
            {"index": index, "entities": row[:1], "below_threshold": row[1:], "status": "stopped", "problems": []}
            for index, row in enumerate(rows)
        ]
        route.fulfill(body="\n".join(map(json.dumps, lines)), content_type="application/x-ndjson")

    page.route("**/v1/extract", answer)
    extract(page, "疮痈\n疽疔", by_line=True)
    assert page.locator("#queue .words").all_inner_texts() == ["疽疔", "疮痈"]
    keys(page, "k")
    assert entities(page) == [["dis", "疽", "0–1"]] and page.inner_text("#place") == "1 of 2"
    page.locator("#threshold").fill("0.65")
    assert entities(page) == [["dis", "疽", "0–1"], ["bod", "疔", "1–2"]]
    page.locator("#filter input[value=dis]").uncheck()
    assert entities(page) == [["bod", "疔", "1–2"]] and "1 hidden" in page.inner_text("#entities-count")
    page.locator("#filter input[value=dis]").check()
    page.click("#own-threshold")
    assert entities(page) == [["dis", "疽", "0–1"]]


@needs_browser
def test_a_busy_service_is_waited_for_and_a_text_that_it_refuses_is_an_error_of_its_own(opened: Any) -> None:
    page = opened()
    asked = []

    def answer(route: Any) -> None:
        asked.append(route.request.post_data)
        error = {"code": "overloaded", "message": "full", "remedy": "wait"}
        if len(asked) == 1:
            route.fulfill(status=429, headers={"Retry-After": "1"}, body=json.dumps({"error": error}))
        elif "疽" in asked[-1]:
            route.fulfill(status=413, body=json.dumps({"error": {**error, "code": "large", "message": "too long"}}))
        else:
            route.continue_()

    page.route("**/v1/extract", answer)
    page.fill("#pasted", "疮\n疽\n痈")
    page.check("#by-line")
    page.click("#extract")
    page.locator("#progress-note", has_text="busy; going on in 1 s").wait_for()
    page.locator("#progress-text", has_text="2 of 3 texts extracted · 1 failed").wait_for()
    page.locator("#queue li", has_text="疽").click()
    assert page.inner_text("#problems") == "too long; wait" and page.is_disabled("#save")


@needs_browser
def test_a_token_is_asked_for_and_kept_by_the_tab(opened: Any, serve_with: Any) -> None:
    with serve_with(token="secret-token") as served:
        page = opened(served.url)
        for token in ("wrong", "secret-token"):
            page.locator("#token").fill(token)
            page.keyboard.press("Enter")
            if token == "wrong":
                page.locator("#token-wrong").wait_for()
        page.locator("#finds li").first.wait_for()
        extract(page, "疮")
        page.goto(served.url)
        page.locator("#finds li").first.wait_for()
        assert not page.locator("#token-dialog").is_visible()


@needs_browser
@pytest.mark.parametrize("scheme, width, locale", [("light", 390, "zh-CN"), ("dark", 1280, "en-US")])
def test_it_is_accessible_narrow_and_wide_in_both_languages(opened: Any, scheme: str, width: int, locale: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(width=width, color_scheme=scheme, locale=locale)
    assert page.inner_text("#open") == {"zh-CN": "打开文件…", "en-US": "Open files…"}[locale]
    extract(page, f"{TEXT}\n疮", by_line=True)
    page.locator("#queue-details").evaluate("details => { details.open = true; }")
    page.locator("#train summary").click()
    keys(page, "ArrowRight", "ArrowRight", "1", "ArrowRight", "2", "p")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert axe.Axe().run(page).response["violations"] == []
    keys(page, "?")
    assert axe.Axe().run(page).response["violations"] == []
    page.keyboard.press("Escape")
    page.click("#language")
    assert page.text_content("#open") == {"zh-CN": "Open files…", "en-US": "打开文件…"}[locale]
    page.reload()
    assert page.evaluate("() => document.documentElement.lang") == {"zh-CN": "en", "en-US": "zh-Hans"}[locale]


@needs_browser
@pytest.mark.slow
@pytest.mark.peers
def test_two_browsers_save_at_once_and_no_line_is_torn(serve_with: Any, tmp_path: Path) -> None:
    """Two browser processes each correct and save 50 texts as fast as keys can be pressed."""
    from playwright.async_api import Browser, async_playwright

    async def correct(browser: Browser, url: str, name: str) -> None:
        page = await browser.new_page()
        await page.goto(url)
        await page.fill("#pasted", "\n".join(f"{name}{number}疮" for number in range(50)))
        await page.check("#by-line")
        await page.click("#extract")
        await page.locator("#progress-text", has_text="50").wait_for()
        await page.locator("#stop").wait_for(state="hidden")
        for _ in range(50):
            await page.focus("#text")
            for key in ("Escape", "Control+Home", "Shift+End", "1", "s"):
                await page.keyboard.press(key)
        await page.wait_for_function("() => !Object.keys(localStorage).some(key => key.includes('correction.'))")

    async def both(url: str) -> None:
        async with async_playwright() as driver:
            browsers = [await driver.chromium.launch(executable_path=BROWSER) for _ in range(2)]
            await asyncio.gather(*(correct(each, url, name) for each, name in zip(browsers, "甲乙", strict=True)))
            for each in browsers:
                await each.close()

    with serve_with(corrections=tmp_path) as served:
        with ThreadPoolExecutor(1) as thread:  # the other browser's event loop has this thread
            thread.submit(lambda: asyncio.run(both(served.url))).result(120)
        lines = saved_lines(served)
    assert sorted(line["text"] for line in lines) == sorted(f"{name}{n}疮" for name in "甲乙" for n in range(50))
    for line in lines:
        assert (0, len(line["text"]), "dis") in {(e["start"], e["end"], e["label"]) for e in line["entities"]}
