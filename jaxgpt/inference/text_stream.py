"""One text that is being generated: ids in, characters out, and where it ends."""

from collections.abc import Sequence

from jaxgpt.data.tokenizer import Tokenizer


class TextStream:
    """Turns the ids of one row into pieces of text that can be shown at once.

    A piece ends before what may be the beginning of a stop text, until it is clear that it is none.

    Attributes:
      has_ended: nothing follows.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), after: Sequence[int] = ()):
        """
        Args:
          stops: texts before which the text ends, none of them empty.
          after: ids of the prompt.
        """
        self._decoder = tokenizer.stream_decoder(after)
        self._stop_ids, self._stops = frozenset(tokenizer.stop_ids()), tuple(stops)
        self._held, self.has_ended = "", False

    def feed(self, token_id: int | None) -> str:
        """What can be shown after this id. None and the tokenizer's stop ids end the text."""
        if self.has_ended:
            return ""
        if token_id is None or token_id in self._stop_ids:
            return self.finish()
        return self._cut(self._decoder.feed(token_id))

    def finish(self) -> str:
        """The rest, where no more ids come."""
        if self.has_ended:
            return ""
        text = self._cut(self._decoder.finish()) + self._held
        self._held, self.has_ended = "", True
        return text

    def _cut(self, text: str) -> str:
        text = self._held + text
        found = [place for place in map(text.find, self._stops) if place >= 0]
        if found:
            self._held, self.has_ended = "", True
            return text[: min(found)]
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop text begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
