"""The measurements: each is a program with ``--help``, and most write a file of results."""
