"""An ensemble whose members can be adapted: which weights change, in which program, and what that takes.

Where members have factors, a weight that adapts in full becomes dense in each member, since gradient steps leave no
thin matrix; the others keep their factors. So the program is rewritten once for a choice of weights, and kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ensemble.adaptation.adapted import AdaptedMembers
from ensemble.adaptation.inner_loop import (
    Before,
    Layout,
    Steps,
    all_at_once,
    descend,
    not_differentiable,
    one_by_one,
    step_sizes,
)
from ensemble.adaptation.objectives import Judge, Loss, of_task, scalar
from ensemble.condense import condense
from ensemble.data import Data
from ensemble.ensemble import Ensemble
from ensemble.errors import InputError, MemoryLimitError, ModelError, RecipeError
from ensemble.memory import available, human, require
from ensemble.outputs import Outputs
from ensemble.perturbation.base import choose
from ensemble.perturbation.factors import Factors
from ensemble.program.program import Program
from ensemble.statistics import Asked
from ensemble.structured import LEFT, RIGHT, factored_program
from ensemble.variants.grouped import as_rows, check_indices, evaluate_groups
from ensemble.vectorised import refused, vmappable

# Weights, their gradients, and the next weights stand beside each other during a step.
_COPIES = 3
# Of the memory that is free.
_SHARE = 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class Adaptable:
    """What adapts of an ensemble; :meth:`of` makes it.

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
        chosen = _chosen(ensemble, (weights,) if isinstance(weights, str) else tuple(weights))
        if factors and not any(name in all_members.factored for name in chosen):
            raise InputError("This ensemble's members have no factors in these weights; adapt them in full.")
        dense = set() if factors else {name for name in chosen if name in all_members.factored}
        kept = {name: shape for name, shape in all_members.factored.items() if name not in dense}
        program = factored_program(ensemble.program, kept) if kept else ensemble.program
        if dense:
            full = ensemble.program.empty_weights()
            require(sum(full[name].numel() * full[name].element_size() for name in dense), count, ensemble.device)
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

    @property
    def weight_bytes(self) -> int:
        """Bytes of the adapted weights of all members for one task."""
        return sum(self.members * math.prod(s) * self.start[n].element_size() for n, s in self._shapes().items())

    def task_bytes(self, rows: int) -> int:
        """An upper bound of the bytes that one task needs at once: weights, gradients, and activations.

        Args:
            rows: of its examples, or of its queries if those are more.
        """
        return task_bytes(self.program, self.weight_bytes, self.members, rows)

    def adapt(
        self,
        support: tuple[Any, Tensor],
        loss: Loss | None,
        steps: int,
        lr: float | Tensor | Mapping[str, float | Tensor],
        *,
        create_graph: bool = False,
        first_order: bool = False,
        vectorised: bool = True,
        before: Before | None = None,
    ) -> AdaptedMembers:
        """Take the steps; see :func:`ensemble.adapt`."""
        one_member = {name: t[0] if name in self.differing else t for name, t in self.start.items()}
        sizes = Steps(steps, step_sizes(lr, one_member), first_order, before)
        inputs, targets, shots = self._support(support, loss)
        judge, running = self._judge(loss), self.program.with_own_inputs
        tasks = len(targets)
        if not create_graph:
            self._require(tasks, shots)
        check_indices(self.program, self._first_member, inputs)

        def one(own: dict[str, Tensor], examples: Any) -> tuple[dict[str, Tensor], Tensor]:
            rows, wanted = examples
            still = {name: own[name] for name in self.fixed}

            def objective(changing: Mapping[str, Tensor]) -> Tensor:
                return judge(running({**still, **changing}, rows), wanted)

            return descend(objective, {name: own[name] for name in self.start}, sizes)

        weights = {**self.fixed, **self.start}
        layout = Layout(frozenset(), self.differing & weights.keys())
        with torch.enable_grad() if create_graph else torch.no_grad():
            found, losses = self._run(one, weights, layout, (tuple(inputs), targets), tasks, vectorised)
        return AdaptedMembers(found, losses, self, vectorised)

    def outputs(self, weights: Mapping[str, Tensor], inputs: Sequence[Tensor], vectorised: bool) -> tuple[Tensor, ...]:
        """Flat outputs, each (tasks, members, ...), of adapted weights on flat inputs, each (tasks, rows, ...)."""
        check_indices(self.program, self._first_member, inputs)
        running = self.program.with_own_inputs
        together = {**self.fixed, **weights}
        layout = Layout(frozenset(weights), (self.differing & self.fixed.keys()) | weights.keys())
        found: tuple[Tensor, ...] = self._run(
            lambda own, rows: tuple(running(own, rows)),
            together,
            layout,
            tuple(inputs),
            inputs[0].shape[0],
            vectorised,
        )
        return found

    @property
    def statistics(self) -> Outputs:
        """What may be asked of adapted members. What was fitted to the ensemble on data does not hold for them."""
        return dataclasses.replace(self.ensemble.outputs, calibration=None)

    def asked(
        self,
        statistics: Sequence[str] | None,
        rows: int,
        *,
        confidence_level: float | None = None,
        levels: Iterable[float] | None = None,
    ) -> Asked:
        """What is asked of so many rows in all, checked; as :meth:`ensemble.outputs.Outputs.asked`."""
        return self.statistics.asked(
            statistics,
            rows,
            mixture=self.ensemble.members.mixture,
            confidence_level=confidence_level,
            levels=levels,
        )

    def condensed(
        self, weights: Mapping[str, Tensor], inputs: Sequence[Tensor], counts: Sequence[int], asked: Asked
    ) -> dict[str, dict[str, Tensor]]:
        """Statistics of adapted members.

        Args:
            weights: the adapted weights by name, each (tasks, members, *shape).
            inputs: flat, each (tasks, rows, ...).
            counts: how many of the rows are each task's own; the others are left out.
            asked: from :meth:`asked`.

        Returns:
            By the head's name and the statistic's, the rows of one task after those of another.
        """
        tasks = inputs[0].shape[0]
        shared = {name: tensor for name, tensor in self.fixed.items() if name not in self.differing}
        own = {name: t.expand(tasks, *t.shape) for name, t in self.fixed.items() if name in self.differing}
        chunks = evaluate_groups(self.program, shared, {**own, **weights}, inputs)
        return condense(asked, (as_rows(outputs, self.program.outputs, counts) for outputs in chunks))

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

    def _support(self, support: tuple[Any, Tensor], loss: Loss | None) -> tuple[list[Tensor], Tensor, int]:
        given, targets = support
        args: Sequence[Any] = given if isinstance(given, tuple) else () if isinstance(given, Mapping) else (given,)
        inputs = self.bind(args, given if isinstance(given, Mapping) else {})
        tasks, shots = inputs[0].shape[:2]
        if targets.shape[:2] != (tasks, shots):
            raise InputError(
                f"targets must begin with (tasks, shots), here {[tasks, shots]}, however: {list(targets.shape)}."
            )
        targets = targets.to(self.ensemble.device)
        if not callable(loss):
            ensemble = self.ensemble
            heads = ensemble.outputs.heads
            flat = {s.name: t.flatten(0, 1) for s, t in zip(self.program.inputs, inputs, strict=True)}
            # Raw outputs are compared with targets like a regression's.
            task = "regression" if ensemble.task == "raw" else ensemble.task
            checked = Data.of(
                self.program, ((flat,), targets.flatten(0, 1)), task, heads[0] if len(heads) == 1 else None
            )
            assert checked.targets is not None
            targets = checked.targets.to(self.ensemble.device)
            targets = targets.reshape(tasks, shots, *targets.shape[1:])
        return inputs, targets, shots

    def _judge(self, loss: Loss | None) -> Judge:
        if callable(loss):
            own = scalar(loss)
            return lambda outputs, targets: own(self.program.results.pack(outputs), targets)
        return of_task(loss, self.ensemble.task, self.ensemble.outputs.heads)

    @property
    def _first_member(self) -> dict[str, Tensor]:
        """Its weights before the first step."""
        return {n: t[0] if n in self.differing else t for n, t in {**self.fixed, **self.start}.items()}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the adapted weights of one member for one task."""
        return {n: tuple(t.shape[1:] if n in self.differing else t.shape) for n, t in self.start.items()}

    def _require(self, tasks: int, rows: int) -> None:
        free, each = available(self.ensemble.device), self.task_bytes(rows)
        if free is None or tasks * each <= _SHARE * free:
            return
        raise MemoryLimitError(
            f"{tasks} tasks of {self.members} members need {human(tasks * each)} while they adapt, of which "
            f"{human(free)} is free. What would fit: {int(_SHARE * free // each)} tasks at a time, fewer members, or "
            "fewer weights (weights=, factors=True)."
        )

    def _run(
        self, function: Any, weights: dict[str, Tensor], layout: Layout, rows: Any, tasks: int, vectorised: bool
    ) -> Any:
        with self.program.with_own_inputs.exclusively(), vmappable(), _told():
            if vectorised and not self.program.looped_because and not self.refusals:
                try:
                    return all_at_once(function, weights, layout, rows, "error")
                except RuntimeError as error:
                    refusal = refused(self.program, error)
                    if refusal is None:
                        raise
                    self.refusals.append(str(refusal))
            return one_by_one(function, weights, layout, rows, tasks, self.members)


def adapted_bytes(
    ensemble: Ensemble, *, weights: str | Sequence[str] = "*", factors: bool = False, members: int | None = None
) -> int:
    """Bytes of the adapted weights of one task, known from shapes; arguments and errors as of :meth:`Adaptable.of`."""
    made, full, total = ensemble.members, ensemble.program.empty_weights(), 0
    for name in _chosen(ensemble, (weights,) if isinstance(weights, str) else tuple(weights)):
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


def _chosen(ensemble: Ensemble, patterns: tuple[str, ...]) -> list[str]:
    """Names of the weights that adapt, without the endings of factors."""
    members = ensemble.members
    floating = [name for name, dtype in members.dtypes.items() if dtype.is_floating_point]
    differ = [n for n in floating if n in members.stacked or n in members.factored]
    try:
        return choose(floating, differ if patterns == ("*",) else floating, patterns, ())
    except RecipeError as error:
        raise RecipeError(str(error).replace("left to perturb", "left to adapt")) from None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, ModelError):
            raise
        if refusal := not_differentiable(error):
            raise refusal from error
        raise
