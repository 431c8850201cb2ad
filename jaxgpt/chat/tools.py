"""The tool of a chat model: it reads the tokens of one row, and answers when the model calls it.

The model writes an expression between <|python_start|> and <|python_end|>. If the expression has a value, the row
continues with <|output_start|>, the tokens of the value, and <|output_end|>, which the model reads but did not choose.
If it has none, nothing is forced, and the model continues by itself.

Reference: nanochat 92d63d4, nanochat/engine.py (RowState).
"""

from collections.abc import Callable

from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.tasks.calculator import calculate

Evaluate = Callable[[str], str | None]
"""The value of an expression as text, None where it has none. Must not raise."""


class ToolMachine:
    """The state of one row: outside a call, or inside one with the tokens of the expression so far."""

    def __init__(self, tokenizer: Tokenizer, evaluate: Evaluate):
        """
        Raises:
          InputError: the tokenizer lacks a control token.
        """
        self._tokenizer, self._evaluate = tokenizer, evaluate
        self._start, self._end, self._output_start, self._output_end = (
            tokenizer.special_id(f"<|{name}|>") for name in ("python_start", "python_end", "output_start", "output_end")
        )
        self._expression: list[int] | None = None  # None: outside a call

    def feed(self, token_id: int) -> list[int]:
        """Reads the row's next token and returns the ids to force after it, often none."""
        if token_id == self._start:  # inside a call too: the expression begins anew
            self._expression = []
        elif self._expression is not None and token_id == self._end:
            expression, self._expression = self._expression, None
            value = self._evaluate(self._tokenizer.decode(expression)) if expression else None
            if value is not None:
                return [self._output_start, *self._tokenizer.encode(value), self._output_end]
        elif self._expression is not None:
            self._expression.append(token_id)
        return []


def calculator_tool(tokenizer: Tokenizer, evaluate: Evaluate = calculate) -> Callable[[], ToolMachine]:
    """What a `Request` takes as its tool; checks the tokenizer at once.

    Raises:
      InputError: the tokenizer lacks a control token.
    """
    ToolMachine(tokenizer, evaluate)
    return lambda: ToolMachine(tokenizer, evaluate)


def answer_stop_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids that end an assistant's answer: its end token, and the beginning of another conversation.

    Raises:
      InputError: the tokenizer lacks one of them.
    """
    return tokenizer.special_id("<|assistant_end|>"), tokenizer.special_id("<|bos|>")
