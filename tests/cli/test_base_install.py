"""The installation without the extra `train`: which commands work, and what the others say is missing."""

from __future__ import annotations

from pathlib import Path

from helpers.base_install import run_without_train

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.yaml"


def test_corpora_files_and_runs_need_no_torch_and_the_rest_says_what_to_install(
    corpus_file: Path, tmp_path: Path
) -> None:
    calls = [
        ["data", "inspect", corpus_file, "--html", "page.html"],
        ["data", "check", corpus_file],
        ["data", "convert", corpus_file, "b.jsonl", "--to", "native"],
        ["data", "split", corpus_file, "--to", "splits"],
        ["evaluate", "--gold", corpus_file, "--predicted", "b.jsonl", "--report", "scored"],
        ["compare", "--gold", corpus_file, corpus_file, "b.jsonl", "--report", "compared"],
        ["runs", "."],
        ["init", "--list"],
        ["init", corpus_file, "--out", "recipe.yaml"],
        ["plan", RECIPE],
        ["train", RECIPE],
        ["demo"],
        ["data", "inspect", corpus_file, "--tokenizer", "bundled:gemma3-270m"],
        ["extract", "absent", corpus_file],
    ]
    outcomes = run_without_train(calls, tmp_path)
    assert [(code, err) for code, _, err in outcomes[:9] if code] == []
    made = ("page.html", "b.jsonl", "splits/dev.jsonl", "scored/report.html", "compared/report.html", "recipe.yaml")
    assert all((tmp_path / name).is_file() for name in made)
    assert outcomes.pop()[2].startswith("error: absent: no config.yaml here")  # reported before torch is needed
    for code, out, err in outcomes[9:]:
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("error: training or running a model needs torch and other packages, of which ")
        assert err.endswith("[train]'\n")
    assert not (tmp_path / "runs").exists()
