"""The outer loop for those who have none: trainer, evaluation, checkpoints, configurations."""
