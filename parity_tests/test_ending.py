"""How a training loop ends: what is printed, which exit code, and that everything is closed."""

from types import SimpleNamespace
from typing import Any

import pytest

from jaxgpt import signals
from jaxgpt.errors import EXIT_DIVERGED, EXIT_DONE
from jaxgpt.run.ending import ending
from jaxgpt.run.meter import Diverged


@pytest.fixture
def parts():
    """What a loop hands over, as far as an ending looks at it."""
    closed = []
    yield SimpleNamespace(
        closed=closed,
        feed=SimpleNamespace(close=lambda: closed.append("feed")),
        files=[SimpleNamespace(close=lambda: closed.append("file"))],
        reader=SimpleNamespace(summary=lambda: "best_fit packing discarded 2.5% of tokens"),
        meter=SimpleNamespace(n_skipped=0),
        saved=SimpleNamespace(reject_from=lambda step: 6 if step > 6 else None),
    )
    signals.enter(signals.RUNNING)


def end(parts: Any, error: Exception | None = None) -> int:
    with ending(parts.feed, parts.files, parts.reader, parts.meter, parts.saved) as found:
        if error:
            raise error
    return found.exit_code


def test_skipped_steps_are_told_when_a_run_is_done(parts, capsys):
    """Faults: F8, C78."""
    assert end(parts) == EXIT_DONE and parts.closed == ["feed", "file"]
    assert capsys.readouterr().out == "best_fit packing discarded 2.5% of tokens\n"
    for n, words in ((1, "1 step was skipped"), (3, "3 steps were skipped")):
        parts.meter.n_skipped = n
        assert end(parts) == EXIT_DONE
        assert f"warning: {words}: loss or gradient was not finite" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("n_done", "advice"), [(9, "lower optim.lr and continue with --resume-from 6"), (3, "lower optim.lr")]
)
def test_a_run_that_diverged_names_the_checkpoint_to_resume_from(parts, capsys, n_done, advice):
    """Faults: F3, C77, C80."""
    parts.meter.n_skipped = 5
    assert end(parts, Diverged("not finite", n_done)) == EXIT_DIVERGED and parts.closed == ["feed", "file"]
    assert capsys.readouterr().out.splitlines()[0] == f"stopped: not finite; {advice}"


def test_other_errors_pass_through_and_close_everything(parts):
    with pytest.raises(ZeroDivisionError):
        end(parts, ZeroDivisionError())
    assert parts.closed == ["feed", "file"]
