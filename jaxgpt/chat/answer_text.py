"""The tokens of an answer as text for a terminal: whole characters, and calls of the tool as [12*3 = 36]."""

from jaxgpt.data.tokenizer import Tokenizer

MARKS = {"<|python_start|>": "[", "<|output_start|>": " = ", "<|output_end|>": "]"}


class AnswerText:
    """Turns the ids of one answer into pieces of text that can be shown at once."""

    def __init__(self, tokenizer: Tokenizer, after: tuple[int, ...] = ()):
        """
        Args:
          after: ids of the text that is continued; none for an answer.
        """
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream_decoder(after)
        self._marks = {tokenizer.specials[name]: mark for name, mark in MARKS.items() if name in tokenizer.specials}
        self._call_end = tokenizer.specials.get("<|python_end|>")
        self._output_start = tokenizer.specials.get("<|output_start|>")
        self._is_open = self._is_called = False  # inside brackets; behind a call, where its output may come

    def feed(self, token_id: int) -> str:
        """What can be shown after this id, often one character, sometimes none."""
        closed = self._close() if self._is_called and token_id != self._output_start else ""
        self._is_called = False
        if token_id == self._call_end:
            self._is_called = self._is_open
            return closed + self._flush()
        if (mark := self._marks.get(token_id)) is None:
            return closed + self._decoder.feed(token_id)
        text = closed + self._flush() + mark
        self._is_open = mark != "]"
        return text

    def finish(self) -> str:
        """The rest, where no more ids come: a character that was never completed, and the end of a call."""
        return self._flush() + self._close()

    def _flush(self) -> str:
        """A mark ends a character, complete or not."""
        text, self._decoder = self._decoder.finish(), self._tokenizer.stream_decoder()
        return text

    def _close(self) -> str:
        is_open, self._is_open, self._is_called = self._is_open, False, False
        return "]" if is_open else ""
