"""nanochat's training in PyTorch, as its two eras do it: groups, shards on n processes, schedules, checkpoint files.

The model is torch_ref's under nanochat's names, and so are the formulas of Muon's iteration. Which parameter is in
which group, what a process holds, and what is written stand here a second time, from the
project's files.
All processes are one here: each updates what it owns.
"""

import json
import math

import torch

from jaxgpt.config import NanochatConfig
from jaxgpt.config.softcap import Softcap
from torch_ref import models
from torch_ref.models.loss import cross_entropy
from torch_ref.optim.normuon import mean_square, normuon
from torch_ref.optim.orthogonalize import orthogonalize

BATCH_ROWS, SEQ_LEN, VOCAB = 4, 24, 64
COMMON = {
    "depth": 4, "max_seq_len": SEQ_LEN, "num_iterations": 60, "target_flops": -1.0, "device_batch_size": 2,
    "total_batch_size": BATCH_ROWS * SEQ_LEN, "warmdown_ratio": 0.5, "resume_from_step": -1,
}  # fmt: skip
USER = {
    "2025": COMMON | {
        "target_param_data_ratio": 20, "embedding_lr": 0.1, "unembedding_lr": 0.003, "weight_decay": 0.02,
        "matrix_lr": 0.01, "grad_clip": 0.5, "warmup_ratio": 0.1, "final_lr_frac": 0.1,
    },
    "2026": COMMON | {
        "target_param_data_ratio": 12, "aspect_ratio": 8, "head_dim": 16, "window_pattern": "SSSL",
        "embedding_lr": 0.2, "unembedding_lr": 0.006, "weight_decay": 0.3, "matrix_lr": 0.015, "scalar_lr": 0.4,
        "warmup_steps": 12, "final_lr_frac": 0.02,
    },
}  # fmt: skip


class Shard(torch.optim.Optimizer):
    """The state that one process holds; the steps are made by `Original`."""

    def __init__(self, groups):
        super().__init__(groups, {})


class Original:
    """A run on `n_ranks` processes, in float64."""

    def __init__(self, era, n_ranks, seed=0, vocab_size=VOCAB):
        self.era, self.n_ranks, self.user, self.step = era, n_ranks, USER[era], 0
        self.config = NanochatConfig(
            era=era, depth=4, n_embd=32, head_dim=16, seq_len=SEQ_LEN, vocab_size=vocab_size, aspect_ratio=8
        ).complete(0)
        self.model = models.build(self.config, dtype=torch.float64, param_dtype=torch.float64, seed=0)
        noise = torch.Generator().manual_seed(seed)
        self.params = dict(sorted(self.model.named_parameters(), key=lambda item: item[0]))
        with torch.no_grad():
            for param in self.params.values():
                param.add_(0.2 * torch.randn(param.shape, generator=noise, dtype=torch.float64))
        self.shards = [self._setup(rank) for rank in range(n_ranks)]

    # what base_train and setup_optimizer derive

    def _batch_scale(self):
        return (self.user["total_batch_size"] / 2**19) ** 0.5 if self.era == "2026" else 1.0

    def _decay(self):
        """weight_decay_scaled: by the parameters of blocks and head, here and at depth 12."""
        small = sum(p.numel() for path, p in self.params.items() if path.startswith(("h.", "lm_head.")))
        width = -(-12 * self.user["aspect_ratio"] // 16) * 16
        large = 12 * 12 * width**2 + 6 * 12 * width // 16 + VOCAB * width
        return self.user["weight_decay"] * self._batch_scale() * large / small

    def _setup(self, rank):
        user, params, scale = self.user, self.params, self._batch_scale()
        for_width = (self.config.n_embd / 768) ** -0.5
        blocks = [params[f"h.{i}.{name}.weight"] for i in range(4) for name in self._names(i)]
        head, wte = params["lm_head.weight"], params["wte.weight"]
        if self.era == "2025":
            groups = [
                {"params": [head], "lr": user["unembedding_lr"] * for_width},
                {"params": [wte], "lr": user["embedding_lr"] * for_width},
            ]
            settings = {"betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": user["weight_decay"]}
            one = self.n_ranks == 1
            adamw = torch.optim.AdamW(groups, **settings) if one else Shard([g | settings for g in groups])
            muon = {"lr": user["matrix_lr"], "momentum": 0.95, "nesterov": True, "ns_steps": 5}
            if one:
                sizes = {p.numel() for p in blocks}
                groups = [{"params": [p for p in blocks if p.numel() == size], **muon} for size in sizes]
            else:
                shapes = sorted({p.shape for p in blocks})
                members = [[p for p in blocks if p.shape == shape] for shape in shapes]
                groups = [{"params": m, "zero_buffer": torch.zeros_like(m[0]), **muon} for m in members]
            optimizers = [adamw, Shard(groups)]
        else:
            value_embeds = [params[f"value_embeds.{i}.weight"] for i in (1, 3)]
            smear = [params[name] for name in ("smear_gate.weight", "smear_lambda", "backout_lambda")]
            emb, un, scalar = (user[f"{n}_lr"] * scale for n in ("embedding", "unembedding", "scalar"))
            listed = [
                ([head], un * for_width, (0.8, 0.96), 0.01),
                ([wte], emb * for_width, (0.8, 0.995), 0.001),
                (value_embeds, emb * for_width * 0.5, (0.8, 0.995), 0.01),
                ([params["resid_lambdas"]], scalar * 0.01, (0.8, 0.95), 0.05),
                ([params["x0_lambdas"]], scalar, (0.96, 0.95), 0.0),
                (smear, 0.2, (0.8, 0.95), 0.0),
            ]
            groups = [
                {"kind": "adamw", "params": p, "lr": lr, "betas": betas, "eps": 1e-10, "weight_decay": wd}
                for p, lr, betas, wd in listed
            ]
            muon = {"momentum": 0.95, "ns_steps": 5, "beta2": 0.9, "weight_decay": self._decay()}
            groups += [
                {
                    "kind": "muon",
                    "params": [p for p in blocks if p.shape == shape],
                    "lr": user["matrix_lr"] * scale,
                    **muon,
                }
                for shape in sorted({p.shape for p in blocks})
            ]
            optimizers = [Shard(groups)]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        return optimizers

    def _names(self, layer):
        gate = ["attn.ve_gate"] if self.era == "2026" and layer % 2 else []
        return ["attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", *gate, "mlp.c_fc", "mlp.c_proj"]

    # a step

    def _schedules(self):
        """Factor on the rates, Muon's momentum, Muon's decay."""
        it, n, user = self.step, self.user["num_iterations"], self.user
        n_up = round(user["warmup_ratio"] * n) if self.era == "2025" else user["warmup_steps"]
        n_down = round(user["warmdown_ratio"] * n)
        if it < n_up:
            lrm = (it + 1) / n_up
        elif it <= n - n_down:
            lrm = 1.0
        else:
            lrm = (n - it) / n_down + (1 - (n - it) / n_down) * user["final_lr_frac"]
        if self.era == "2025":
            return lrm, 0.85 + min(it / 300, 1) * 0.10, 0.0
        momentum = 0.85 + it / 400 * 0.12  # runs here are shorter than its warm-up
        return lrm, momentum, self._decay() * 0.5 * (1 + math.cos(math.pi * it / n))

    def train(self, batches):
        """Steps on batches [B, T + 1]. Returns their losses, means over tokens."""
        losses = []
        for batch_BT in batches:
            tokens_BT = torch.from_numpy(batch_BT)
            x_BTD = self.model(tokens_BT[:, :-1])
            total, n_tokens = cross_entropy(
                x_BTD,
                self.model.head_weight(),
                tokens_BT[:, 1:],
                None,
                chunk_len=SEQ_LEN,
                softcap=Softcap("tanh", 15.0),
            )
            (total / n_tokens).backward()
            losses.append(float(total.detach() / n_tokens))
            if self.era == "2025":
                torch.nn.utils.clip_grad_norm_(list(self.params.values()), self.user["grad_clip"])
            self._update()
            self.step += 1
        return losses

    @torch.no_grad()
    def _update(self):
        lrm, momentum, decay = self._schedules()
        for rank, optimizers in enumerate(self.shards):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * lrm
                    if "ns_steps" in group:
                        group["momentum"] = momentum
                        group |= {"weight_decay": decay} if self.era == "2026" else {}
                if isinstance(optimizer, torch.optim.AdamW):
                    optimizer.step()
                    continue
                for group in optimizer.param_groups:
                    if "ns_steps" not in group:
                        self._adamw(rank, optimizer, group)
                    elif self.era == "2025":
                        self._muon(rank, optimizer, group)
                    else:
                        self._stacked_muon(rank, optimizer, group)
        self.model.zero_grad(set_to_none=True)

    def _adamw(self, rank, optimizer, group):
        for p in group["params"]:
            is_whole = self.era == "2026" and p.numel() < 1024
            n = len(p) // (1 if is_whole else self.n_ranks)
            mine = slice(None) if is_whole else slice(rank * n, (rank + 1) * n)
            state, grad = optimizer.state[p], p.grad[mine]
            if not state:
                state["step"] = 0 if self.era == "2026" else torch.tensor(0, dtype=torch.int64)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p[mine]), torch.zeros_like(p[mine])
            state["step"] += 1
            (beta1, beta2), t = group["betas"], int(state["step"])
            state["exp_avg"].lerp_(grad, 1 - beta1)
            state["exp_avg_sq"].lerp_(grad.square(), 1 - beta2)
            if is_whole and rank:
                continue  # the same on every process; the parameter is one here
            p[mine] *= 1 - group["lr"] * group["weight_decay"]
            root = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + group["eps"]
            p[mine] -= group["lr"] / (1 - beta1**t) * state["exp_avg"] / root

    def _muon(self, rank, optimizer, group):
        owned = group["params"] if self.n_ranks == 1 else group["params"][rank :: self.n_ranks]
        for p in owned:
            state = optimizer.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
            direction = self._orthogonal([p.grad.lerp(buffer, group["momentum"])], "newton_schulz", is_2026=False)[0]
            p -= group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5 * direction

    def _stacked_muon(self, rank, optimizer, group):
        params, like = group["params"], group["params"][0]
        n = -(-len(params) // self.n_ranks)
        state, owned = optimizer.state[like], params[rank * n : (rank + 1) * n]
        if not state:
            state["momentum_buffer"] = torch.zeros(n, *like.shape, dtype=like.dtype)
            state["second_momentum_buffer"] = torch.zeros(n, *mean_square(like).shape, dtype=like.dtype)
        directions = []
        for p, buffer in zip(owned, state["momentum_buffer"], strict=False):
            buffer.lerp_(p.grad, 1 - group["momentum"])
            directions.append(p.grad.lerp(buffer, group["momentum"]))
        directions = self._orthogonal(directions, "polar_express", is_2026=True) if owned else []
        for p, direction, square in zip(owned, directions, state["second_momentum_buffer"], strict=False):
            direction, new = normuon(direction, square, group["beta2"])
            square.copy_(new)
            lr = group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5
            p -= lr * direction + lr * group["weight_decay"] * p * (direction * p >= 0)

    @staticmethod
    def _orthogonal(directions, orthogonalizer, *, is_2026):
        return orthogonalize(
            directions, orthogonalizer=orthogonalizer, ns_steps=5, ns_dtype="float64", ns_margin=1.01,
            equilibrate_rows=is_2026, renormalize=is_2026,
        )  # fmt: skip

    # files

    def save(self, directory, prefix=""):
        """model, meta and each process's optim file."""
        directory.mkdir(parents=True, exist_ok=True)
        named = {f"transformer.{k}" if k.startswith(("wte.", "h.")) else k: p for k, p in self.params.items()}
        torch.save({prefix + name: p.detach() for name, p in named.items()}, directory / f"model_{self.step:06d}.pt")
        meta = {
            "step": self.step, "val_bpb": 1.5, "user_config": self.user, "device_batch_size": 2, "max_seq_len": SEQ_LEN,
            "model_config": self.model_config(self.config.vocab_size),
            "dataloader_state_dict": {"pq_idx": 0, "rg_idx": 3},
            "loop_state": {"min_val_bpb": float("inf"), "smooth_train_loss": 3.0, "total_training_time": 9.0},
        }  # fmt: skip
        meta |= {"total_batch_size": BATCH_ROWS * SEQ_LEN} if self.era == "2026" else {}
        (directory / f"meta_{self.step:06d}.json").write_text(json.dumps(meta))
        for rank, optimizers in enumerate(self.shards):
            states = [optimizer.state_dict() for optimizer in optimizers]
            value = states if self.era == "2025" else states[0]
            torch.save(value, directory / f"optim_{self.step:06d}_rank{rank}.pt")
        return directory

    def model_config(self, n_ids):
        config = {"sequence_len": SEQ_LEN, "vocab_size": n_ids, "n_layer": 4, "n_head": 2, "n_kv_head": 2, "n_embd": 32}
        return config | ({"window_pattern": "SSSL"} if self.era == "2026" else {})

    def load(self, directory, step):
        """As base_train does with --resume-from-step."""
        self.step = json.loads((directory / f"meta_{step:06d}.json").read_text())["step"]
        state = torch.load(directory / f"model_{step:06d}.pt", weights_only=True)
        with torch.no_grad():
            assert {name.removeprefix("transformer.") for name in state} == set(self.params)
            for name, tensor in state.items():
                self.params[name.removeprefix("transformer.")].copy_(tensor)
        for rank, optimizers in enumerate(self.shards):
            value = torch.load(directory / f"optim_{step:06d}_rank{rank}.pt", weights_only=True)
            for optimizer, held in zip(optimizers, value if self.era == "2025" else [value], strict=True):
                optimizer.load_state_dict(held)
        return self
