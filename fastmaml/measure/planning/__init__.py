"""`plan_memory`: how much memory a meta-step of a language model would need, without running it."""

from fastmaml.measure.planning.known import KNOWN_MODELS
from fastmaml.measure.planning.plan import MemoryPlan, Way, plan_memory

__all__ = ["KNOWN_MODELS", "MemoryPlan", "Way", "plan_memory"]
