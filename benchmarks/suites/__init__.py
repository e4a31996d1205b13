"""The suites for pytest-benchmark; ``python -m benchmarks.programs.run_suites`` runs them."""
