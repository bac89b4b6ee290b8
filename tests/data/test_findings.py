"""`data check`: the name, count, place and example of every finding, the output of the command, and real files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.real import SHARED
from spantune.data import Demands, Report, Tally, check, read_source
from spantune.data.findings import Finding
from spantune.data.raw.document import Defect
from spantune.data.rules import Rule

Command = Callable[..., Any]
ROOT = Path(__file__).parents[2]
FEVER = {"text": "发热", "entities": [{"start": 0, "end": 2, "label": "sym", "text": "发热"}]}


def write(path: Path, *records: object) -> Path:
    """Write a JSONL file; a string is written as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_bytes(("\n".join(lines) + "\n").encode())
    return path


def native(text: str, *rows: tuple[Any, ...], **more: object) -> dict[str, Any]:
    """Return a native record; rows are (start, end, label) or (start, end, label, text)."""
    names = ("start", "end", "label", "text")
    return {"text": text, "entities": [dict(zip(names, row, strict=False)) for row in rows], **more}


def checked(*paths: Path, demands: Demands | None = None, format: str | None = None) -> dict[str, Finding]:
    report = check([read_source(path, format) for path in paths], demands or Demands())
    return {finding.name: finding for finding in report.findings}


CASES: dict[str, tuple[list[object], int, int, str]] = {
    # By name: records after a correct one at line 1, count, line of the first finding, text in its example.
    "unreadable": (["{", "[]"], 2, 2, "not JSON at column 2"),
    "lone-surrogate": (['{"text": "\\ud83d", "entities": []}'], 1, 2, "U+D83D"),
    "repeated-id": ([native("咳", id="a"), native("嗽", id="a")], 1, 3, "'a'"),
    "surface-mismatch": ([native("腹痛三天", (1, 3, "sym", "腹痛"))], 1, 2, "[1, 3), but '痛三' stands there"),
    "end-mismatch": ([native("腹痛三天", (0, 1, "sym", "腹痛"))], 1, 2, "'腹痛' (sym) [0, 1), but '腹' stands there"),
    "empty-span": ([native("腹痛", (1, 1, "sym"))], 1, 2, "'' (sym) [1, 1)"),
    "out-of-range": ([native("腹痛", (0, 9, "sym"), (-1, 1, "sym"))], 2, 2, "but the text has 2 characters"),
    "duplicate-annotation": ([native("腹痛", *[(0, 2, "sym", "腹痛")] * 3)], 2, 2, "'腹痛' (sym) [0, 2)"),
    "two-labels": ([native("腹痛", (0, 2, "sym"), (0, 2, "dis"))], 1, 2, "'腹痛' [0, 2): dis, sym"),
    "crossing": ([native("肺血管梗阻", (0, 4, "a"), (3, 5, "b"), (0, 3, "a"))], 2, 2, "and '梗阻' [3, 5)"),
    "boundary-inconsistency": (
        [native("急性阑尾炎", (0, 5, "dis")), native("患急性阑尾炎", (3, 6, "dis"))],
        1,
        3,
        "'急性阑尾炎' 1 times, only '阑尾炎' in it 1 times (dis)",
    ),
    "rare-label": ([], 1, 1, "sym: 1"),
    "duplicate-text": ([FEVER, FEVER], 2, 2, "'发热', as 'corpus-1' at"),
    "conflicting-duplicate": ([native("发热")], 1, 2, "'发热', as 'corpus-1' at"),
    "near-duplicate": ([native("发热！", (0, 2, "sym"))], 1, 2, "'发热！', as 'corpus-1' at"),
    "conflicting-near-duplicate": ([native("发热！")], 1, 2, "'发热' (sym)"),
    "empty-text": ([native(""), native(" \u3000")], 2, 2, "''"),
    "control-character": ([native("咳\x07嗽"), native("a\rb"), native("a\u2028b"), native("a\tb\nc")], 3, 2, "U+0007"),
    "zero-width-character": ([native("咳\u200b嗽"), native("a\ufeff"), native("co\u00adop")], 3, 2, "U+200B at"),
    "mixed-normalisation": ([native("caf\u00e9"), native("cafe\u0301s")], 1, 3, "'e\u0301' at character 3"),
    "long-text": ([native("咳" * 510), native("嗽" * 511)], 1, 3, "511 characters"),
    "repeated-surface": ([native("咳，咳", (2, 3, "sym"))], 1, 2, "'咳'"),
    "unverified": ([native("腹痛", (0, 2, "sym"))], 1, 2, "'腹痛' (sym) [0, 2)"),
    "without-entities": ([native("腹痛"), native("头痛")], 2, 2, "'腹痛'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_finding(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples are cut at a fixed length and contain file names
    records, count, line, example = CASES[name]
    path = write(Path("corpus.jsonl"), FEVER, *records)
    found = checked(path)
    assert name in found, found
    assert (found[name].count, found[name].where) == (count, f"{path}:{line}")
    assert example in found[name].example
    assert found[name].message.startswith(Rule(name).message)
    assert (found[name].severity, found[name].fixable) == (Rule(name).severity, Rule(name).fixable)


def test_meta_that_no_file_can_hold_is_a_finding_by_its_field(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", FEVER, '{"text": "a", "entities": [], "meta": {"x": {"y": 1e999}, "z": "\\ud83d"}}'
    )
    finding = checked(path)["meta-left-out"]
    assert (finding.count, finding.where) == (2, str(path))
    assert "a number too large: x.y" in finding.example


def test_a_right_corpus_has_no_finding(tmp_path: Path) -> None:
    signs = "咳嗽痰喘热寒汗渴痛麻痒肿胀晕眩吐泻秘悸"
    rows = [native(f"患者{sign}{other}。", (2, 4, "sym", sign + other)) for sign in signs for other in "甚轻"]
    assert checked(write(tmp_path / "right.jsonl", *rows)) == {}


def test_one_fault_is_one_finding(tmp_path: Path) -> None:
    """An entity that can be repaired is checked at its repaired place; others are left out of further checks."""
    wrong = native("发热", (5, 7, "sym", "发热"))
    lost = native("咳嗽咳嗽", (1, 3, "sym", "咳嗽"))
    assert set(checked(write(tmp_path / "a.jsonl", FEVER, wrong, lost))) == {
        "out-of-range",
        "surface-mismatch",
        "duplicate-text",
        "rare-label",
    }


def test_composed_text_alone_is_not_mixed(tmp_path: Path) -> None:
    assert "mixed-normalisation" not in checked(write(tmp_path / "a.jsonl", FEVER, native("café")))
    assert "mixed-normalisation" not in checked(write(tmp_path / "b.jsonl", FEVER, native("cafe\u0301")))


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(FEVER).encode() + b"\r\n" + json.dumps(native("咳")).encode() + b"\r\n"
    )
    found = checked(path)
    assert (found["byte-order-mark"].count, found["crlf"].count, found["crlf"].where) == (1, 2, str(path))


def test_no_negatives_needs_a_hundred_documents(tmp_path: Path) -> None:
    rows = [native(chr(0x4E00 + number), (0, 1, "x")) for number in range(100)]
    assert "no-negatives" in checked(write(tmp_path / "a.jsonl", *rows))
    assert "no-negatives" not in checked(write(tmp_path / "b.jsonl", *rows[1:]))
    assert "no-negatives" not in checked(write(tmp_path / "c.jsonl", *rows[1:], native("无")))


def test_defects_of_formats(tmp_path: Path) -> None:
    def row(start: int, end: int, surface: str) -> dict[str, Any]:
        return {"start_idx": start, "end_idx": end, "entity_text": surface, "entity_label": "sym"}

    small = {"text": "咳嗽发热", "entities": [row(0, 0, "咳嗽"), row(2, 2, "发热")]}
    found = checked(write(tmp_path / "small.jsonl", small, {"text": "头痛", "entities": [row(0, 0, "头痛")]}))
    assert (found["end-one-too-small"].count, found["end-one-too-small"].severity) == (3, "error")
    assert found["end-one-too-small"].message.endswith("; all 3 entities of small.jsonl")
    found = checked(write(tmp_path / "half.jsonl", small | {"entities": [row(0, 2, "咳嗽"), row(2, 2, "发热")]}))
    assert found["end-half-open"].message.endswith("; 1 of the 2 entities of half.jsonl")


def test_findings_are_in_the_order_of_severity_and_of_the_rules() -> None:
    tally = Tally()
    tally.add_defect(Defect(Rule.LINE_BREAK_AS_SPACE, "an odd thing", tolerated=True), "f:1", "'x'")
    tally.add_defect(Defect(Rule.BROKEN_TRANSITION, "a bad thing", tolerated=False), "f:2", "'y'")
    tally.add(Rule.TWO_LABELS, "f:3", "z" * 500)
    tally.explain(Rule.CROSSING, "not there")
    worse, labels, odd = tally.findings()
    assert (worse.name, worse.severity, worse.example) == ("broken-transition", "error", "'y': a bad thing")
    assert (odd.name, odd.severity, odd.fixable) == ("line-break-as-space", "warning", True)
    assert len(labels.example) == 120


def test_the_rule_of_a_whole_file_is_named(tmp_path: Path) -> None:
    rows = [native(f"患者{sign}痛。", (3, 5, "sym", f"{sign}痛")) for sign in "头腹胸背"]
    found = checked(write(tmp_path / "one.jsonl", *rows))["surface-mismatch"]
    rule = "offsets are 1-based: each start is 1 too large"
    assert found.message.endswith(f"; all 4 entities of one.jsonl ({rule}), --fix mends 4")

    rows = [native(f"😀{sign}痛。", (2, 4, "sym", f"{sign}痛")) for sign in "头腹胸背"]
    found = checked(write(tmp_path / "utf16.jsonl", *rows))["surface-mismatch"]
    assert "(offsets count UTF-16 code units, not code points), --fix mends 4" in found.message

    rows = [native(f"{sign}痛。", (0, 1, "sym", f"{sign}痛")) for sign in "头腹胸背"]
    found = checked(write(tmp_path / "ends.jsonl", *rows))["end-mismatch"]
    assert found.message.endswith("; all 4 entities of ends.jsonl (each end is 1 too small), --fix mends 4")

    twice = [native("痛头痛头痛", (1, 2, "sym", "痛")), native("咳", (0, 1, "sym", "嗽"))]
    found = checked(write(tmp_path / "open.jsonl", FEVER, *twice))["surface-mismatch"]
    assert found.message.endswith("; 2 of the 3 entities of open.jsonl, --fix mends 0")


@pytest.mark.parametrize(("starts", "ends"), [(1, 1), (1, 2), (0, 1), (0, -1)])
def test_ways_to_count_in_cmeee(tmp_path: Path, starts: int, ends: int) -> None:
    """1-based inclusive, 1-based half-open, 0-based half-open, and ends that are one too small: all can be repaired."""
    names = ("start_idx", "end_idx", "type", "entity")
    spans = [(3, 4, f"{sign}痛") for sign in "头腹胸背"] + [(0, 0, "患")]
    rows = [
        {
            "text": f"患者诉{surface}。",
            "entities": [dict(zip(names, (start + starts, end + ends, "sym", surface), strict=True))],
        }
        for start, end, surface in spans
    ]
    found = checked(write(tmp_path / "a.jsonl", *rows))
    wrong = {name: one for name, one in found.items() if one.severity == "error"}
    assert sum(one.count for one in wrong.values()) == 5
    rule = "1-based" if starts else f"each end is 1 too {'large' if ends == 1 else 'small'}"
    assert all(rule in one.message and f"--fix mends {one.count}" in one.message for one in wrong.values())


def test_labels_of_a_schema(tmp_path: Path) -> None:
    found = checked(write(tmp_path / "a.jsonl", FEVER), demands=Demands(labels=("dis", "bod")))
    assert (found["label-outside"].count, found["label-outside"].example) == (1, "'发热' (sym) [0, 2)")
    assert found["rare-label"].count == 3  # two labels of the schema that never occur, and one that is not in it


def test_splits_share_texts(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", FEVER, native("咳嗽两天", (0, 2, "sym")))
    test = write(tmp_path / "test.jsonl", native("头痛"), FEVER, native("咳嗽两天。"))
    found = checked(train, test)
    assert (found["shared-text"].count, found["shared-text"].where) == (1, f"{test}:2")
    assert found["shared-text"].severity == "error"
    assert found["conflicting-shared-near-duplicate"].where == f"{test}:3"


def test_tokens(tmp_path: Path) -> None:
    demands = Demands(max_tokens=3, count_tokens=lambda texts: [len(text.encode()) for text in texts])
    found = checked(write(tmp_path / "a.jsonl", native("abc"), native("咳嗽")), demands=demands)
    assert (found["too-long"].count, found["too-long"].example) == (1, "6 tokens, 3 allowed: '咳嗽'")


# --- the command -------------------------------------------------------------------------------------------------


def test_command_prints_one_json_object(command: Command, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", FEVER, "{", native("咳", (0, 4, "sym")))
    done = command("data", "check", path, "--json")
    assert (done.code, done.out.count("\n")) == (1, 1)
    report = json.loads(done.out)
    assert {key: report[key] for key in ("files", "documents", "entities", "errors", "warnings")} == {
        "files": [str(path)],
        "documents": 2,
        "entities": 2,
        "errors": 2,
        "warnings": 1,
    }
    assert [finding["name"] for finding in report["findings"]] == ["unreadable", "out-of-range", "rare-label"]
    keys = {"name", "severity", "count", "fixable", "message", "where", "example"}
    assert all(set(finding) == keys for finding in report["findings"])


def test_command_prints_a_table(command: Command, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", FEVER)
    done = command("data", "check", path)
    assert done.code == 0  # warnings are no errors
    assert "warning" in done.out and "rare-label" in done.out
    assert done.err == "1 documents, 1 entities: 0 errors, 1 warnings\n"


def test_command_takes_labels(command: Command, recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", FEVER)
    assert command("data", "check", path, "--labels", "sym, dis").code == 0
    assert command("data", "check", path, "--labels", "dis").code == 1
    assert command("data", "check", path, "--recipe", recipe_file()).code == 0
    assert command("data", "check", path, "--recipe", recipe_file(task={"labels": ["dis"]})).code == 1


def test_command_counts_tokens(command: Command, tiny_folder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", FEVER, native("咳"))
    done = command("data", "check", path, "--json", "--tokenizer", tiny_folder, "--max-tokens", 4)
    found = {finding["name"]: finding for finding in json.loads(done.out)["findings"]}
    assert (found["too-long"]["count"], found["too-long"]["where"]) == (1, f"{path}:1")
    assert done.code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", ","], "names no label"),
        (["--labels", "a", "--recipe", "r.yaml"], "either --labels or --recipe"),
        (["--max-tokens", "5"], "go together"),
        (["--tokenizer", "x"], "go together"),
        (["--tokenizer", "nowhere", "--max-tokens", "5"], "nowhere"),
        (["--recipe", "nowhere.yaml"], "nowhere.yaml"),
        (["--format", "cmee"], "did you mean 'cmeee'"),
    ],
)
def test_command_refuses_wrong_use(command: Command, tmp_path: Path, options: list[str], message: str) -> None:
    done = command("data", "check", write(tmp_path / "a.jsonl", FEVER), *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert message in done.err


def test_command_refuses_an_unreadable_file(command: Command, tmp_path: Path) -> None:
    assert command("data", "check", tmp_path / "none.jsonl").err.endswith("there is no such file; check the path\n")
    (tmp_path / "gbk.txt").write_bytes(b"[fever|x]\n\xb7\xa2\n")
    done = command("data", "check", tmp_path / "gbk.txt")
    assert done.code == 2 and "gbk.txt:2: not UTF-8" in done.err


def test_a_line_of_json_that_is_not_utf8_is_a_finding(command: Command, tmp_path: Path) -> None:
    lines = [json.dumps(FEVER).encode(), b'{"text": "\xb7\xa2"}', json.dumps({**FEVER, "id": "last"}).encode()]
    (tmp_path / "gbk.jsonl").write_bytes(b"\n".join(lines))
    done = command("data", "check", tmp_path / "gbk.jsonl", "--json")
    found = json.loads(done.out.splitlines()[-1])
    assert done.code == 1 and "not UTF-8: byte 0xB7" in done.out and found["documents"] == 2


# --- the page and the real files ----------------------------------------------------------------------------------


def test_the_page_lists_every_finding() -> None:
    page = (ROOT / "docs" / "data-check.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \| .+ \| (.+) \|$", page, re.MULTILINE)
    assert [(name, severity) for name, severity, _ in rows] == [(rule, rule.severity) for rule in Rule]
    assert {name for name, _, mend in rows if mend == "–"} == {rule for rule in Rule if not rule.fixable}


def real(*names: str) -> tuple[Report, dict[str, int]]:
    paths = [SHARED / name for name in names]
    if not paths or not all(path.exists() for path in paths):
        pytest.skip("the real data are not here")
    report = check([read_source(path) for path in paths], Demands())
    return report, {finding.name: finding.count for finding in report.findings}


def test_cmeee_v1_train() -> None:
    report, counts = real("cmeee_v1/train.jsonl")
    assert (report.documents, report.entities, report.errors) == (15000, 61794, 0)
    expected = {"duplicate-text": 43, "long-text": 35, "two-labels": 33, "crossing": 5, "no-negatives": 1}
    assert {name: counts[name] for name in expected} == expected
    assert round(counts["repeated-surface"] / report.entities, 2) == 0.18


def test_cmeee_v1_dev_and_v2_share_their_texts() -> None:
    report, counts = real("cmeee_v1/dev.jsonl", "cmeee_v2_few_shot/cmeee.jsonl")
    assert (report.documents, counts["end-one-too-small"]) == (5000, 13086)
    assert counts["shared-text"] == 2500
    assert round(1 - counts["conflicting-shared-text"] / 2500, 2) == 0.25  # the fraction of texts that agree exactly


def test_cmeee_v1_train_and_dev_share_none() -> None:
    _, counts = real("cmeee_v1/train.jsonl", "cmeee_v1/dev.jsonl")
    assert "shared-text" not in counts


def test_label_studio_exports_with_repeated_texts_and_annotations() -> None:
    report, counts = real("label_studio_zh/label_studio_full.json")
    assert (report.documents, report.entities, counts["duplicate-text"]) == (160, 514, 120)
    report, counts = real("label_studio_zh/label_studio_slim.json")
    assert (report.documents, report.entities, counts["duplicate-annotation"]) == (121, 484, 3)


def test_weibo_train_and_test_share_texts_and_have_broken_tags() -> None:
    _, counts = real(*(f"weibo_ner/{path.name}" for path in sorted((SHARED / "weibo_ner").glob("*conll*t*"))))
    assert (counts["shared-text"], counts["broken-transition"]) == (38, 14)
