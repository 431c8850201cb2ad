"""Other ways to generate, in PyTorch, on the weights that jaxgpt has: for `jaxgpt bench decode --batch N --vs ...`.

- torch: torch_ref's decode, with a cache of keys and values.
- nanogpt: as nanoGPT's `generate`: each token is a forward pass over all tokens so far, at most a context of them.
- hf: `generate` of Hugging Face transformers with its cache, on the model as `jaxgpt convert --to hf` writes it.

Each takes the likeliest token, in the dtype in which jaxgpt computes.

Reference: nanoGPT 3adf61e, model.py `generate`.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jaxgpt.bench.writers import STORED, Turn, Writer
from jaxgpt.config.families import GPT2Config, ModelConfig, NanochatConfig
from jaxgpt.errors import InputError
from jaxgpt.formats.hf_nanochat import save_nanochat
from jaxgpt.formats.hugging_face import save_hf
from jaxgpt.formats.stored import linear_weights
from torch_ref.models import Model


def make_writers(
    names: Sequence[str], model: ModelConfig, params: Mapping[str, np.ndarray], dtype: str
) -> tuple[list[Writer], dict[str, str]]:
    """The ways of these names, and the versions of their libraries.

    Raises:
      InputError: Hugging Face has no such model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    versions = {"torch": str(torch.__version__)}
    writers: list[Writer] = []
    for name in dict.fromkeys(names):
        if name == "hf":
            import transformers

            versions["transformers"] = transformers.__version__
            writers.append(HuggingFace(load_hugging_face(model, params, getattr(torch, dtype), device)))
        else:
            kind = {"torch": TorchRef, "nanogpt": NanoGPT}[name]
            writers.append(kind(model, torch_params(model, params, device), getattr(torch, dtype), device))
    return writers, versions


def torch_params(
    model: ModelConfig, params: Mapping[str, np.ndarray], device: torch.device
) -> dict[str, torch.nn.Parameter]:
    """The weights as torch_ref stores them: those of linear layers are [out, in]."""
    is_transposed = linear_weights(model)
    turned = {path: np.array(leaf.T if is_transposed(path) else leaf, order="C") for path, leaf in params.items()}
    return {
        path: torch.nn.Parameter(torch.from_numpy(leaf).to(device), requires_grad=False)
        for path, leaf in turned.items()
    }  # fmt: skip


class _Clock:
    """Takes the time at each token, when the device has it."""

    def __init__(self, device: torch.device):
        self._device, self._last_s, self.times_s = device, time.perf_counter(), list[float]()

    def tick(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        now_s = time.perf_counter()
        self.times_s.append(now_s - self._last_s)
        self._last_s = now_s

    def turn(self, ids_BT: torch.Tensor, n_tokens: int) -> Turn:
        """Their last `n_tokens` ids, with the times that were taken."""
        assert len(self.times_s) == n_tokens == ids_BT[:, -n_tokens:].shape[1]
        return Turn(ids_BT[:, -n_tokens:].tolist(), self.times_s[0], self.times_s[1:])


class TorchRef:
    """torch_ref's decode. A `Writer`."""

    name, weights, implementation = "torch", STORED, "math"

    def __init__(
        self, model: ModelConfig, params: dict[str, torch.nn.Parameter], dtype: torch.dtype, device: torch.device
    ):
        self._config, self._device = model, device
        self._module = Model(model, dtype=dtype, implementation=self.implementation).bind(params)

    @torch.inference_mode()
    def write(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> Turn:
        clock = _Clock(self._device)
        ids_BT = torch.tensor(prompts, dtype=torch.int32, device=self._device)
        tokens_BT, offset_B = ids_BT, torch.zeros(len(prompts), dtype=torch.long, device=self._device)
        cache = self._module.init_cache(len(prompts), ids_BT.shape[1] + n_tokens)
        for _ in range(n_tokens):
            x_BTD, cache = self._module.decode(tokens_BT, cache, offset_B)
            offset_B = offset_B + tokens_BT.shape[1]
            tokens_BT = self._module.logits(x_BTD[:, -1:]).argmax(-1).int()
            ids_BT = torch.cat([ids_BT, tokens_BT], 1)
            clock.tick()
        return clock.turn(ids_BT, n_tokens)


class NanoGPT(TorchRef):
    """A forward pass over the whole text for each token, with fused attention and the head at the last place only."""

    name, implementation = "nanogpt", "sdpa"

    @torch.inference_mode()
    def write(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> Turn:
        clock = _Clock(self._device)
        ids_BT = torch.tensor(prompts, device=self._device)
        for _ in range(n_tokens):
            x_BTD = self._module(ids_BT[:, -self._config.seq_len :])
            ids_BT = torch.cat([ids_BT, self._module.logits(x_BTD[:, -1:]).argmax(-1)], 1)
            clock.tick()
        return clock.turn(ids_BT, n_tokens)


def load_hugging_face(model: ModelConfig, params: Mapping[str, np.ndarray], dtype: torch.dtype, device: Any) -> Any:
    """The model as transformers reads it from an export.

    Raises:
      InputError: transformers has no such model.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    with tempfile.TemporaryDirectory() as directory:
        match model:
            case GPT2Config():
                save_hf(directory, model, dict(params))
            case NanochatConfig():
                save_nanochat(Path(directory), model, dict(params), {"bos_token_id": None, "eos_token_id": None})
            case _:
                raise InputError(f"--vs=hf has no models of model.family={model.family}; leave it out")
        return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).to(device).eval()


class HuggingFace:
    """transformers' `generate`. A `Writer`."""

    name, weights = "hf", STORED

    def __init__(self, module: Any):
        self._module = module

    @torch.inference_mode()
    def write(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> Turn:
        from transformers import StoppingCriteriaList

        clock = _Clock(self._module.device)
        is_over_B = torch.zeros(len(prompts), dtype=torch.bool, device=self._module.device)

        def tick(*_: Any, **__: Any) -> torch.Tensor:  # called after each token
            clock.tick()
            return is_over_B

        prompts_BT = torch.tensor(prompts, device=self._module.device)
        ids_BT = self._module.generate(
            prompts_BT, attention_mask=torch.ones_like(prompts_BT), max_new_tokens=n_tokens, do_sample=False,
            use_cache=True, pad_token_id=0, eos_token_id=None, stopping_criteria=StoppingCriteriaList([tick]),
        )  # fmt: skip
        return clock.turn(ids_BT, n_tokens)
