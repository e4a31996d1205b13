"""Derivatives that user code takes, and what cannot be differentiated as it stands."""
