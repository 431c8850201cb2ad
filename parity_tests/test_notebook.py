"""docs/colab.ipynb runs from its first cell to its last, on a CPU, and does not run out of date."""

import os

import nbclient
import nbformat

from jaxgpt.config import Config, DataConfig, EvalConfig, GPT2Config, TrainConfig, to_source
from parity_tests.helpers.environment import REPO, environment
from parity_tests.helpers.fake_clusters import JAXGPT, write_programs

TINY = Config(
    data=DataConfig(dir="data/pydocs"),
    model=GPT2Config(seq_len=16, n_layer=1, n_head=1, n_embd=16),
    train=TrainConfig(batch_tokens=64, micro_batch_size=4, dtype="float32"),
    eval=EvalConfig(tokens=256),
)
NOTEBOOK = REPO / "docs" / "colab.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    """With few steps of a small model; jaxgpt is installed already, so SOURCE stays empty."""
    (tmp_path / "tiny.py").write_text(to_source(TINY))
    programs = write_programs(tmp_path, jaxgpt=JAXGPT)
    settings = {"JAXGPT_CONFIG": "tiny.py", "JAXGPT_STEPS": "3", "PYTHONPATH": str(REPO)}
    for name, value in (environment() | settings | {"PATH": f"{programs}:{os.environ['PATH']}"}).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    done = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = ["".join(str(output) for output in cell.get("outputs", ())) for cell in done.cells]
    assert any("CpuDevice" in text for text in shown)
    assert any("step 3 " in text and "done:" in text for text in shown), shown
    assert any("image/png" in text for text in shown)
    assert "Return a " in shown[-2]
    assert (tmp_path / "runs" / "notebook" / "loss.png").is_file()


def test_the_notebook_is_stored_without_output():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
