"""The type of the `pyrovae` fixture."""

from collections.abc import Callable

# (words of the command line) -> (exit code, stdout, stderr)
Command = Callable[..., tuple[int, str, str]]
