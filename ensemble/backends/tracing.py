"""A call of several members as one flat graph: what every compiler is given."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from ensemble.backends.job import Job
from ensemble.program.graph import places, skeleton


def trace(job: Job, *, side_by_side: bool = False) -> tuple[fx.GraphModule, list[Tensor]]:
    """Trace a job's call into plain operations, on tensors without data.

    Args:
        side_by_side: each member's operations by themselves, instead of vmapped ones for all.

    Returns:
        A module that takes the shared weights, the members' own and the inputs, all flat and in the job's order, and
        returns the flat outputs, (chunk, rows, ...) each; and tensors without data like those that it takes.
    """
    graph, device = job.read_graph(), torch.device(job.device)
    where = places(graph)
    shared, own = [where[s.name] for s in job.shared], [where[s.name] for s in job.own]
    with FakeTensorMode():
        tensors = [spec.empty(device) for spec in (*job.shared, *job.own, *job.inputs)]
        one = dict(zip([s.name for s in job.shared], tensors, strict=False))
        one |= {s.name: t[0] for s, t in zip(job.own, tensors[len(shared) :], strict=False)}
        module = skeleton(graph, one)

    def flat(*given: Tensor) -> tuple[Tensor, ...]:
        common = dict(zip(shared, given, strict=False))
        mine = dict(zip(own, given[len(shared) :], strict=False))
        inputs = given[len(shared) + len(own) :]

        def member(weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
            outputs: tuple[Tensor, ...] = functional_call(module, {**common, **weights}, inputs, tie_weights=False)
            return outputs

        if side_by_side:
            each = [member({name: weight[index] for name, weight in mine.items()}) for index in range(job.chunk)]
            return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True))
        return torch.vmap(member, randomness="error")(mine)

    with torch.no_grad():
        return make_fx(flat, tracing_mode="fake")(*tensors), tensors
