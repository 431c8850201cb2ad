"""Token shards as modded-nanogpt's corpus is published: fetched, checked, and described in a manifest."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.data import hub
from jaxgpt.data.digests import sha256_of
from jaxgpt.data.manifest import read_manifest
from jaxgpt.data.shards import Split, check_ids, inspect_shard, split_blocks
from jaxgpt.data.tokenizer import GPT2Tokenizer
from jaxgpt.errors import InputError
from jaxgpt.prepare.corpora import FINEWEB, FINEWEB_TRAIN_SHARDS, SHARD_LIMIT_BYTES, fineweb_names
from jaxgpt.prepare.encode import describe_tokens
from jaxgpt.run.console import console
from jaxgpt.run.progress import Progress


def gather_shards(
    inputs: list[Path], n_shards: int | None, out: Path, scratch: Path, progress: Progress
) -> dict[str, Any]:
    """Fetches FineWeb's shards into `out` (existing ones are kept) and describes them for the manifest."""
    local = {path.name: path for path in inputs}
    known = known_digests(out)
    if inputs and n_shards is None:
        n_shards = sum(name.startswith("fineweb_train_") for name in local)
    tokenizer = GPT2Tokenizer()
    token_bytes = tokenizer.token_bytes().astype(np.int64)
    splits = {name: {"files": [], "n_tokens": 0, "n_bytes": 0, "n_documents": 0} for name in ("train", "val")}
    for name in fineweb_names(n_shards or FINEWEB_TRAIN_SHARDS):
        path = place_shard(name, local, known.get(name, ""), out, scratch, progress)
        file = inspect_shard(path, wants="llmc")
        split = splits["val" if "_val_" in name else "train"]
        whole = Split(name, path.parent, (file,))
        check_ids(whole, tokenizer.vocab_size)
        counts = np.zeros(tokenizer.vocab_size, np.int64)
        for _, tokens in split_blocks(whole):
            counts += np.bincount(tokens, minlength=tokenizer.vocab_size)
        entry = {"name": name, "n_tokens": file.n_tokens, "size_bytes": file.size_bytes, "sha256": sha256_of(path)}
        split["files"].append({**entry, "format": "llmc"})
        split["n_tokens"] += file.n_tokens
        split["n_bytes"] += int(counts @ token_bytes)
        split["n_documents"] += int(counts[tokenizer.end_of_text])
    for path in (scratch / "downloads").glob("*.bin"):
        os.replace(path, scratch / "shards" / path.name)
    return describe_tokens(tokenizer, np.dtype(np.uint16), splits)


def known_digests(out: Path) -> dict[str, str]:
    """SHA-256 of the shards that were fetched into `out` before."""
    with contextlib.suppress(InputError):
        return {entry.name: entry.sha256 for entries in read_manifest(out).splits.values() for entry in entries}
    return {}


def place_shard(name: str, local: dict[str, Path], sha256: str, out: Path, scratch: Path, progress: Progress) -> Path:
    """Where the shard is now: in `out`, or in scratch/downloads after a copy or a download.

    Args:
      sha256: that it had when it was fetched before; empty: none is known.
    """
    if (out / name).exists():
        if not sha256 or sha256_of(out / name) == sha256:
            return out / name
        console.say(f"{out / name} changed since it was fetched; fetching it again")
    path = scratch / "downloads" / name
    if not local:
        hub.fetch_to(FINEWEB, name, path, limit_bytes=SHARD_LIMIT_BYTES, progress=progress.download(name))
    elif name not in local:
        raise InputError(f"--input has no {name}; fetch it, or ask for fewer with --shards")
    else:
        shutil.copyfile(local[name], path)
    return path
