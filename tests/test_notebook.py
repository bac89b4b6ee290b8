"""The notebook runs from top to bottom with a small model, and its stored outputs are those of a real run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "own_labels.ipynb"
LARGEST = 300_000  # bytes


@pytest.mark.no_cover
@pytest.mark.slow
def test_every_cell_runs(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    short = "train.max_steps=2 train.eval_steps=2 data.dev_limit=2 data.test_limit=2 extract.max_new_tokens=24"
    for name, value in {"RUNS": tmp_path, "MODEL": tiny_folder, "OVERRIDES": short}.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    assert (tmp_path / "titles" / "report.html").is_file()
    assert (tmp_path / "titles" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_notebook_speaks_both_languages_and_keeps_its_outputs_which_name_no_machine() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < LARGEST
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home)\b", text)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in codes] == list(range(1, len(codes) + 1))
    assert not any(output.output_type == "error" for cell in codes for output in cell.outputs)
    shown = [output.data.get("text/html", "") for cell in codes for output in cell.outputs if "data" in output]
    assert sum('class="drawn"' in page for page in shown) >= 2 and any("<iframe srcdoc=" in page for page in shown)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert any("一" <= character <= "鿿" for character in cell.source)
    assert any("phi4-cmeee" in cell.source for cell in notebook.cells)
