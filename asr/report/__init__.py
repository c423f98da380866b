"""A page about a model's errors, or about recordings, that any browser opens from the disk."""
