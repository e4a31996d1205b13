"""Trying a model out, and choosing how its meta-steps run."""
