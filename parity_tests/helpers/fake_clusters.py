"""Stand-ins for the programs of SLURM and Google Cloud: small scripts in a directory that a test puts before PATH.

srun starts its tasks on this machine, with the variables that the real one sets (seen with SLURM 22.05, one node).
gcloud knows the commands and flags that the scripts may use (Google Cloud SDK's `--help`), refuses others, writes down
its arguments, and plays a list of states and exit codes.
"""

import json
import sys
from pathlib import Path

from parity_tests.helpers.environment import REPO

JAXGPT = f"""#!/bin/sh
verb=$1; shift
PYTHONPATH={REPO} exec {sys.executable} -m jaxgpt.$verb "$@"
"""

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
tasks=()
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_TASKS=$SLURM_NTASKS "$@" &
  tasks+=($!)
done
echo "${tasks[@]}" > tasks
highest=0
for task in "${tasks[@]}"; do
  wait "$task"
  code=$?
  ((code > highest)) && highest=$code
done
exit $highest
"""

GCLOUD = """#!{python}
import json, pathlib, sys
FLAGS = {{
    "queued-resources describe": ("--zone", "--format"),
    "queued-resources delete": ("--zone", "--force", "--quiet"),
    "queued-resources create": ("--node-id", "--zone", "--accelerator-type", "--runtime-version", "--spot"),
    "tpu-vm scp": ("--zone", "--worker", "--quiet"),
    "tpu-vm ssh": ("--zone", "--worker", "--quiet", "--command"),
}}
plan = pathlib.Path(__file__).with_name("plan.json")
script = json.loads(plan.read_text())
*product, kind, verb = sys.argv[1:5]
assert product == ["compute", "tpus"], product
action, args = f"{{kind}} {{verb}}", sys.argv[5:]
flags = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
unknown = [flag for flag in flags if flag not in FLAGS[action]]
assert not unknown, unknown
script["calls"].append([action, *args])
what = "train" if "--auto-resume" in args[-1] else "describe" if verb == "describe" else ""
answer = script[what].pop(0) if what else 0
plan.write_text(json.dumps(script))
if verb == "describe":
    print(answer)
else:
    sys.exit(answer)
"""


def write_programs(directory: Path, **programs: str) -> Path:
    """Executable files in <directory>/bin, which it returns."""
    (directory / "bin").mkdir()
    for name, text in programs.items():
        (directory / "bin" / name).write_text(text)
        (directory / "bin" / name).chmod(0o755)
    return directory / "bin"


def write_gcloud(directory: Path, describe: list[str], train: list[int]) -> Path:
    """A gcloud that answers with these states of the request, and these exit codes of training, in their order."""
    programs = write_programs(directory, gcloud=GCLOUD.format(python=sys.executable))
    (programs / "plan.json").write_text(json.dumps({"describe": describe, "train": train, "calls": []}))
    return programs
