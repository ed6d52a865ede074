"""What a compiled call says of inputs that are not for it."""

from __future__ import annotations


class Declined(Exception):  # noqa: N818 - no error: the call is made without it
    """On these inputs a compiled call would give other answers than PyTorch, or fails; PyTorch is to run them."""
