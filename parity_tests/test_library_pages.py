"""The code of docs/library.md and docs/library.ipynb runs, on a small run in the place of quickstart's."""

import re
import string
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from jaxgpt.config import GPT2Config
from jaxgpt.data.tokenizer import CharTokenizer
from parity_tests.helpers.saved_runs import save_run

REPO = Path(__file__).parents[1]
PAGE = (REPO / "docs" / "library.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CHARS = CharTokenizer("\n" + string.printable[:95])
MODEL = GPT2Config(n_layer=1, n_head=2, n_embd=32, seq_len=64, vocab_size=96)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    save_run(place / "runs" / "quickstart", MODEL, CHARS)
    return place


def test_the_page(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names: dict[str, object] = {"__name__": "page"}
    for block in BLOCKS:
        exec(compile(block, "docs/library.md", "exec"), names)
    assert len(BLOCKS) == 7
    shown = capsys.readouterr().out
    assert (
        shown.startswith("<LanguageModel runs/quickstart step 1: gpt2") and "ids hold 1000000, outside [0, 96)" in shown
    )


def test_the_notebook(place, monkeypatch):
    """In a kernel of its own, as Jupyter runs it."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    notebook = nbformat.read(REPO / "docs" / "library.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs; they grow stale"
    client = nbclient.NotebookClient(
        notebook, timeout=300, startup_timeout=300, resources={"metadata": {"path": str(place)}}
    )
    kernel = client.create_kernel_manager().kernel_spec
    assert kernel is not None
    kernel.argv[0] = sys.executable
    client.execute()
    shown = ["".join(map(text_of, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"]
    assert shown[0].startswith("<LanguageModel runs/quickstart step 1: gpt2")
    assert len(shown[1]) > 100 and len(shown[2]) == 60 and "expected" in shown[3] and "GPT2" in shown[4]
    assert shown[5].endswith("' are red, violets are blue.'") and shown[6] == ""


def text_of(output) -> str:
    return output.get("text") or output["data"]["text/plain"]
