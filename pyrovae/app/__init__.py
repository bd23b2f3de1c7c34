"""The application: what the `pyrovae` command does, as functions."""
