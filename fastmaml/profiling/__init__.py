"""What a meta-step costs: its live memory."""

from fastmaml.profiling.live_memory import LiveMemory

__all__ = ["LiveMemory"]
