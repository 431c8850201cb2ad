"""Random faults against short runs: `python -m parity_tests.chaos`."""
