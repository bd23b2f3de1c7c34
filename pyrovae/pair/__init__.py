"""A pair of a model p(x, z) and its guide q(z | x): what it is, how it is run, described and checked."""
