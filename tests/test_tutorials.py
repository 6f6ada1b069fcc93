"""The committed notebooks are as they should be read; that they run is tested in tutorials/ itself."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
NOISE = re.compile(r"/home/|/work/|/tmp/|site-packages|[A-Za-z]Warning:|it/s\]|\d%\|")


def test_that_there_are_notebooks_and_all_are_listed():
    listed = (Path(__file__).parents[1] / "tutorials/README.md").read_text()
    assert NOTEBOOKS
    assert set(re.findall(r"\((\S+\.ipynb)\)", listed)) == {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_complete_and_without_noise(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output.output_type in ("stream", "display_data", "execute_result")
        assert output.get("name") != "stderr"
        text = output.get("text") or output["data"].get("text/plain", "")
        assert not NOISE.search(text), text
