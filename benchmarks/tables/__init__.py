"""The tables of README and docs, written from results by ``python -m benchmarks.tables``."""
