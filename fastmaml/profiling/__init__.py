"""What a meta-step costs: its live memory, and its phases by time, calls, FLOPs and memory."""

from fastmaml.profiling.live_memory import LiveMemory
from fastmaml.profiling.profiler import profile
from fastmaml.profiling.report import Phase, Quantiles, Report, Timeline

__all__ = ["LiveMemory", "Phase", "Quantiles", "Report", "Timeline", "profile"]
