"""What measures fastmaml and writes what README and docs show; README.md says which room has what.

Programs run from the repository's root: ``python -m benchmarks.programs.growth --quick``.
"""
