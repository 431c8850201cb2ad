"""A chat model's tasks while it is trained: at each evaluation, on the weights as they are.

Reference: nanochat 92d63d4 scripts/chat_sft.py, which asks all problems with letters, and 24 of each written task.
"""

import jax

from jaxgpt.chat.categorical import evaluate_categorical
from jaxgpt.chat.chat_core import chat_core, chat_core_letters, era_of
from jaxgpt.chat.generated import Writing, engines_of, evaluate_generated
from jaxgpt.chat.span_scores import SpanScorer
from jaxgpt.chat.task_run import open_tasks
from jaxgpt.config import Config
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.inference.trained import Trained
from jaxgpt.run.console import working
from jaxgpt.tasks.mixtures import Sources


class TasksInTraining:
    """The tasks of `chat.tasks`, opened."""

    def __init__(self, config: Config, tokenizer: Tokenizer | None, sources: Sources | None = None):
        """Reads the tasks; touches no device.

        Raises:
          InputError: see `open_tasks`; or parameters are split, or there are several processes, or no tokenizer.
        """
        name, mesh, hosts = config.chat.tasks, config.mesh, config.hosts
        if mesh.fsdp * mesh.tensor > 1 or hosts.count > 1:
            raise InputError(
                f"chat.tasks={name} needs the whole model on each device of one process, mesh.fsdp={mesh.fsdp}, "
                f"mesh.tensor={mesh.tensor}, hosts.count={hosts.count}; leave it out, and use jaxgpt evaluate --tasks"
            )
        if tokenizer is None:
            raise InputError(f"chat.tasks={name} needs a tokenizer with chat tokens; leave it out")
        self._config, self._tokenizer = config, tokenizer
        self._tasks = open_tasks(name, sources or Sources(), flag="chat.tasks")

    def __call__(self, params: dict[str, jax.Array], mesh: jax.sharding.Mesh) -> dict[str, float]:
        """Accuracy by task, as in accuracy_arc_easy, and chat_core, where the tasks are those of an era.

        Raises:
          InputError: see `evaluate_categorical` and `evaluate_generated`.
        """
        config, tokenizer = self._config, self._tokenizer
        trained = Trained(config, config.model, params, tokenizer, config.train.dtype, mesh, "the run")
        scorer, engines = SpanScorer(trained), engines_of(trained)
        found: dict[str, float] = {}
        for name, task in self._tasks.items():
            with working(f"asking {name}"):
                if task.kind == "letter":
                    found[name] = evaluate_categorical(task, scorer, tokenizer).accuracy
                else:
                    n_problems = config.chat.task_problems
                    written = evaluate_generated(task, engines, tokenizer, Writing(), max_problems=n_problems)
                    found[name] = written.accuracy
        era = era_of(found)
        means = {"chat_core": chat_core(found, era) if era else None, "chat_core_letters": chat_core_letters(found)}
        named = {f"accuracy_{name.lower().replace('-', '_')}": accuracy for name, accuracy in found.items()}
        return named | {name: mean for name, mean in means.items() if mean is not None}
