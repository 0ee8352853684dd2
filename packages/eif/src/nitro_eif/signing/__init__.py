"""Sign image files and take signatures away."""
