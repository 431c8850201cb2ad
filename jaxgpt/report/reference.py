"""Published results of nanochat and its ports: rows to set a run beside. Each is one run; a rerun differs.

Sources: nanochat's README of October 2025, reports that its users published, the ports nanochat-jax and Ascend 910B;
GPT-2's CORE is from nanochat's bundle of evaluations, on 1,000 items a task. Runs of one recipe differ: d20's CORE was
between 0.19 and 0.22. ChatCORE is over the tasks that the row has: SpellingBee was added in November 2025. Only the
Ascend port's does not follow from its tasks.
"""

from typing import NamedTuple

from jaxgpt.run.history import STAGES


class Published(NamedTuple):
    """One stage of a published run.

    Attributes:
      run: which, with its date.
      stage: one of STAGES.
      scores: metric -> score.
    """

    run: str
    stage: str
    scores: dict[str, float]


TASKS = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval", "SpellingBee", "ChatCORE")


def _run(name: str, core: float | None, **stages: tuple[float | None, ...]) -> list[Published]:
    """The stages of a run; of each the scores in the order of TASKS, None where there is none."""
    base = [Published(name, "base", {"CORE": core})] if core is not None else []
    later = [
        Published(name, stage, {task: score for task, score in zip(TASKS, scores, strict=True) if score is not None})
        for stage, scores in stages.items()
    ]
    assert all(row.stage in STAGES for row in later)
    return [*base, *later]


PUBLISHED = (
    *_run("d20, README, 2025-10", 0.2219,
          mid=(0.3561, 0.2875, 0.3111, 0.0250, 0.0671, None, 0.0730),
          sft=(0.3876, 0.2807, 0.3151, 0.0455, 0.0854, None, 0.0884),
          rl=(None, None, None, 0.0758, None, None, None)),
    *_run("d20, user, 2025-10-16", 0.2055,
          mid=(0.2605, 0.2679, 0.2547, 0.0334, 0.0671, None, 0.0289),
          sft=(0.2618, 0.2432, 0.2599, 0.0387, 0.0549, None, 0.0227)),
    *_run("d20, user, 2025-11-11", 0.1910,
          mid=(0.4478, 0.3311, 0.3315, 0.0500, 0.0915, 1.0, 0.2703),
          sft=(0.4684, 0.3362, 0.3314, 0.0697, 0.0915, 1.0, 0.2793)),
    *_run("d26, user, 2026-01", None,
          mid=(0.5614, 0.3908, 0.3711, 0.0705, 0.1098, 0.9883, 0.3222)),
    *_run("d24, user, 2026-03-05", 0.2504,
          sft=(0.6288, 0.5111, 0.3890, 0.0796, 0.1037, 0.9922, 0.3690)),
    *_run("d24, user, 2026-07, fp8", 0.2561,
          sft=(0.6271, 0.5034, 0.3603, 0.0872, 0.1524, 1.0, 0.3712)),
    *_run("d24, nanochat-jax", 0.27409,
          sft=(0.6612, 0.5068, 0.3708, None, None, None, None)),
    *_run("d20, Ascend 910B", 0.1608,
          sft=(0.2721, 0.2339, 0.2993, 0.0283, 0.0420, None, 0.0531)),
    Published("GPT-2 1.6B", "base", {"CORE": 0.256525}),
)  # fmt: skip
