"""How many bytes a meta-step needs, before it runs and while it does."""
