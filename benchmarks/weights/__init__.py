"""Requests that bring members of their own, beside the same requests one at a time."""
