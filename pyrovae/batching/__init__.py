"""Batching: which rows come next, where they come from, and whether a model can take them."""
