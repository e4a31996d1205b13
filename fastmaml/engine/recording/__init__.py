"""A meta-step recorded once as a flat program, and how that runs again."""
