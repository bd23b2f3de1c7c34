"""Objectives: traces of a pair become a number to maximise, or the log-weights that every evaluation starts from."""
