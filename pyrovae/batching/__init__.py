"""Batching: which rows come next, where they are read from, and whether a model can take them."""
