"""metrics.jsonl: one object per logged step, floats at full precision, flushed at once."""

import json
from pathlib import Path

from jaxgpt.files import write_atomically


class MetricsFile:
    """metrics.jsonl of a run directory, truncated to `first_step` when a run resumes from there."""

    def __init__(self, path: Path, first_step: int):
        kept = [record for record in read_metrics(path) if record["step"] <= first_step] if path.exists() else []
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the run

    def write(self, record: dict) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """The records of a metrics.jsonl; a last line that a kill cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def describe(record: dict) -> str:
    """A record as one console line."""
    parts = [f"step {record['step']}", f"loss {record['train_loss']:.4f}"]
    if record.get("val_loss") is not None:
        bits = record.get("val_bits_per_byte")
        parts.append(f"val {record['val_loss']:.4f}" + (f" ({bits:.4f} bits/byte)" if bits is not None else ""))
    parts += [f"lr {record['lr']:.2e}", f"{record['tokens_per_s'] / 1e3:,.1f}K tok/s"]
    if record.get("mfu") is not None:
        parts.append(f"MFU {record['mfu']:.1%}")
    if record.get("n_skipped"):
        parts.append(f"skipped {record['n_skipped']}")
    return "  ".join(parts)
