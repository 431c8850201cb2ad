"""Footprints by compilation, each in a separate process, cached on disk.

Separate, because XLA keeps what it allocates, ends the process on some errors, and needs its environment set before
it is loaded. An answer is cached as JSON under the config, the device and the versions that gave it; nothing that
could be executed is stored, and no error, because some are temporary.
"""

import ast
import functools
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jaxgpt import config as config_lib
from jaxgpt.config import Config
from jaxgpt.errors import Failure, InputError
from jaxgpt.files import write_atomically
from jaxgpt.plan.footprint import Footprint
from jaxgpt.plan.topology import ENVIRONMENT, Topology, missing_plugin

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "libtpu")
SECTIONS = ("model", "train", "optim", "mesh")
"""Parts of a config that the compiled step depends on."""
FREE_FIELDS = {
    "train": ("init_from", "max_skips", "spike_window", "spike_sigmas", "spike_rollback", "watchdog_s"),
    "mesh": ("platform",),
}
"""Fields of those that it does not depend on."""


@dataclass(frozen=True)
class CompileCache:
    """Asks compilers, and caches the answers.

    Attributes:
      directory: of the cached answers; None: cache nothing.
      timeout_s: seconds that one compilation may take; None: as many as it needs.
    """

    directory: Path | None
    timeout_s: float | None = None

    def footprints(self, config: Config, topology: Topology) -> list[Footprint]:
        """One footprint per batch size of the run's stages.

        Raises:
          InputError: the config does not go together with the device.
          Failure: the compiler refused or died.
        """
        asked = self._key(config, topology)
        path = self._path(asked)
        if path and path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))["result"]
        else:
            result = self._compile(config, topology)
            if path and "error" not in result:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps({"asked": json.loads(asked), "result": result}))
        if "error" in result:
            raise (InputError if result["is_input"] else Failure)(result["error"])
        return [Footprint.from_json(values) for values in result["footprints"]]

    def knows(self, config: Config, topology: Topology) -> bool:
        """Whether the answer is cached."""
        path = self._path(self._key(config, topology))
        return path is not None and path.is_file()

    def _path(self, asked: str) -> Path | None:
        """Where the answer is kept; None: nowhere."""
        return self.directory and self.directory / f"{hashlib.sha256(asked.encode()).hexdigest()[:32]}.json"

    @functools.cached_property
    def _code(self) -> str:
        return hash_sources(FIRST_MODULE, Path(__file__).parents[1])

    def _key(self, config: Config, topology: Topology) -> str:
        values = {name: dict(config_lib.to_dict(config)[name]) for name in SECTIONS}
        for section, names in FREE_FIELDS.items():
            for name in names:
                values[section].pop(name)
        asked = {
            "config": values, "mask": [config.data.is_chat, config.is_rl], "shape": topology.shape,
            "device": topology.device.name, "versions": _versions(), "code": self._code,
        }  # fmt: skip
        return json.dumps(asked, sort_keys=True)

    def _compile(self, config: Config, topology: Topology) -> dict:
        install = missing_plugin(topology.platform)
        if install:
            raise Failure(f"compiling for {topology.name} needs a plug-in: {install}")
        request = {
            "config": config_lib.to_dict(config), "device": topology.name,
            "directory": str(self.directory or ""), "versions": _versions(),
        }  # fmt: skip
        inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", "from jaxgpt.plan.footprint import answer; answer()"],
                input=json.dumps(request), capture_output=True, text=True, check=False, timeout=self.timeout_s,
                env=inherited | ENVIRONMENT | {"PYTHONPATH": paths},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failure(f"the compiler for {topology.name} took more than {self.timeout_s:g} s") from error
        if done.returncode or not done.stdout:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
            raise Failure(f"the compiler for {topology.name} died ({how}): {lines[-1][:300]}")
        return json.loads(done.stdout)


FIRST_MODULE = "jaxgpt.plan.footprint"
"""Module that the compiling process starts in: what it imports decides what is compiled."""


def hash_sources(module: str, package: Path) -> str:
    """SHA-256 of a module and of all that it imports from this package, directly or not: an edit drops the answers.

    Imports are read off the sources, so nothing is loaded, and those inside functions count too.
    """
    found: dict[str, bytes] = {}
    names = [module]
    while names:
        name = names.pop()
        path = package.parent.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or not name.startswith(package.name) or not path.is_file():
            continue
        found[name] = path.read_bytes()
        names.append(name.rpartition(".")[0])
        for node in ast.walk(ast.parse(found[name])):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.encode() + b"\0" + found[name])
    return digest.hexdigest()


def installed_version(package: str) -> str:
    """Empty if the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _versions() -> dict[str, str]:
    return {name: installed_version(name) for name in PACKAGES}
