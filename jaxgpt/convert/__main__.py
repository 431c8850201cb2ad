"""Takes a run to another framework or program, or exports its model.

RUN is a run of jaxgpt or torch_ref, a checkpoint directory of nanochat's (or one model_NNNNNN.pt in it), or nanoGPT's
ckpt.pt (or its out_dir). Of a directory the newest checkpoint that verifies is read.

torch, jax: DIR becomes a run directory with a checkpoint of that framework: parameters, optimizer state, step,
counters and loss scale move bit for bit, and what the checkpoint says about its run goes along. metrics.jsonl is
copied, and config.py is the run's settings with run.dir=DIR, so that the run continues by

    python -m torch_ref.train --config DIR/config.py --resume      (or jaxgpt train)

nanochat, nanogpt: files that those programs resume from; nanochat's processes each load their own, as many as
--ranks. hf writes a directory that transformers' pipeline loads: weights, tokenizer, settings, a model card; gguf one
file for llama.cpp. --push uploads what hf has written to the Hugging Face hub. RUN is only read, and nothing in it is
executed.
"""

# ruff: noqa: E402 - mistakes are answered before the imports that take seconds
import argparse

from jaxgpt.config.parser import Parser
from jaxgpt.errors import InputError, answer_early
from jaxgpt.files import user_file, user_location

PARSER = Parser("jaxgpt convert", __doc__, "--from RUN --to FORM DIR", "--from runs/quickstart --to hf exported")
PARSER.add_argument(
    "--from", dest="run", metavar="RUN", type=user_location, required=True, help="a run, of any of these programs"
)
PARSER.add_argument(
    "--to", choices=("torch", "jax", "nanochat", "nanogpt", "hf", "gguf"), required=True, help="what to make of it"
)
PARSER.add_argument("out", metavar="DIR", type=user_file, help="where it goes; must be empty or not exist")
PARSER.add_argument("--push", metavar="OWNER/NAME", help="with --to hf: upload it to this model of the hub")
PARSER.add_argument("--private", action="store_true", help="with --push: make a new repository private")
PARSER.add_argument("--revision", metavar="BRANCH", default="main", help="with --push (main)")
PARSER.add_argument("--ranks", type=int, default=1, metavar="N", help="nanochat: processes it will run (1)")
PARSER.add_argument("--weights-only", action="store_true", help="nanochat, nanogpt: leave the optimizer out")


def read_arguments(args: list[str]) -> argparse.Namespace:
    given = PARSER.read(args)
    if given.ranks < 1 or (given.ranks > 1 and given.to != "nanochat"):
        raise InputError(f"--ranks={given.ranks} is for --to=nanochat, and at least 1; leave it out")
    if given.weights_only and given.to not in ("nanochat", "nanogpt"):
        raise InputError("--weights-only is for --to=nanochat and --to=nanogpt; leave it out")
    if given.push is not None and given.to != "hf":
        raise InputError(f"--push={given.push} needs --to hf, not --to {given.to}")
    if given.push is None and (given.private or given.revision != "main"):
        raise InputError("--private and --revision belong to --push OWNER/NAME; give it too")
    return given


if __name__ == "__main__":
    answer_early(read_arguments)

import shlex
from pathlib import Path

from jaxgpt.config.schedule import tokens_before
from jaxgpt.convert.foreign import FOREIGN, read_foreign, write_foreign
from jaxgpt.convert.runs import params_of, read_run, write_run
from jaxgpt.data.hub_repository import Repository
from jaxgpt.errors import run_verb
from jaxgpt.formats.export import FORMS, export
from jaxgpt.formats.push import check_push, push
from jaxgpt.inference.trained import choose_tokenizer
from jaxgpt.run.console import console
from jaxgpt.run.remote import RemoteRun, opened_run


def main(args: list[str]) -> int:
    given = read_arguments(args)
    with opened_run(given.run, "--from") as (run, remote):
        return convert(given, run, remote)


def convert(given: argparse.Namespace, run: Path, remote: RemoteRun | None) -> int:
    out = given.out
    hub = Repository(given.push, given.revision) if given.push is not None else None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not empty; choose another directory")
    if hub:
        check_push(hub, is_private=given.private)
    saved = None if (run / "checkpoints").is_dir() else read_foreign(run)
    saved = saved or read_run(run, remote)
    try:
        if given.to in FORMS or given.to in FOREIGN:
            tokenizer = choose_tokenizer(saved.about.get("tokenizer"), saved.config.model)
        if given.to in FOREIGN:
            options = {"n_ranks": given.ranks, "weights_only": given.weights_only}
            done = write_foreign(given.to, out, saved, tokenizer, **options)
        elif given.to in FORMS:
            facts = {
                "data": saved.config.data.dir,
                "optimizer": saved.config.optim.algorithm,
                "step": f"{saved.step:,}",
                "tokens": f"{tokens_before(saved.config, saved.step):,}",
            }
            if saved.val_loss is not None:
                facts["validation loss"] = f"{saved.val_loss:.4f} nats per token"
            params = params_of(saved.leaves)
            done = f"wrote {out}: {export(given.to, out, saved.config, params, tokenizer, facts)}"
        else:
            write_run(saved, given.to, run, out)
            verb = {"torch": "python -m torch_ref.train", "jax": "jaxgpt train"}[given.to]
            done = f"next: {verb} --config {shlex.quote(str(out / 'config.py'))} --resume"
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}; choose another directory") from error
    console.print(f"step {saved.step} of {run}, {saved.framework} -> {given.to}; {done}", soft_wrap=True, markup=False)
    if hub:
        size = sum(path.stat().st_size for path in out.iterdir())
        console.print(f"uploading {size / 1e6:,.1f} MB to {hub}", soft_wrap=True, markup=False)
        url = push(out, hub, is_private=given.private, message=f"step {saved.step:,} of a run of jaxgpt")
        console.print(f"uploaded: {url}", soft_wrap=True, markup=False)
    return 0


if __name__ == "__main__":
    run_verb(main)
