"""Total variation between speculative decoding and its target, at 1 to 4 drafted tokens.

`python -m parity_tests.speculative_law`: a few minutes.
Prints a table, and fails where a distance is above what chance gives, or where the planted fault is not.
"""

import sys

from parity_tests.helpers.speculation import HOT, N_RUNS, NARROW, chain_deviation, make_engine, model_deviation


def main() -> int:
    n_failed, big, small = 0, make_engine(1), make_engine(2)
    print(f"{N_RUNS} runs, first three tokens: total variation, and mean + 3 standard errors of chance")
    for n_draft in (1, 2, 3, 4):
        for name, (found, limit) in (
            ("chain", chain_deviation(n_draft)),
            ("models, T 0.8", model_deviation(big, small, n_draft, HOT)),
            ("models, T 1.5, top_k 4, top_p 0.9", model_deviation(big, small, n_draft, NARROW)),
        ):
            print(f"K {n_draft}  {name:<34}{found:.4f}  {limit:.4f}  {'ok' if found < limit else 'FAILED'}", flush=True)
            n_failed += found >= limit
    found, limit = chain_deviation(1, is_faulty=True)
    print(f"K 1  chain, planted fault{'':<15}{found:.4f}  {limit:.4f}  {'caught' if found > limit else 'FAILED'}")
    return int(n_failed > 0 or found <= limit)


if __name__ == "__main__":
    sys.exit(main())
