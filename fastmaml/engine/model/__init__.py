"""What the user's module is and holds."""
