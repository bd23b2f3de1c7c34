"""A model p(x, z) and its guide q(z | x) as a pair: what that is, and how it is run, described, checked and drawn."""
