"""What adapts of an ensemble: which weights, in which program, and the memory that takes.

Where members have factors, a weight that adapts in full becomes dense in each member, since gradient steps leave no
thin matrix; the others keep their factors. So the program is rewritten once for a choice of weights, and kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ensemble.ensemble import Ensemble
from ensemble.errors import InputError, RecipeError
from ensemble.memory import require
from ensemble.perturbation.base import choose
from ensemble.perturbation.factors import Factors
from ensemble.program.program import Program
from ensemble.structured import LEFT, RIGHT, factored_program

# Weights, their gradients, and the next weights stand beside each other during a step.
_COPIES = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Adaptable:
    """Members of an ensemble, and which of their weights adapt; :meth:`of` makes it.

    Args:
        ensemble: whose members.
        program: runs them, with the factors of the weights that do not adapt in full.
        start: the weights that adapt before the first step, (members, *shape), or as one member's where all share it.
        fixed: the other weights that the program reads, alike.
        differing: names of all those that have a dimension of members.
        members: how many.
        refusals: why vmap refuses the steps, once that was found out; tasks and members then adapt one by one.
    """

    ensemble: Ensemble
    program: Program
    start: dict[str, Tensor]
    fixed: dict[str, Tensor]
    differing: frozenset[str]
    members: int
    refusals: list[str] = dataclasses.field(default_factory=list)

    @staticmethod
    def of(
        ensemble: Ensemble,
        *,
        weights: str | Sequence[str] = "*",
        factors: bool = False,
        members: int | None = None,
    ) -> Adaptable:
        """Choose what adapts.

        Args:
            weights: patterns of names; "*" stands for the weights in which members differ, any other pattern is looked
                for among all floating-point weights.
            factors: adapt the factors that members have, and no weight in full.
            members: only the first so many.

        Raises:
            RecipeError: a pattern that matches nothing.
            InputError: there are no factors, or not so many members.
        """
        all_members = ensemble.members
        count = len(ensemble) if members is None else members
        if not 1 <= count <= len(ensemble):
            raise InputError(f"members must be between 1 and {len(ensemble)}, however: {members}.")
        chosen = _chosen(ensemble, weights)
        if factors and not any(name in all_members.factored for name in chosen):
            raise InputError("This ensemble's members have no factors in these weights; adapt them in full.")
        dense = set() if factors else {name for name in chosen if name in all_members.factored}
        kept = {name: shape for name, shape in all_members.factored.items() if name not in dense}
        program = factored_program(ensemble.program, kept) if kept else ensemble.program
        if dense:
            full = ensemble.program.empty_weights()
            kinds = [(full[name].dtype, full[name].shape) for name in dense]
            require(kinds, count, ensemble.device, factors="factors=True")
        own = all_members.slice(0, count)
        every = {**all_members.shared, **own}
        differing = set(own)
        for name in dense:
            pair = Factors(all_members.factored[name].form, every.pop(name + LEFT), every.pop(name + RIGHT))
            every[name] = pair.materialise(every[name]).to(every[name].dtype)
            differing = differing - {name + LEFT, name + RIGHT} | {name}
        names = []
        for name in chosen:
            names += [name + LEFT, name + RIGHT] if name in kept else [name]
        read = [name for name in program.weight_names if name in every]
        return Adaptable(
            ensemble,
            program,
            {name: every[name] for name in names},
            {name: every[name] for name in read if name not in names},
            frozenset(differing),
            count,
        )

    def one_member(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first member's of some of the weights, before the first step."""
        return {name: tensor[0] if name in self.differing else tensor for name, tensor in weights.items()}

    @property
    def weight_bytes(self) -> int:
        """Bytes of the adapted weights of all members for one task."""
        return self.members * sum(t.numel() * t.element_size() for t in self.one_member(self.start).values())

    def task_bytes(self, rows: int) -> int:
        """An upper bound of the bytes that one task needs at once: weights, gradients, and activations.

        Args:
            rows: of its examples, or of its queries if those are more.
        """
        return task_bytes(self.program, self.weight_bytes, self.members, rows)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """A call's arguments, each tensor (tasks, rows, ...), as flat inputs.

        Raises:
            InputError: they do not fit the model.
        """
        tensors = self.program.arguments.bind(args, kwargs)
        for spec, tensor in zip(self.program.inputs, tensors, strict=True):
            if not isinstance(tensor, Tensor) or tensor.ndim != len(spec.shape) + 1:
                shape = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise InputError(
                    f"The input {spec.name!r} must have the shape [tasks, rows, ...] with rows of "
                    f"{list(spec.trailing)}, however: {shape}."
                )
        sizes = {tuple(tensor.shape[:2]) for tensor in tensors}
        if len(sizes) != 1:
            raise InputError(f"All inputs must have the same numbers of tasks and rows, however: {sorted(sizes)}.")
        ((tasks, rows),) = sizes
        named = {s.name: t.flatten(0, 1) for s, t in zip(self.program.inputs, tensors, strict=True)}
        return [t.reshape(tasks, rows, *t.shape[1:]) for t in self.program.bind((named,), {}, self.ensemble.device)]


def adapted_bytes(
    ensemble: Ensemble, *, weights: str | Sequence[str] = "*", factors: bool = False, members: int | None = None
) -> int:
    """Bytes of the adapted weights of one task, known from shapes; arguments and errors as of :meth:`Adaptable.of`."""
    made, full, total = ensemble.members, ensemble.program.empty_weights(), 0
    for name in _chosen(ensemble, weights):
        if factors and name in made.factored:
            size = sum(math.prod(shape) for shape in made.factored[name].factors)
        else:
            size = full[name].numel()
        total += size * full[name].element_size()
    return total * (len(ensemble) if members is None else members)


def task_bytes(program: Program, weight_bytes: int, members: int, rows: int) -> int:
    """An upper bound of the bytes that one task needs at once.

    Args:
        program: the model.
        weight_bytes: of the adapted weights of all its members.
        members: how many.
        rows: of its examples, or of its queries if those are more.
    """
    # Of a step backward through the model, too.
    return _COPIES * weight_bytes + 2 * members * program.activation_bytes * rows


def _chosen(ensemble: Ensemble, weights: str | Sequence[str]) -> list[str]:
    """Names of the weights that adapt, without the endings of factors."""
    patterns = (weights,) if isinstance(weights, str) else tuple(weights)
    members = ensemble.members
    floating = [name for name, dtype in members.dtypes.items() if dtype.is_floating_point]
    differ = [n for n in floating if n in members.stacked or n in members.factored]
    return adapting_names(floating, differ if patterns == ("*",) else floating, patterns)


def adapting_names(every: Sequence[str], among: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names of weights that patterns choose.

    Args:
        every: all floating-point weights.
        among: those that may be chosen.

    Raises:
        RecipeError: a pattern that matches nothing.
    """
    try:
        return choose(list(every), among, tuple(patterns), ())
    except RecipeError as error:
        raise RecipeError(str(error).replace("left to perturb", "left to adapt")) from None
