"""What several tests use: pairs and programs with known answers, and references written by hand."""
