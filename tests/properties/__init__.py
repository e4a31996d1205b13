"""Properties that hold for random modules, tapes and changes, checked with hypothesis.

`tests/test_properties_*.py` runs a fixed minute of them, `make fuzz MINUTES=10` new ones for as
long as one lets it. Cases are plain data: what is printed of a failure runs it again (`run.py`).
"""
