"""Measurements beside peers: run from the source tree, each prints a table."""
