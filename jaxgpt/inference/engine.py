"""Text generation on token ids, with a cache of keys and values. rows.py says how it works.

References: nanoGPT model.py `generate`; nanochat engine.py (forced tokens).
"""

from collections.abc import Iterator, Sequence

from jaxgpt.config.families import ModelConfig
from jaxgpt.inference.request import Request, check_settings
from jaxgpt.inference.rows import Rows
from jaxgpt.models import Model


class Engine:
    """Generates token ids with one model.

    Attributes:
      params: path -> array; may be replaced between calls, as training does.
    """

    def __init__(
        self, config: ModelConfig, params, *, dtype, n_positions: int | None = None, n_valid: int | None = None
    ):
        """Compiles and allocates nothing.

        Args:
          dtype: of the computation and of the cache.
          n_positions: tokens that the cache holds per row, at most the model's seq_len; None: all of it.
          n_valid: ids below this may be sampled; None: all. Rows that only round the vocabulary up are no text.
        """
        self.model, self.params = Model(config, dtype=dtype), params
        self.n_positions = n_positions or config.seq_len
        self.n_valid = n_valid or config.vocab_size
        assert 2 <= self.n_positions <= config.seq_len, (n_positions, config.seq_len)
        assert self.n_valid <= config.vocab_size, (n_valid, config.vocab_size)

    def rows(self, requests: Sequence[Request | None]) -> Rows:
        """Generates for several requests at once: an iterator that yields the next id of each, see `Rows`.

        Args:
          requests: None is a row that waits for its first request.

        Raises:
          InputError: a request that this model cannot serve, at the call; or logits that are not finite, while
            generating.
        """
        return Rows(self.model, self.params, requests, n_positions=self.n_positions, n_valid=self.n_valid)

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        n_samples: int = 1,
        stop_ids: Sequence[int] = (),
    ) -> Iterator[list[int | None]]:
        """Samples of one prompt: yields the next id of each, until all have ended; None for those that have.

        The samples of a seed are the same however many are drawn at once. Arguments and errors as in `Request` and
        `rows`.
        """
        settings = {
            "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed,
        }  # fmt: skip
        check_settings(**settings, n_samples=n_samples)
        return self.rows([Request(prompt_ids, stop_ids=stop_ids, sample=i, **settings) for i in range(n_samples)])
