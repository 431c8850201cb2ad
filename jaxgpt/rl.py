"""Reinforcement learning: trains a run's model on its own answers to questions, by their rewards, as a config says.

The loop is `jaxgpt train`'s, and so are resume, checkpoints and exit codes. What differs is in the config: rl.samples
answers to each question are drawn from the newest parameters, with the calculator as their tool, and compared with each
other. Questions are conversations (data.sampling) whose last message ends with "#### number"; GSM8K's rule judges.

  jaxgpt prepare rl_sums --mixture rl_sums
  jaxgpt rl --config rl_cpu --from runs/sft_cpu
  jaxgpt rl --config rl_gsm8k --from runs/sft_d20_2025

The console and metrics.jsonl have the reward, the answers' length and pass@k. Method: GRPO without reference model and
clip (arXiv:2402.03300), as nanochat's chat_rl.py; see jaxgpt/chat/advantages.py.
"""

import runpy

from jaxgpt.errors import InputError, answer_early, run_verb
from jaxgpt.run.arguments import base_arguments, base_parser

PARSER = base_parser("jaxgpt rl", __doc__, "--config rl_cpu --from runs/sft_cpu")


def to_train(args: list[str]) -> list[str]:
    """The arguments of `jaxgpt train` that are meant.

    Raises:
      InputError: the config is not for RL, or nothing says what to start from.
    """
    config, flags = PARSER.read_run(args)
    if not config.is_rl:
        raise InputError(f"rl.samples=0 of --config={flags.config} is no RL; choose another config, or --rl.samples=16")
    return base_arguments(config, flags)


if __name__ == "__main__":
    answer_early(to_train)


def main(args: list[str]) -> int:
    return runpy.run_module("jaxgpt.train")["main"](to_train(args))


if __name__ == "__main__":
    run_verb(main)
