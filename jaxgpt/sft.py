"""Midtraining and SFT: trains a run's model on conversations, as a config says.

The loop is `jaxgpt train`'s, and so are resume, checkpoints and exit codes. What differs is in the config: its data
are conversations (data.sampling), its chat section says how they become rows and which tokens count, and the
weights, the tokenizer and, with chat.optimizer=base, the optimizer's moments are those of the run that --from names.

  jaxgpt prepare chat --input conversations.jsonl
  jaxgpt sft --config sft_cpu --from runs/nanochat_cpu
  jaxgpt sft --config sft_d20_2025 --from runs/mid_d20_2025
"""

import runpy

from jaxgpt.errors import InputError, answer_early, run_verb
from jaxgpt.run.arguments import base_arguments, base_parser

PARSER = base_parser("jaxgpt sft", __doc__, "--config sft_cpu --from runs/mid_cpu")


def to_train(args: list[str]) -> list[str]:
    """The arguments of `jaxgpt train` that are meant.

    Raises:
      InputError: the config is not for conversations, or nothing says what to start from.
    """
    config, flags = PARSER.read_run(args)
    if not config.data.is_chat:
        raise InputError(
            f"data.sampling={config.data.sampling} of --config={flags.config} is not conversations; "
            "choose another config, or jaxgpt train"
        )
    if config.is_rl:
        raise InputError(f"rl.samples={config.rl.samples} of --config={flags.config} is RL; run it by jaxgpt rl")
    return base_arguments(config, flags)


if __name__ == "__main__":
    answer_early(to_train)


def main(args: list[str]) -> int:
    return runpy.run_module("jaxgpt.train")["main"](to_train(args))


if __name__ == "__main__":
    run_verb(main)
