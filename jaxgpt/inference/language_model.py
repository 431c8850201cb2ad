"""A trained model to call from Python: `jaxgpt.load` opens one, and it generates, scores, is fine-tuned and saved.

Its weights are in one place, the NNX module `LanguageModel.module`. Everything here reads them from there at each call,
so what an optimizer has done to the module is what generates and what is saved; nothing keeps a copy.

Not here: evaluation on a data set (`jaxgpt evaluate`), training from scratch (`jaxgpt train`), several devices.
"""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import Config
from jaxgpt.config.families import ModelConfig
from jaxgpt.data.sources import open_directory
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.files import user_path
from jaxgpt.formats.export import export
from jaxgpt.formats.hugging_face import PRETRAINED
from jaxgpt.inference.request import Request, check_settings
from jaxgpt.inference.row_cache import MIN_PREFILL_TOKENS
from jaxgpt.inference.rows import Rows
from jaxgpt.inference.text_stream import TextStream
from jaxgpt.inference.trained import Trained, list_runs, open_trained, with_tokenizer_of
from jaxgpt.models import Model, read_params
from jaxgpt.models.loss import cross_entropy

DTYPES = ("bfloat16", "float16", "float32", "float64")
TOP_K = 200
"""Where none is given, as in `jaxgpt sample`."""


class Settings(TypedDict, total=False):
    """How `LanguageModel.generate` and `LanguageModel.stream` sample.

    Attributes:
      max_tokens: length of the text in tokens; default 200.
      temperature: 0 takes the most likely token, 1 samples from the model's distribution; default 0.8.
      top_k: samples among the k most likely tokens; 0: all. Default 200, or all where there are fewer.
      top_p: samples among the most likely tokens that together have this probability; default 1, all.
      seed: the same seed gives the same text; default 1337.
      stop: a text, or several, before which the generated text ends.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: str | Sequence[str]


def load(
    source: str | os.PathLike[str], *, step: int | None = None, dtype: Any = None, platform: str = "", data: str = ""
) -> "LanguageModel":
    """Opens a trained model on one device. Nothing in a run directory is executed.

    A run that trained in float64 turns on jax_enable_x64 for the whole process; models loaded before it compute what
    they did.

    Args:
      source: a run directory, gpt2 (gpt2-medium, gpt2-large, gpt2-xl), a Hugging Face directory, a nanoGPT
        ckpt.pt, a checkpoint directory of nanochat, hf:OWNER/NAME, or a run at an object store.
      step: of a run: this checkpoint; None: the newest that verifies.
      dtype: of the computation: bfloat16, float16, float32 or float64. None: that of the run, for other weights
        bfloat16; on a CPU float32 in place of 16 bits. Weights keep the dtype they are stored in.
      platform: cpu, gpu or tpu; empty: the fastest.
      data: a data directory whose tokenizer is taken, for a model that comes without one.

    Raises:
      InputError: one line that says what cannot be opened and what to do.
    """
    name = os.fspath(source)
    if not isinstance(name, str):
        raise InputError(f"source={source!r} is not a path in text; give a str or a Path")
    name = user_path(name, "source")
    if not (name in PRETRAINED or "://" in name or os.path.exists(name)):
        raise InputError(
            f"source={name} does not exist; give a run directory (here: {', '.join(list_runs()) or 'none'}), "
            f"one of {', '.join(PRETRAINED)}, a Hugging Face directory, or a checkpoint file"
        )
    try:
        trained = open_trained(name, step=step, platform=platform)
    except InputError as error:  # names its values as the command line does
        message = str(error).replace("--run=", "source=").replace("--step=", "step=")
        raise InputError(message) from error
    if data:
        trained = with_tokenizer_of(trained, open_directory(user_path(data, "data")))
    return LanguageModel(trained, dtype=dtype)


class LanguageModel:
    """A trained model. `load` makes one.

    Attributes:
      config: the architecture, such as GPT2Config(n_layer=12, ...).
      module: an nnx.Module that holds the weights, path -> nnx.Param. Called with ids [B, T] it returns hidden states
        [B, T, n_embd], of which `module.logits` makes scores. May be replaced by one of the same structure.
      tokenizer: None where nothing says which one it was; may be set.
      origin: for people, such as "runs/x step 2000".
    """

    def __init__(self, trained: Trained, *, dtype: Any = None):
        """`dtype` as in `load`.

        Raises:
          InputError: no dtype that can be computed in.
        """
        self.config: ModelConfig = trained.model
        self.tokenizer: Tokenizer | None = trained.tokenizer
        self.origin = trained.origin
        self._run: Config | None = trained.config
        self._model = Model(trained.model, dtype=_check_dtype(dtype or trained.compute_dtype))
        self._shapes = {path: leaf.shape for path, leaf in trained.params.items()}
        self.module = self._model.bind(trained.params)

    def __repr__(self) -> str:
        words = f"{self.tokenizer.name} tokenizer" if self.tokenizer else "no tokenizer"
        return (
            f"<LanguageModel {self.origin}: {self.config.family}, {self.n_params:,} parameters, {words}, "
            f"{self._model.dtype}>"
        )

    @property
    def n_params(self) -> int:
        """Numbers in the weights, all of them."""
        return sum(leaf.size for leaf in self.params.values())

    @property
    def params(self) -> dict[str, jax.Array]:
        """The weights that `module` has now, path -> array.

        Raises:
          InputError: the module has another structure than the model that was loaded.
        """
        params = read_params(self.module)
        found = {path: leaf.shape for path, leaf in params.items()}
        if found != self._shapes:
            path = min(path for path, _ in found.items() ^ self._shapes.items())
            raise InputError(
                f"module: {path} is {found.get(path, 'missing')}, the loaded model has "
                f"{self._shapes.get(path, 'none')}; keep the structure, or use the module by itself"
            )
        return params

    # Text

    @overload
    def generate(self, prompt: str, **settings: Unpack[Settings]) -> str: ...

    @overload
    def generate(self, prompt: Sequence[str], **settings: Unpack[Settings]) -> list[str]: ...

    def generate(self, prompt: str | Sequence[str], **settings: Unpack[Settings]) -> str | list[str]:
        """The text that follows a prompt, without the prompt. Several prompts are continued at once.

        Text ends after max_tokens, before a stop text, or where the model ends it. When the context is full, the
        model continues from its last half.

        Args:
          prompt: a text, or a list of them. The first of a list gets what it gets alone; equal ones get different
            texts.
          settings: max_tokens=200, temperature=0.8, top_k=200, top_p=1.0, seed=1337, stop=(); see `Settings`.

        Returns:
          a text; for a list, a list.

        Raises:
          InputError: no tokenizer, a prompt that it cannot read or that is longer than the context, a setting out of
            range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        streams, steps = self._start(prompts, **settings)
        texts = [""] * len(prompts)
        for pieces in _read_texts(streams, steps):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    def stream(self, prompt: str, **settings: Unpack[Settings]) -> Iterator[str]:
        """The text that `generate` returns, piece by piece as it comes. Characters are whole, pieces not empty.

        Arguments and errors as in `generate`, of one prompt; errors are raised at the call.
        """
        if not isinstance(prompt, str):
            raise InputError("prompt is not a text; stream reads one str, generate also a list of them")
        streams, steps = self._start([prompt], **settings)
        return (pieces[0] for pieces in _read_texts(streams, steps) if pieces[0])

    def _start(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 1337,
        stop: str | Sequence[str] = (),
    ) -> tuple[list[TextStream], Rows]:
        tokenizer = self._need_tokenizer()
        stops = [stop] if isinstance(stop, str) else list(stop)
        if "" in stops:
            raise InputError("stop='' is empty, and every text contains it; leave it out")
        top_k = min(TOP_K, tokenizer.vocab_size) if top_k is None else top_k
        check_settings(
            max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, n_samples=len(prompts)
        )
        requests = [
            Request(
                self._encode_prompt(tokenizer, prompt), max_tokens, tokenizer.stop_ids(), temperature=temperature,
                top_k=top_k, top_p=top_p, seed=seed, sample=i,
            )
            for i, prompt in enumerate(prompts)
        ]  # fmt: skip
        rows = Rows(self._model, self.params, requests, n_positions=self.config.seq_len, n_valid=tokenizer.vocab_size)
        return [TextStream(tokenizer, stops, request.prompt_ids) for request in requests], rows

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError(
                f"{self.origin} has no tokenizer for its {self.config.vocab_size} ids; load it with data=DIR, a "
                "directory prepared with its tokenizer, or set model.tokenizer"
            )
        return self.tokenizer

    def _encode_prompt(self, tokenizer: Tokenizer, prompt: str) -> list[int]:
        if not isinstance(prompt, str):
            raise InputError(f"prompt={prompt!r:.40} is not a text; give a str or a list of them")
        try:
            return tokenizer.encode_prompt(prompt)
        except InputError as error:
            raise InputError(f"prompt={prompt[:40]!r} cannot be read: {error}; or choose another prompt") from error

    # Numbers

    def logits(self, ids: Any) -> jax.Array:
        """Scores for the token after each one.

        Args:
          ids: integers in [0, config.vocab_size), [T] or [B, T], T at most config.seq_len. Lists, NumPy or JAX arrays.

        Returns:
          [T, V] or [B, T, V], float32 (float64 in a float64 model); V is config.vocab_size, which may be rounded up
          from the tokenizer's.

        Raises:
          InputError: other ids. JAX itself would clamp them without a word.
        """
        checked = check_ids(ids, self.config.vocab_size, 1, self.config.seq_len)
        ids_BT = np.atleast_2d(checked)
        n_tokens = ids_BT.shape[1]
        logits_BTV = all_logits(self._model, self.params, _pad(ids_BT, self.config.seq_len))[:, :n_tokens]
        return logits_BTV.reshape(*checked.shape, -1)

    def loss(self, ids: Any) -> float:
        """Mean loss in nats per token, of each id given those before it.

        Args:
          ids: [T] or [B, T] as in `logits`, T from 2 to config.seq_len + 1; or a text of as many tokens. A text begins
            with the tokenizer's begin_of_text, where it has one, so that its first token counts too.

        Raises:
          InputError: other ids; a text without tokenizer.
        """
        if isinstance(ids, str):
            ids = self._encode_prompt(self._need_tokenizer(), ids)
        ids_BT = np.atleast_2d(check_ids(ids, self.config.vocab_size, 2, self.config.seq_len + 1))
        inputs_BT = _pad(ids_BT[:, :-1], self.config.seq_len)
        targets_BT = _pad(ids_BT[:, 1:], self.config.seq_len)
        mask_BT = np.zeros(targets_BT.shape, np.float32)
        mask_BT[:, : ids_BT.shape[1] - 1] = 1
        return float(mean_loss(self._model, self.params, inputs_BT, targets_BT, mask_BT))

    # Out

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes the weights that `module` has now, and the tokenizer, as a directory for transformers and `load`.

        It is what `jaxgpt convert --to hf` writes: model.safetensors in float32, config.json, tokenizer.json,
        generation_config.json and a model card.

        Args:
          directory: empty, or made here.

        Raises:
          InputError: it exists and is not empty, or cannot be written; transformers has no such model.
        """
        path = Path(directory)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"directory={path} already exists and is not empty; choose another directory")
        params = {name: np.asarray(leaf) for name, leaf in self.params.items()}
        run = self._run or Config(model=self.config)
        try:
            export("hf", path, run, params, self.tokenizer, {"loaded from": self.origin})
        except OSError as error:
            raise InputError(f"directory={path} cannot be written: {error}; choose another directory") from error


def next_token_loss(module: Any, ids_BT: Any, dropout_key: jax.Array | None = None) -> jax.Array:
    """Mean loss in nats per token of a `LanguageModel.module`, for nnx.value_and_grad and nnx.jit.

    Args:
      ids_BT: [B, T], 2 <= T <= seq_len + 1, each below the model's vocab_size: inside jit nobody checks them.
      dropout_key: None turns dropout off.
    """
    x_BTD = module(ids_BT[:, :-1], dropout_key=dropout_key)
    loss, n_tokens = cross_entropy(x_BTD, module.head_weight(), ids_BT[:, 1:], softcap=module.config.logit_cap)
    return loss / n_tokens


def check_ids(ids: Any, n_ids: int, min_len: int, max_len: int) -> np.ndarray:
    """Token ids as int32, [T] or [B, T].

    Raises:
      InputError: no integers, another rank, T outside [min_len, max_len], or an id outside [0, n_ids).
    """
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise InputError("ids have rows of different lengths; give them one by one") from error
    if array.ndim not in (1, 2) or array.size == 0:
        raise InputError(f"ids have the shape {array.shape}; give [T] or [B, T], with at least one token")
    if array.dtype.kind not in "iu":
        raise InputError(f"ids are {array.dtype}, not integers; encode text with model.tokenizer.encode")
    if not min_len <= array.shape[-1] <= max_len:
        raise InputError(f"ids have {array.shape[-1]} tokens, outside [{min_len}, {max_len}]; give that many")
    if array.min() < 0 or array.max() >= n_ids:
        bad_id = next(int(i) for i in array.flat if not 0 <= i < n_ids)
        raise InputError(f"ids hold {bad_id}, outside [0, {n_ids}); use the model's tokenizer")
    return array.astype(np.int32)


@functools.partial(jax.jit, static_argnames="model")
def all_logits(model: Model, params: Any, ids_BT: Any) -> jax.Array:
    module = model.bind(params)
    return module.logits(module(ids_BT))


@functools.partial(jax.jit, static_argnames="model")
def mean_loss(model: Model, params: Any, inputs_BT: Any, targets_BT: Any, mask_BT: Any) -> jax.Array:
    module = model.bind(params)
    loss, n_tokens = cross_entropy(
        module(inputs_BT), module.head_weight(), targets_BT, mask_BT, softcap=model.config.logit_cap
    )
    return loss / n_tokens


def _pad(ids_BT: np.ndarray, seq_len: int) -> np.ndarray:
    """Zeros at the end, up to a power of two: rows of all lengths share a few programs. No token looks ahead."""
    n_tokens = ids_BT.shape[1]
    n_padded = min(max(MIN_PREFILL_TOKENS, 1 << (n_tokens - 1).bit_length()), seq_len)
    return np.pad(ids_BT, ((0, 0), (0, n_padded - n_tokens)))


def _read_texts(streams: Sequence[TextStream], steps: Rows) -> Iterator[list[str]]:
    """The next piece of each text, "" where there is none, until all have ended."""
    for ids in steps:
        yield [stream.feed(token_id) for stream, token_id in zip(streams, ids, strict=True)]
        if all(stream.has_ended for stream in streams):
            return
    yield [stream.finish() for stream in streams]


def _check_dtype(dtype: Any) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise InputError(f"dtype={name} is not one of {', '.join(DTYPES)}; choose one")
    if name == "float64" and not jax.config.read("jax_enable_x64"):
        raise InputError("dtype=float64 needs jax.config.update('jax_enable_x64', True); call it before load")
    return name
