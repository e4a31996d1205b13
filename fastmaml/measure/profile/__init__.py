"""What a meta-step costs: its live memory, and its phases by time, calls, FLOPs and memory."""

from fastmaml.engine.memory.live import LiveMemory
from fastmaml.measure.profile.profiler import profile
from fastmaml.measure.profile.report import Phase, Quantiles, Report, Timeline

__all__ = ["LiveMemory", "Phase", "Quantiles", "Report", "Timeline", "profile"]
