"""Compilers of a call of several members, one a file, all of one shape.

A backend says why it is missing on a device (``missing``), builds a :class:`~ensemble.backends.job.Job` to files with
its ``SUFFIXES`` (``build``, in the worker process), makes a call of them (``Compiled``), and says for how many members
at once it is worth a try (``chunks``; for none, if it is not). ``DEVICE`` is the one that it is for, empty for all;
``PRECISIONS`` are those in which it can compute, "float32" for the weights' own dtype; ``QUICK`` says whether it builds
in seconds.
"""

from __future__ import annotations

from types import ModuleType

from ensemble.backends import cudagraph, inductor, openvino, unrolled

# The most promising first, where they are worth a try at all.
BACKENDS: dict[str, ModuleType] = {
    "unrolled": unrolled,
    "openvino": openvino,
    "inductor": inductor,
    "cudagraph": cudagraph,
}
