"""Pages: HTML that a browser shows without a network."""
