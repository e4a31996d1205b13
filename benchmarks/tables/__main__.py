"""``python -m benchmarks.tables [--check]``."""

from benchmarks.tables.documents import main

main()
