"""The notebook runs from top to bottom, in its short form, on the embedded model."""

from __future__ import annotations

from pathlib import Path

import pytest

from spantune.models import bundled

NOTEBOOK = Path(__file__).parents[1] / "examples" / "phi4_ner.ipynb"


@pytest.mark.slow
def test_every_cell_runs_and_the_extraction_is_grounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    if not bundled.is_available("gemma3-270m"):
        pytest.skip("the embedded model's package is not installed")
    monkeypatch.setenv("SHORT", "1")
    monkeypatch.setenv("RUNS", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    assert (tmp_path / "notebook" / "report.html").is_file()
    assert (tmp_path / "notebook" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_notebook_is_committed_without_outputs_and_speaks_both_languages() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
        else:
            assert any("一" <= character <= "鿿" for character in cell.source)
    assert any("phi4-cmeee.yaml" in cell.source for cell in notebook.cells)
