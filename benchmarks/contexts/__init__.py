"""Rows whose weights follow a context: together, and one at a time."""
