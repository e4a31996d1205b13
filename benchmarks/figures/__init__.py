"""The plots of README and docs, drawn from results."""
