"""Repeats a test beside busy loops, to find what fails by chance:

    python -m parity_tests.repeat parity_tests/test_train.py::test_two_processes_equal_one --times 50 --busy 4

Programs are compiled once and kept in a directory of this command. The exit code is 1 if a repetition failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

SPIN = "while True: pass"


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", help="a file, or file::test")
    parser.add_argument("--times", type=int, default=10, help="repetitions")
    parser.add_argument("--busy", type=int, default=4, help="busy loops beside them")
    parser.add_argument("--within", type=float, default=float("inf"), help="start no repetition after so many seconds")
    given = parser.parse_args(args)
    loops = [subprocess.Popen([sys.executable, "-c", SPIN], start_new_session=True) for _ in range(given.busy)]
    seconds, n_failed, begin = [], 0, time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as cache:
            keep = {
                "JAX_ENABLE_COMPILATION_CACHE": "true",
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            while len(seconds) < given.times and time.monotonic() - begin < given.within:
                start = time.monotonic()
                command = [sys.executable, "-m", "pytest", "-q", given.test]
                ended = subprocess.run(command, env=os.environ | keep, capture_output=True, text=True)
                seconds.append(time.monotonic() - start)
                print(f"{len(seconds)}: exit code {ended.returncode} after {seconds[-1]:.1f} s", flush=True)
                if ended.returncode != 0:
                    n_failed += 1
                    print(ended.stdout + ended.stderr, flush=True)
    finally:
        for loop in loops:
            loop.kill()
    median = sorted(seconds)[len(seconds) // 2]
    print(f"{n_failed} of {len(seconds)} failed; slowest {max(seconds):.1f} s, median {median:.1f} s")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
