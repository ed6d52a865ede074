"""OpenVINO once more, on a graph that has each member's operations side by side instead of one vmapped operation.

Under ``vmap`` a convolution becomes a grouped one, and the members' dimension stands between it and what follows: what
OpenVINO else fuses (bias, batch normalisation, activation) and the layout of memory that its kernels like are lost at
each of them. Products gain nothing from it.
"""

from __future__ import annotations

from pathlib import Path

from torch import fx

from ensemble.backends import openvino
from ensemble.backends.chunks import MOST_CALLS, activations, spared
from ensemble.backends.graphs import aten
from ensemble.backends.job import Job
from ensemble.backends.openvino import DEVICE, PRECISIONS, QUICK, SUFFIXES, Compiled, missing
from ensemble.members import Members
from ensemble.program.program import Program

__all__ = ["DEVICE", "PRECISIONS", "QUICK", "SUFFIXES", "Compiled", "build", "chunks", "missing"]

_PRODUCTS = {aten.linear.default, aten.mm.default, aten.addmm.default, aten.bmm.default, aten.matmul.default}
# Members of one graph, which is as long as they are many.
_MOST_UNROLLED = 64


def build(job: Job, target: Path) -> None:
    """See :func:`ensemble.backends.openvino.build`."""
    openvino.build(job, target, side_by_side=True)


def chunks(program: Program, members: Members, rows: int) -> list[int]:
    """How many members' operations to put side by side; nothing if it is not worth a try.

    Members with factors would no longer share the products with what they share, and what all share would be computed
    for each. Every graph keeps its own activations.
    """
    if members.factored or members.shared_nbytes * members.count > members.nbytes:
        return []
    if program.graph is None or not convolves(program.graph):
        return []
    sizes = (size for size in range(1, _MOST_UNROLLED + 1) if members.count % size == 0)
    chunk = next((size for size in sizes if members.count // size <= MOST_CALLS), None)
    if chunk is None or not spared(members.count // chunk * activations(program, rows)):
        return []
    return [chunk]


def convolves(graph: fx.Graph) -> bool:
    """Whether a third of its products or more are convolutions: a transformer that begins with one does not."""
    targets = [node.target for node in graph.nodes]
    convolutions = targets.count(aten.convolution.default)
    return convolutions > 0 and 2 * convolutions >= sum(target in _PRODUCTS for target in targets)
