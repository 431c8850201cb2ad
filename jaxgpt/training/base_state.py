"""The state of a run that starts from another one: its weights and, where they are asked for, its moments."""

from contextlib import ExitStack

from jaxgpt.config.chat import ChatConfig
from jaxgpt.errors import InputError
from jaxgpt.run.base import Base
from jaxgpt.run.console import console
from jaxgpt.run.remote import opened_run
from jaxgpt.training.checkpoint import Checkpoints
from jaxgpt.training.step import Step, TrainState


def base_state(base: Base, chat: ChatConfig, step: Step) -> TrainState:
    """The state at step 0, on the step's mesh.

    The base's moments bring along the counts of steps that correct AdamW's bias; learning rates, betas and decay are
    this run's (nanochat 92d63d4 keeps the base's betas and AdamW decay: a config says them again).

    Raises:
      InputError: the checkpoint is damaged or gone, or has no such leaves.
      Failure: its store cannot be reached.
    """
    shapes = step.state_shapes
    wanted = {"params": shapes.params} | ({"opt_state": shapes.opt_state} if chat.optimizer == "base" else {})
    with ExitStack() as stack:
        run_dir, remote = stack.enter_context(opened_run(chat.base, "chat.base"))
        saved = Checkpoints(run_dir / "checkpoints", read_only=True, remote=remote, warn=console.warn)
        stack.enter_context(saved)
        chosen = saved.choose(base.step)
        assert chosen is not None
        if chosen.manifest.get("seal") != base.seal:
            raise InputError(f"{base} was replaced while this run started; start it again")
        try:
            found = saved.restore(wanted, chosen, is_part=True)
        except InputError as error:
            if "opt_state" not in wanted:
                raise
            raise InputError(f"{error}, or --chat.optimizer=fresh") from error
    state = step.init_state(found["params"])
    return state._replace(opt_state=found["opt_state"]) if "opt_state" in found else state
