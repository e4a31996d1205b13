"""What models of other libraries need inside a meta-step. Nothing here imports them by itself."""
