"""The inner loop, the meta-step made of it, and how it is planned, recorded and run.

Its rooms stand on floors, of which each knows those below it alone: `base`, `guards`, `model`,
`derivatives`, `routing`, `step`, `recording`, `memory`, `planning`.
"""
