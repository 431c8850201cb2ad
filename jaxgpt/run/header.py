"""What a run says before it begins, in the user's terms: the same for both training loops."""

import math

from jaxgpt.config import schedule
from jaxgpt.config.flops import flops_per_token
from jaxgpt.config.param_groups import param_groups
from jaxgpt.config.steps import Plan
from jaxgpt.run.console import console, print_facts
from jaxgpt.run.opening import Run


def print_header(
    run: Run,
    plan: Plan,
    shapes: dict[str, tuple[int, ...]],
    first_step: int,
    compute: str,
    samples: str = "",
) -> None:
    """Prints warnings, and a table of facts.

    Args:
      shapes: of the parameters, by path.
      compute: dtype, devices and attention, in words.
      samples: a word on them, where there is one to say.
    """
    config, derivation, source = run.config, run.derivation, run.source
    model, train = config.model, config.train
    n_params = model.count_params()
    no_positions = f" ({n_params.total - n_params.wpe:,} without positions)" if n_params.wpe else ""
    counted: dict[str, list[int]] = {}
    for path, group in param_groups(config.optim, shapes).items():
        name = f"{group.algorithm} lr {group.lr:g} decay {group.weight_decay:g}"
        counted.setdefault(name, []).append(math.prod(shapes[path]))
    tokens = schedule.tokens_before(config, train.steps)
    n_epochs = f" = {tokens / source.n_train_tokens:.2f} epochs" if source.n_train_tokens else ""
    for warning in derivation.warnings:
        console.warn(warning)
    print_facts(
        config.run.dir,
        {
            "model": f"{model.family}, {n_params.total:,} parameters{no_positions}, {model.n_layer} layers x "
            f"{model.n_embd}, context {model.seq_len}, vocabulary {model.vocab_size}",
            "from": f"{run.base.directory} step {run.base.step}, {config.chat.optimizer} moments" if run.base else "",
            "derived": "; ".join(f"{name}: {value}" for name, value in derivation.facts.items()),
            "data": source.describe(),
            "batch": " then ".join(
                f"{n_tokens:,} tokens = {n_micro} x {rows} rows x {seq_len} x {plan.n_devices} device(s)"
                for n_tokens, n_micro, rows, seq_len in dict.fromkeys(
                    zip(config.stage_batch_tokens(), plan.n_micro, config.stage_rows(), plan.seq_lens, strict=True)
                )
            ),
            "steps": f"{train.steps:,}, {tokens:,} tokens{n_epochs}"
            + (f"; from step {first_step}" if first_step else ""),
            "optimizer": "; ".join(
                f"{name}: {len(n)} tensor{'s' * (len(n) > 1)}, {sum(n):,}" for name, n in counted.items()
            ),
            "compute": f"{compute}, {flops_per_token(model) / 1e6:,.1f} MFLOPs per token",
            "samples": samples,
        },
    )
