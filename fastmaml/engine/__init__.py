"""The inner loop, and the meta-step made of it."""
