"""Objectives: from one run of model and guide to a number to maximise, or to log-weights for evaluation."""
