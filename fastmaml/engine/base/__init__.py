"""What the engine stands on and what knows nothing of MAML."""
