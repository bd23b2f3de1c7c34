"""The contenders of benchmarks/speed.py, one module a library; each runs in a process of its own (worker.py)."""
