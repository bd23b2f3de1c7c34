"""The result of a fit: the fitted pair, and its form on disk."""
