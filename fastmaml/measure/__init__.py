"""What a meta-step costs, and whether it is right: `profile`, `bench`, `verify`."""
