"""OpenVINO once more, on a graph that has each member's operations side by side instead of one vmapped operation.

Under ``vmap`` a convolution becomes a grouped one, and the members' dimension stands between it and what follows: what
OpenVINO else fuses (bias, batch normalisation, activation) and the layout of memory that its kernels like are lost at
each of them. Products gain nothing from it.
"""

from __future__ import annotations

from ensemble.backends.openvino import ANY_MEMBERS, DEVICE, PRECISIONS, SUFFIXES, Compiled, build, missing
from ensemble.members import Members
from ensemble.program.graph import convolves
from ensemble.program.program import Program

__all__ = ["ANY_MEMBERS", "DEVICE", "PRECISIONS", "SUFFIXES", "Compiled", "build", "chunk", "missing"]

# Graphs of one batch, each with its own copy of what members share, and members of one graph, which is as long as they
# are many.
_MOST_GRAPHS = 16
_MOST_UNROLLED = 64


def chunk(program: Program, members: Members) -> int:
    """How many members' operations to put side by side; 0 if it is not worth a try.

    Those that share their weights would no longer share the products with them.
    """
    shared = sum(tensor.nbytes for tensor in members.shared.values())
    if members.factored or shared * members.count > members.nbytes or not program.graph or not convolves(program.graph):
        return 0
    sizes = (size for size in range(1, _MOST_UNROLLED + 1) if members.count % size == 0)
    return next((size for size in sizes if members.count // size <= _MOST_GRAPHS), 0)
