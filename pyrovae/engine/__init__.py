"""The engine: what one SVI step is, and the ways to run it: eager, traced, compiled, or as a CUDA graph."""
