"""Takes a run to another framework or program: python -m jaxgpt.convert --from RUN --to FORM DIR

RUN is a run of jaxgpt or torch_ref, a checkpoint directory of nanochat's (or one model_NNNNNN.pt in it), or nanoGPT's
ckpt.pt (or its out_dir). Of a directory the newest checkpoint that verifies is read.

torch, jax: DIR becomes a run directory with a checkpoint of that framework: parameters, optimizer state, step,
counters and loss scale move bit for bit, and what the checkpoint says about its run goes along. metrics.jsonl is
copied, and config.py is the run's settings with run.dir=DIR, so that the run continues by

    python -m torch_ref.train --config DIR/config.py --resume      (or jaxgpt.train)

nanochat, nanogpt: files that those programs resume from; nanochat's processes each load their own, as many as
--ranks. hf writes a directory that transformers' pipeline loads: weights, tokenizer, settings, a model card; gguf one
file for llama.cpp. RUN is only read, and nothing in it is executed.
"""

import argparse
import shlex
from typing import NoReturn

from jaxgpt.config.schedule import tokens_before
from jaxgpt.convert.foreign import FOREIGN, read_foreign, write_foreign
from jaxgpt.convert.runs import params_of, read_run, write_run
from jaxgpt.errors import InputError, run_verb
from jaxgpt.files import user_file
from jaxgpt.formats.export import FORMS, export
from jaxgpt.inference.trained import choose_tokenizer
from jaxgpt.run.console import console


def parse_args(args: list[str]) -> argparse.Namespace:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message}; --help lists the arguments")

    parser = Parser(
        "python -m jaxgpt.convert",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="run", metavar="RUN", type=user_file, required=True, help="a run, of any of these programs"
    )
    parser.add_argument("--to", choices=("torch", "jax", *FOREIGN, *FORMS), required=True)
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="nanochat: processes it will run; default: 1")
    parser.add_argument("--weights-only", action="store_true", help="nanochat, nanogpt: leave the optimizer out")
    parser.add_argument(
        "out", metavar="DIR", type=user_file, help="where the converted run goes; must be empty or not exist"
    )
    given = parser.parse_args(args)
    if given.ranks < 1 or (given.ranks > 1 and given.to != "nanochat"):
        raise InputError(f"--ranks={given.ranks} is for --to=nanochat, and at least 1; leave it out")
    if given.weights_only and given.to not in FOREIGN:
        raise InputError(f"--weights-only is for --to={' and --to='.join(FOREIGN)}; leave it out")
    return given


def main(args: list[str]) -> int:
    given = parse_args(args)
    run, out = given.run, given.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not empty; choose another directory")
    saved = None if (run / "checkpoints").is_dir() else read_foreign(run)
    saved = saved or read_run(run)
    try:
        if given.to in FORMS or given.to in FOREIGN:
            tokenizer = choose_tokenizer(saved.about.get("tokenizer"), saved.config.model)
        if given.to in FOREIGN:
            options = {"n_ranks": given.ranks, "weights_only": given.weights_only}
            done = write_foreign(given.to, out, saved, tokenizer, **options)
        elif given.to in FORMS:
            facts = {"step": f"{saved.step:,}", "tokens": f"{tokens_before(saved.config, saved.step):,}"}
            if saved.val_loss is not None:
                facts["validation loss"] = f"{saved.val_loss:.4f} nats per token"
            params = params_of(saved.leaves)
            done = f"wrote {out}: {export(given.to, out, saved.config, params, tokenizer, facts)}"
        else:
            write_run(saved, given.to, run, out)
            verb = {"torch": "torch_ref", "jax": "jaxgpt"}[given.to]
            done = f"next: python -m {verb}.train --config {shlex.quote(str(out / 'config.py'))} --resume"
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}; choose another directory") from error
    console.print(f"step {saved.step} of {run}, {saved.framework} -> {given.to}; {done}", soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    run_verb(main)
