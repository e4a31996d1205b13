"""fastmaml.compat beside the packages whose scripts it runs: names, numbers and their own tests."""
