"""Several sets of members, each with rows of its own, in one call.

A group is an ensemble that somebody brought: the members of one seed, say, the weights of one request, or what some
examples made of the trained ones. Groups of one program with as many members each are evaluated together, by a second
``vmap`` around the one over members: what all groups share stands once, and a product of shared weights with the rows
of all groups is one large product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ensemble.errors import InputError, ModelError
from ensemble.members import Members
from ensemble.program.program import Program, TensorSpec, Weights
from ensemble.vectorised import evaluate, fitting, refused, vmappable

aten = torch.ops.aten
_LOOKUPS = (
    aten.embedding.default, aten.gather.default, aten.index_select.default, aten.index.Tensor, aten.take.default,
)  # fmt: skip


def evaluate_groups(
    program: Program,
    shared: Weights,
    weights: Weights,
    inputs: Sequence[Tensor],
    *,
    chunk: int | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Run the members of every group on the group's rows, some members at a time.

    Args:
        program: the model; where weights have factors, the one that is rewritten to use them
            (:func:`~ensemble.structured.factored_program`).
        shared: weights that all members of all groups share, each of the weight's shape.
        weights: weights that differ, each (groups, members, *shape).
        inputs: flat inputs, each (groups, rows, ...), on the weights' device. Rows that are not all a group's own come
            from :func:`pad`.
        chunk: how many members of all groups in one call, 0 for one after the other without vmap; by default as many
            as keep activations small. A model that ``vmap`` takes over members but not over rows is then run group by
            group, and one that it does not take at all member by member.

    Yields:
        Flat outputs of the next members of all groups, each (groups, some members, ...) and then as one member's.

    Raises:
        InputError: weights or inputs that do not fit each other, or a negative chunk.
        ModelError: a chunk is asked for, and the model does something that cannot be done for many members at once.
    """
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 0):
        raise InputError(f"chunk must be a number of members, or 0 for the loop, however: {chunk!r}.")
    groups, members, rows = _sizes(weights, inputs)
    if chunk == 0:
        yield loop_groups(program, shared, weights, inputs)
        return
    if chunk is None and (program.looped_because or program.apart_because):
        yield _apart(program, shared, weights, inputs)
        return
    # Where not even one member of every group fits, groups go in parts too.
    fit = fitting(program, rows)
    step = max(1, min(members, fit // groups)) if chunk is None else chunk
    part = groups if chunk is not None else max(1, min(groups, fit // step))
    first_member = {**shared, **{name: tensor[0, 0] for name, tensor in weights.items()}}
    for first in range(0, groups, part):
        check_indices(program, first_member, [tensor[first : first + part] for tensor in inputs])
    try:
        for start in range(0, members, step):
            some = {name: tensor[:, start : start + step] for name, tensor in weights.items()}
            pieces = [
                _vmapped(
                    program.with_own_inputs,
                    shared,
                    {name: tensor[first : first + part] for name, tensor in some.items()},
                    [tensor[first : first + part] for tensor in inputs],
                )
                for first in range(0, groups, part)
            ]
            yield pieces[0] if len(pieces) == 1 else tuple(torch.cat(each) for each in zip(*pieces, strict=True))
    except ModelError as error:
        # Refused with the first chunk, or not at all.
        if chunk is not None:
            raise
        program.apart_because = str(error)
        yield _apart(program, shared, weights, inputs)


def grouped(
    program: Program, shared: Weights, weights: Weights, inputs: Sequence[Tensor], *, chunk: int | None = None
) -> tuple[Tensor, ...]:
    """As :func:`evaluate_groups`, all members at once.

    Returns:
        Flat outputs, each (groups, members, ...) and then as one member's.
    """
    chunks = list(evaluate_groups(program, shared, weights, inputs, chunk=chunk))
    return chunks[0] if len(chunks) == 1 else tuple(torch.cat(each, 1) for each in zip(*chunks, strict=True))


def loop_groups(program: Program, shared: Weights, weights: Weights, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The reference: group after group, and in each one member after the other. As :func:`grouped`."""
    groups, members, _ = _sizes(weights, inputs)
    each: list[list[tuple[Tensor, ...]]] = []
    for group in range(groups):
        rows = [tensor[group] for tensor in inputs]
        each.append([])
        for member in range(members):
            own = {name: tensor[group, member] for name, tensor in weights.items()}
            with program.exclusively(), torch.no_grad(), vmappable():
                each[-1].append(program({**shared, **own}, rows))
    return tuple(
        torch.stack([torch.stack([outputs[index] for outputs in group]) for group in each])
        for index in range(len(program.outputs))
    )


def check_indices(program: Program, weights: Weights, inputs: Sequence[Tensor]) -> None:
    """That no group's rows point beyond the end of a table, which one member tells of all.

    Under ``vmap`` the tables of groups lie one behind the other: an index beyond the end of one group's table reads the
    next one's, and only the last is told of.

    Args:
        weights: of any one member.
        inputs: flat inputs, each (groups, rows, ...).

    Raises:
        IndexError: one does, as the loop would tell.
    """
    if inputs[0].shape[0] == 1 or not _looks_up(program):
        return
    with program.exclusively(), torch.no_grad(), vmappable():
        program(weights, [tensor.flatten(0, 1) for tensor in inputs])


def _looks_up(program: Program) -> bool:
    # Of a live module it is not known.
    return program.graph is None or any(
        program.graph.find_nodes(op="call_function", target=target) for target in _LOOKUPS
    )


def pad(groups: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], list[int]]:
    """Groups' rows, of which some have more than others, as one tensor for each input.

    Args:
        groups: of each group its flat inputs, each (its rows, ...), at least one row.

    Returns:
        The flat inputs, each (groups, most rows, ...), short groups filled with their last row; and how many of the
        rows are each group's own.
    """
    counts = [group[0].shape[0] for group in groups]
    if not counts or min(counts) < 1:
        raise InputError("There must be at least one group, and in each at least one row.")
    most = max(counts)
    inputs = []
    for index in range(len(groups[0])):
        parts = [group[index] for group in groups]
        filled = [
            tensor
            if count == most
            # A made-up row could be one that the model cannot be evaluated on.
            else torch.cat([tensor, tensor[-1:].expand(most - count, *tensor.shape[1:])])
            for tensor, count in zip(parts, counts, strict=True)
        ]
        inputs.append(torch.stack(filled))
    return inputs, counts


def as_rows(outputs: Sequence[Tensor], specs: Sequence[TensorSpec], counts: Sequence[int]) -> tuple[Tensor, ...]:
    """Outputs of all groups as those of one batch, which has the rows of one group after those of another.

    Args:
        outputs: flat outputs, each (groups, members, ...), as :func:`evaluate_groups` yields them.
        specs: the program's outputs.
        counts: how many of the rows are each group's own; the others are left out.

    Returns:
        Flat outputs, each (members, ...) and then as one member's, with all groups' rows as its batch.
    """
    found = []
    for output, spec in zip(outputs, specs, strict=True):
        batch = 2 + spec.batch_dim
        rows = output.shape[batch]
        merged = output.movedim(0, batch - 1).flatten(batch - 1, batch)
        if min(counts) < rows:
            own = [group * rows + row for group, count in enumerate(counts) for row in range(count)]
            merged = merged.index_select(batch - 1, torch.tensor(own, device=merged.device))
        found.append(merged)
    return tuple(found)


def _apart(program: Program, shared: Weights, weights: Weights, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Group after group, the members of each together where that can be done."""
    groups, count, _ = _sizes(weights, inputs)
    each = []
    for group in range(groups):
        members = Members(count, dict(shared), {name: tensor[group] for name, tensor in weights.items()})
        chunks = list(evaluate(program, members, [tensor[group] for tensor in inputs]))
        each.append([torch.cat(parts) for parts in zip(*chunks, strict=True)])
    return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True))


def _vmapped(program: Program, shared: Weights, weights: Weights, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    def one(own: dict[str, Tensor], rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return program({**shared, **own}, rows)

    members = torch.vmap(one, in_dims=(0, None), randomness="error")
    with program.exclusively(), torch.no_grad(), vmappable():
        try:
            found: tuple[Tensor, ...] = torch.vmap(members, in_dims=(0, 0), randomness="error")(
                dict(weights), tuple(inputs)
            )
            return found
        except RuntimeError as error:
            if refusal := refused(program, error):
                raise refusal from error
            raise


def _sizes(weights: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> tuple[int, int, int]:
    """How many groups, members of each, and rows of each; checked."""
    leading = {name: tuple(tensor.shape[:2]) for name, tensor in weights.items()}
    batches = {tuple(tensor.shape[:2]) for tensor in inputs}
    if len(set(leading.values())) != 1 or len(next(iter(leading.values()))) != 2:
        raise InputError(f"All weights must begin with (groups, members), the same for each, however: {leading}.")
    (groups, members), rows = next(iter(leading.values())), next(iter(batches))
    if len(batches) != 1 or len(rows) != 2 or rows[0] != groups or min(groups, members, rows[1]) < 1:
        raise InputError(
            f"All inputs must begin with (groups, rows), of the {groups} groups of the weights, however: {batches}."
        )
    return groups, members, rows[1]
