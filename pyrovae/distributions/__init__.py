"""Densities that torch and Pyro lack."""
