"""The version, read by the build and by `fastmaml` itself."""

__version__ = "0.1.0"
