"""The arguments of both training loops, read before either framework is imported."""

import argparse
import re
from typing import Any

from jaxgpt.config import Config
from jaxgpt.config.parser import Parser
from jaxgpt.errors import InputError
from jaxgpt.files import user_location

RETRY_HELP = "out of memory: try the next smaller setting, once"


def training_parser(prog: str, doc: str | None, example: str = "--config quickstart --smoke") -> Parser:
    """`--config`, its settings, and how a run begins."""
    parser = Parser(
        prog, doc, "--config FILE [--section.field=value ...]",
        example, takes_config=True,
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="continue from the newest valid checkpoint in run.dir")
    parser.add_argument("--auto-resume", action="store_true", help="resume if there is a checkpoint, else start")
    parser.add_argument(
        "--resume-from", type=step_number, metavar="STEP", help="continue from this one; newer ones are set aside"
    )
    parser.add_argument(
        "--allow-change", action="store_true", help="resume although seed, sampling, batch or stages differ"
    )
    parser.add_argument("--verify", action="store_true", help="hash all data again, also what did not change")
    parser.add_argument("--smoke", action="store_true", help="a few steps of a small copy: does it work here?")
    return parser


def base_parser(prog: str, doc: str | None, example: str) -> Parser:
    """`training_parser`, and the run to start from."""
    parser = training_parser(prog, doc, example)
    parser.add_argument("--from", dest="base", metavar="RUN", type=user_location, help="the run to start from")
    parser.add_argument("--from-step", type=step_number, metavar="STEP", help="its checkpoint (the newest)")
    parser.add_argument("--retry-oom", action="store_true", help=RETRY_HELP)
    return parser


def base_arguments(config: Config, flags: argparse.Namespace) -> list[str]:
    """The arguments of `jaxgpt train` for a run that starts from another one.

    Args:
      flags: of a `base_parser`.

    Raises:
      InputError: nothing says what to start from, or two things do.
    """
    if flags.base and any(arg.partition("=")[0] == "--chat.base" for arg in flags.settings):
        raise InputError(f"--from={flags.base} and --chat.base are both given; keep one")
    if not (flags.base or config.chat.base or config.train.init_from or flags.smoke):
        raise InputError(f"--from is missing; name the run to start from: --from RUN, as {flags.config} describes")
    passed = list(flags.settings)
    passed += [f"--chat.base={flags.base}"] if flags.base else []
    passed += [f"--chat.base_step={flags.from_step}"] if flags.from_step is not None else []
    for name in ("resume", "auto_resume", "allow_change", "verify", "smoke", "retry_oom"):
        passed += [f"--{name.replace('_', '-')}"] if getattr(flags, name) else []
    return passed + ([f"--resume-from={flags.resume_from}"] if flags.resume_from is not None else [])


def step_number(text: str) -> int:
    """The value of --resume-from."""
    if not re.fullmatch(r"\d{1,18}", text):
        raise InputError(f"--resume-from={text} is no step; give the number of a directory in run.dir/checkpoints")
    return int(text)


def flags_of(given: argparse.Namespace) -> dict[str, Any]:
    """The verb's own flags by name: what hosts must agree on besides their settings."""
    return {name.replace("_", "-"): value for name, value in vars(given).items() if name not in ("config", "settings")}
