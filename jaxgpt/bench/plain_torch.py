"""A GPT as one writes it in plain PyTorch, for `jaxgpt bench --vs plain`: a second opinion on torch_ref.

torch.nn modules, F.scaled_dot_product_attention, F.cross_entropy on whole logits, torch.optim.AdamW and
clip_grad_norm_, with biases and dropout as the config says: what nanoGPT's training loop does in a step, on the same
batches. In a separate process, driven by `jaxgpt.bench.interleave`:

    python -m jaxgpt.bench.plain_torch --config FILE [--section.field=value ...]
"""

import resource
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from jaxgpt.bench.interleave import serve
from jaxgpt.config import Config, GPT2Config
from jaxgpt.config.command_line import parse_args
from jaxgpt.config.steps import Plan
from jaxgpt.errors import InputError, run_verb
from jaxgpt.run.opening import open_run

WARM_UP_STEPS = 3


def main(args: list[str]) -> int:
    config = parse_args(args)
    return serve(lambda: PlainRun(config))


class Block(nn.Module):
    def __init__(self, model: GPT2Config):
        super().__init__()
        width, bias = model.n_embd, model.bias
        self.n_head, self.dropout = model.n_head, model.dropout
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, bias=bias) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.up, self.down = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)
        self.gelu = nn.GELU("tanh" if model.gelu == "tanh" else "none")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n_rows, seq_len, width = x.shape
        heads = [
            part.view(n_rows, seq_len, self.n_head, -1).transpose(1, 2) for part in self.qkv(self.ln_1(x)).chunk(3, -1)
        ]
        rate = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(*heads, dropout_p=rate, is_causal=True)
        x = x + F.dropout(self.out(y.transpose(1, 2).reshape(n_rows, seq_len, width)), rate)
        return x + F.dropout(self.down(self.gelu(self.up(self.ln_2(x)))), rate)


class GPT(nn.Module):
    def __init__(
        self,
        model: GPT2Config,
    ):
        super().__init__()
        self.dropout = model.dropout
        self.wte, self.wpe = nn.Embedding(model.vocab_size, model.n_embd), nn.Embedding(model.seq_len, model.n_embd)
        self.blocks = nn.ModuleList([Block(model) for _ in range(model.n_layer)])
        self.ln_f = nn.LayerNorm(model.n_embd, bias=model.bias)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class PlainRun:
    """An `interleave.Workload`."""

    def __init__(self, config: Config):
        run = open_run(config)
        config = run.config.without_stages()
        model, optim = config.model, config.optim
        if not isinstance(model, GPT2Config) or optim.algorithm != "adamw" or optim.groups:
            raise InputError("--vs plain is GPT-2 with AdamW and without optim.groups; use --vs torch for this config")
        self.device = torch.device("cuda" if torch.cuda.is_available() and config.mesh.platform != "cpu" else "cpu")
        torch.manual_seed(config.run.seed)
        self.model = GPT(model).to(self.device)
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=self.device.type == "cuda",
        )  # fmt: skip
        self.config, self.plan, self.reader, self.n_done = config, Plan(config, 1), run.source.reader(config), 0
        begin = time.perf_counter()
        for _ in range(WARM_UP_STEPS):
            self.settle(self.dispatch())
        self.about: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu",
            "n_devices": 1,
            "versions": {"torch": str(torch.__version__)},
            "attention": "scaled_dot_product_attention",
            "compile_s": time.perf_counter() - begin,
        }

    def dispatch(self) -> torch.Tensor:
        config, planned = self.config, self.plan.at(self.n_done)
        for group in self.optimizer.param_groups:
            group["lr"] = config.optim.lr * planned.hyper["lr_scale"]
        tokens_MBT = self.reader.read(planned, 0, planned.n_rows).tokens.astype(np.int64)
        batch_MBT = torch.from_numpy(tokens_MBT).to(self.device)
        loss = torch.zeros(())
        for rows in batch_MBT:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.train.dtype == "bfloat16"):
                loss = self.model(rows[:, :-1], rows[:, 1:]) / planned.n_micro
            loss.backward()
        if config.optim.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.n_done += 1
        return loss.detach()

    def settle(self, pending: torch.Tensor) -> None:
        float(pending)

    def peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def trace(self, directory: str, n_steps: int) -> list[dict[str, Any]]:
        raise InputError("--profile traces jaxgpt and torch_ref, not --vs plain")


if __name__ == "__main__":
    run_verb(main)
