"""The arguments that name a trained model, for the verbs that take one. Imports no JAX."""

from jaxgpt.config.parser import Parser
from jaxgpt.files import user_location, user_path


def source_parser(prog: str, doc: str | None, usage: str, example: str) -> Parser:
    """A parser with --run, --model, --step and --platform; see `Parser`."""
    parser = Parser(prog, doc, f"(--run DIR | --model NAME) {usage}", example)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="DIR", type=user_location, help="a run directory, such as runs/quickstart")
    source.add_argument(
        "--model", metavar="NAME", type=user_path, help="gpt2 ... gpt2-xl, hf:OWNER/NAME, a directory, a .pt"
    )
    parser.add_argument("--step", type=int, metavar="N", help="with --run: this checkpoint (the newest)")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"), default="", help="device (the fastest here)")
    return parser


def add_draft_flags(parser: Parser) -> None:
    """--draft and --draft-tokens, for verbs that decode one text."""
    parser.add_argument(
        "--draft", metavar="RUN", type=user_location, help="a smaller model that drafts; lookup: the text itself"
    )
    parser.add_argument("--draft-tokens", type=int, default=4, metavar="N", help="drafted at a time (4)")
