"""The notebook runs from its first cell to its last, and says what it promises."""

from __future__ import annotations

import pytest

from tests.data import ROOT

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[dev]'")


def test_look_inside() -> None:
    import nbformat

    path = ROOT / "notebooks/look_inside.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # outputs are made, not stored
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs)
    assert "skateboarder.jpg" in text and "greedy" in text and "evaluate - " in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
