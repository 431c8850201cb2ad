"""The command `jaxgpt VERB ...`, which runs what `python -m jaxgpt.VERB ...` runs."""

import difflib
import runpy
import sys

import jaxgpt
from jaxgpt.errors import EXIT_DONE, InputError, run_verb

VERBS = {
    "train": "train a GPT from a config",
    "sft": "midtrain or finetune a run on conversations",
    "rl": "train a run on its own answers, by their rewards",
    "prepare": "text into shards of tokens, or of text",
    "train_tokenizer": "learn a BPE vocabulary from text",
    "sample": "write text with a trained model",
    "chat": "talk to a trained model in the terminal",
    "serve": "a trained model behind OpenAI's API, and a page to chat",
    "evaluate": "loss on held-out text, CORE, tasks of chat models",
    "report": "one page about runs: results by stage, curves, time, cost",
    "convert": "a run for PyTorch and back, or exported",
    "configs": "the configs that come with jaxgpt",
    "plan": "does a run fit a GPU or TPU, and how fast can it be",
    "bench": "time a run on this machine, also against PyTorch",
    "compare": "jaxgpt against PyTorch, number by number",
}
"""Name of a module -> what it does."""


def main() -> None:
    """Runs the verb as the program, so that signals, --help and exit codes are those of `python -m`."""
    verb = "".join(sys.argv[1:2]).replace("-", "_")
    if verb not in VERBS:
        run_verb(answer, prints="result")
    sys.argv[1:2] = []
    runpy.run_module(f"jaxgpt.{verb}", run_name="__main__", alter_sys=True)


def answer(args: list[str]) -> int:
    """What is said where no verb is named: the list of verbs, or the version.

    Raises:
      InputError: there is no such verb.
    """
    if args[:1] == ["--version"]:
        print(f"jaxgpt {jaxgpt.__version__}")
    elif not args or args[0] in ("-h", "--help"):
        verbs = "\n".join(f"  {verb:<17}{about}" for verb, about in VERBS.items())
        print(f"Train GPTs in JAX, and compare them with PyTorch.\n\nusage: jaxgpt VERB [arguments]\n\n{verbs}\n")
        print("jaxgpt VERB --help: its arguments. jaxgpt --version: the version.")
        print("example: jaxgpt prepare pydocs, then jaxgpt train --config quickstart")
    else:
        near = difflib.get_close_matches(args[0].replace("-", "_"), VERBS, n=1)
        hint = f"did you mean jaxgpt {near[0]}?" if near else f"verbs: {', '.join(VERBS)}"
        raise InputError(f"{args[0]} is no verb of jaxgpt; {hint}")
    return EXIT_DONE


if __name__ == "__main__":
    main()
