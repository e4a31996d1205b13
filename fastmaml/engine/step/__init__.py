"""The meta-step as mathematics: a pure function of parameters, episodes and randomness."""
