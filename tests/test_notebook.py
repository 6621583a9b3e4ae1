"""demo.ipynb is a clean notebook that runs from top to bottom, with a checkpoint it has to make itself."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "demo.ipynb", as_version=nbformat.NO_CONVERT)


def test_notebook_is_valid_and_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)


def test_notebook_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PARALLAX_DEMO_DIR", str(tmp_path / "demo"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    NotebookClient(notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert len(pictures) == 3 and "mm MPJPE" in text and "fully supervised" in text
    assert re.search(r"lifted 50 frames: \d+ mm MPJPE", text) and re.search(r"fusion: \d+ mm MPJPE; .*bones of a person", text)
    assert re.search(r"a clip of 5 frames: \d+ mm MPJPE; [\d.]+ px from the 2D joints, corrected [\d.]+ px", text)
    assert "put together: 3 frames, people in 3 of them; 2 tracks" in text and "by a network: 3 frames" in text
    known, recovered = (float(n) for n in re.findall(r"mm MPJPE, ([\d.]+) mm at the best scale", text))
    assert text.count("from the truth\n") == 6 and recovered == pytest.approx(known, abs=1)
    assert not (tmp_path / "demo").exists() and (tmp_path / "demo-quick" / "student.pth.tar").exists()
