"""Engines: what one step of SVI is, and the ways to run it: eagerly, traced, compiled, or as a CUDA graph."""
