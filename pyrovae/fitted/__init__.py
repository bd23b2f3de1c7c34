"""What a fit leaves: the fitted pair, and its form on disk."""
