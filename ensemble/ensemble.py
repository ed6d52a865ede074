"""The ensemble: a program, its members, and what their outputs mean."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ensemble.adaptive import evaluate_until, first
from ensemble.calibration.state import Calibration
from ensemble.checked import Checked
from ensemble.condense import condense
from ensemble.errors import InputError, ModelError, RecipeError
from ensemble.members import Members
from ensemble.memory import human
from ensemble.origin import Origin
from ensemble.outputs import Outputs
from ensemble.perturbation import Perturbation
from ensemble.planning.runner import Runner
from ensemble.prediction import Prediction
from ensemble.program.program import Program
from ensemble.statistics import Statistic
from ensemble.tasks import Task, heads
from ensemble.variants.variants import Variants


class Ensemble(Checked):
    """N members of one architecture, evaluated in one call. Made by :func:`perturb`, :func:`stack`, :func:`load`.

    Attributes:
        program: the model as a function of its weights.
        members: the weights.
        task: what the outputs mean.
        metadata: free JSON values: class names, units, a description.
        report: what fitting found, as free JSON values; None if nothing was fitted.
        origin: recipe, seed, reference weights.
    """

    def __init__(
        self,
        program: Program,
        members: Members,
        origin: Origin,
        *,
        task: Task = "raw",
        noise_variance: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        calibration: Calibration | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> None:
        self.program = program
        self.members = members
        self.origin = origin
        self.task = task
        if noise_variance is not None and (task != "regression" or not 0 <= noise_variance < math.inf):
            raise ModelError(f"noise_variance is for regression and must be ≥ 0, however: {noise_variance} ({task}).")
        self._outputs = Outputs(task, tuple(heads(task, program.outputs)), noise_variance)
        self.metadata = dict(metadata or {})
        self.calibration = calibration
        self.report = None if report is None else dict(report)
        self._runner = Runner(program, members)

    def __len__(self) -> int:
        return self.members.count

    def __repr__(self) -> str:
        made = self.origin.recipe or ("generated" if "generated" in self.metadata else "separately trained")
        return (
            f"Ensemble({len(self)} members, {made}, seed={self.origin.seed}, task={self.task}, {self.device}, "
            f"{human(self.members.nbytes)})"
        )

    @property
    def noise_variance(self) -> float | None:
        """Of a regression, target²; None if it is not known."""
        return self._outputs.noise_variance

    @property
    def calibration(self) -> Calibration | None:
        """What was fitted on data; None if nothing was."""
        return self._outputs.calibration

    @calibration.setter
    def calibration(self, fitted: Calibration | None) -> None:
        if fitted is not None:
            if len(self._outputs.heads) > 1:
                raise ModelError(
                    "A model with several outputs cannot be calibrated; make an ensemble for each of them."
                )
            fitted.check(self._outputs.heads[0], len(self))
        self._outputs = dataclasses.replace(self._outputs, calibration=fitted)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.members.stacked.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the floating weights, those that differ between members first."""
        every = [*self.members.stacked.values(), *self.members.shared.values()]
        return next((weight.dtype for weight in every if weight.is_floating_point()), torch.get_default_dtype())

    def __call__(self, *args: Any, chunk: int | None = None, **kwargs: Any) -> Any:
        """Every member's output.

        Args:
            args, kwargs: what the model's forward takes, or one dict {input name: tensor}.
            chunk: how many members to run in one call (0: one after the other); by default what :meth:`measure` found
                fastest, else as many as keep activations small.

        Returns:
            What the model returns, each tensor with a leading member dimension: (members, batch, ...).

        Raises:
            InputError: inputs that do not fit the signature.
        """
        inputs = self.program.bind(args, kwargs, self.device)
        chunks = list(self._runner(inputs, chunk=chunk))
        return self.program.results.pack([torch.cat(parts) for parts in zip(*chunks, strict=True)])

    def predict(
        self,
        *args: Any,
        statistics: Sequence[str] | None = None,
        members: int | None = None,
        tolerance: float | None = None,
        confidence_level: float | None = None,
        levels: Iterable[float] | None = None,
        target: Any = None,
        chunk: int | None = None,
        **kwargs: Any,
    ) -> Prediction:
        """Condensed outputs. Members count by their weights in the mixture, if they have weights.

        Args:
            args, kwargs: as for a call.
            statistics: names from :meth:`available_statistics`; the task's default ones by default. Of a model with
                several outputs "mean" asks for every output's mean, "policy.mean" for one.
            members: use only the first so many members, their weights made to sum to 1. What was fitted, such as the
                coverage of intervals, was fitted with all of them.
            tolerance: use only as many members as it takes until the Monte-Carlo standard error of the mean is at most
                this, in the unit of the target. Each row is judged by itself, by the largest error of its elements in
                all of the model's outputs; how many it took is in ``prediction.counts``.
            confidence_level: of ``credible_interval``, ``prediction_interval`` and ``prediction_set``, between 0 and 1;
                by default what the ensemble was fitted for, or 0.9.
            levels: of ``quantiles``, each between 0 and 1; by default 0.05, 0.5 and 0.95.
            target: for ``log_prob``, one for each row: class indices of a classification, (batch, ...) without the
                classes, else values of the output's shape. Of several outputs a dict by their names.
            chunk: as for a call.

        Raises:
            InputError: inputs that do not fit the signature, a number of members that the ensemble does not have, a
                tolerance that is not above 0, levels that are none, or a target that does not fit or is missing.
            StatisticError: an unknown statistic, one that was not fitted, or with a tolerance one that keeps every
                member's output.
        """
        whole = isinstance(members, int) and not isinstance(members, bool)
        if members is not None and not (whole and 1 <= members <= len(self)):
            raise InputError(f"members must be between 1 and {len(self)}, however: {members}.")
        if tolerance is not None and not (isinstance(tolerance, int | float) and 0 < tolerance < math.inf):
            raise InputError(f"tolerance must be a number above 0, however: {tolerance!r}.")
        total, mixture = members or len(self), self.members.mixture
        if mixture is not None and not bool(mixture[:total].any()):
            raise InputError(f"The first {total} members have no weight in the mixture; ask for more of them.")
        inputs = self.program.bind(args, kwargs, self.device)
        asked = self._outputs.asked(
            statistics,
            inputs[0].shape[0],
            mixture=mixture,
            confidence_level=confidence_level,
            levels=levels,
            target=target,
        )
        several = len(self._outputs.heads) > 1
        if tolerance is not None:
            found, counts = evaluate_until(self._runner, inputs, asked, tolerance=tolerance, total=total, chunk=chunk)
            return Prediction(found, int(counts.max()), several, counts)
        return Prediction(condense(asked, first(self._runner, inputs, total, chunk)), total, several)

    def available_statistics(self) -> dict[str, Statistic]:
        """Every statistic that can be asked for, by the name that it has among all outputs."""
        return {name: s for name, (s, _) in self.described_statistics().items()}

    @property
    def looped_because(self) -> str:
        """Why ``vmap`` refuses this model, once a call found out; its members then run one after the other."""
        return self._runner.program.looped_because

    @property
    def running(self) -> Program:
        """What runs: the program, rewritten where members' weights are factors."""
        return self._runner.program

    @functools.cached_property
    def variants(self) -> Variants:
        """Makes and evaluates other members of the same model."""
        return Variants(self)

    def perturbed(self, recipe: Perturbation, *, members: int, seed: int = 0) -> Ensemble:
        """Other members of the same trained model; nothing is exported again, and what members share is not copied.

        Args:
            recipe: how members differ from the trained weights; one that draws them from a seed.
            members: how many.
            seed: what their noise is drawn from.

        Returns:
            The ensemble that :func:`ensemble.perturb` makes of the model with these values, member for member, bit for
            bit. What was fitted to this ensemble on data is not carried over.

        Raises:
            RecipeError: the recipe does not fit the model, or this ensemble does not come from one trained model.
            MemoryLimitError: the members do not fit.

        Example:
            >>> ens.perturbed(LowRank(scale=0.05), members=64, seed=7).predict(x)
        """
        from ensemble.construct import check_count

        if not isinstance(recipe, Perturbation):
            raise RecipeError(f"recipe must be one that draws members from a seed, however: {recipe!r}.")
        check_count(members, seed)
        settled, kind = self.variants.perturbed(recipe, members)
        drawn = self.variants.members(kind, self.variants.draw(settled, kind, seed))
        names = [name for name in self.program.weight_names if name in kind.differing]
        reference = {name: self.variants.trained[name].cpu() for name in names}
        return self._variant(drawn, dataclasses.replace(self.origin, recipe=settled, seed=seed, reference=reference))

    def with_weights(self, weights: Mapping[str, Tensor]) -> Ensemble:
        """The same model with weights that are given; all others are as trained. Nothing is exported again.

        Args:
            weights: by name, of the weight's shape, or (members, *shape). Instead of a weight, the factors of what is
                added to it may be given, W + L Rᵀ: L, (rows, rank), under the name + ".left" and R, (columns, rank),
                under the name + ".right".

        Returns:
            An ensemble with as many members as the weights have, one if none has a dimension of members.

        Raises:
            InputError: a name that is none, a wrong shape or dtype, numbers that are not finite, or members of
                different numbers.

        Example:
            >>> ens.with_weights({"2.bias": torch.zeros(10)}).predict(x)
        """
        kind, own = self.variants.brought(weights)
        # Copies, since what was given may be a view of one tensor, or be changed by whoever gave it.
        members = self.variants.members(kind, {name: tensor.clone() for name, tensor in own.items()})
        return self._variant(members, dataclasses.replace(self.origin, recipe=None, seed=0, reference={}))

    def _variant(self, members: Members, origin: Origin) -> Ensemble:
        return Ensemble(
            self.program,
            members,
            origin,
            task=self.task,
            noise_variance=self.noise_variance,
            metadata=self.metadata,
        )

    def described_statistics(self) -> dict[str, tuple[Statistic, tuple[int, ...]]]:
        """As :meth:`available_statistics`, each with the shape of one row, -1 standing for a size that depends on what
        is asked: the members, the levels."""
        return self._outputs.described()

    def unavailable_statistics(self) -> dict[str, str]:
        """What the task has and this ensemble has not, since it was not fitted for it: by name, what to do."""
        return self._outputs.lacking()

    @property
    def outputs(self) -> Outputs:
        """What may be asked, and how what is asked is written down: for those who evaluate members themselves."""
        return self._outputs

    def default_statistics(self) -> list[str]:
        """Names of what :meth:`predict` gives when nothing is asked for."""
        return [name for name, s in self.available_statistics().items() if s.default]

    def member(self, index: int) -> dict[str, Tensor]:
        """One member's state dict, to be loaded into the original model.

        Returns:
            Copies on the CPU, under the original names.

        Raises:
            IndexError: there is no such member.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Members are 0 .. {len(self) - 1}, however: {index}.")
        weights = {**self.origin.unused, **self.members.whole(index)}
        return {
            name: weights[self.program.aliases.get(name, name)].detach().cpu().clone()
            for name in self.origin.state_names
        }

    def example(self, rows: int | None = None) -> list[Tensor]:
        """Flat inputs to try the ensemble with: kept rows of the original example, else made up."""
        kept = [t.to(self.device, s.dtype) for t, s in zip(self.origin.example, self.program.inputs, strict=False)]
        if not kept:
            return self.program.example(rows or 2, self.device)
        if rows is None:
            return kept
        return [t.repeat(-(-rows // t.shape[0]), *[1] * (t.ndim - 1))[:rows] for t in kept]

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Ensemble:
        """The same ensemble on another device, or with floating weights of another dtype.

        Raises:
            ModelError: the graph fixes a dtype that does not go with the new one.
        """
        if isinstance(device, torch.dtype):
            raise ModelError(f"The first argument is the device; say to(dtype={device}).")
        place = torch.device(device) if device is not None else self.device
        if dtype is not None and not dtype.is_floating_point:
            raise ModelError(f"dtype must be a floating-point type, however: {dtype}.")
        weights = self.members.to(place, dtype)
        dtypes = weights.dtypes
        program = self.program.to(place, dtypes)
        moved = Ensemble(
            program,
            weights,
            self.origin,
            task=self.task,
            noise_variance=self.noise_variance,
            metadata=self.metadata,
            calibration=self.calibration,
            report=self.report,
        )
        if dtype is not None and dtype != self.dtype:
            moved.try_one()
        return moved

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False, keep_example: bool = True) -> None:
        """Write a directory that :func:`load` reads: manifest, graph, weights.

        Args:
            path: the new directory; of a served model DIR/name/version, such as models/digits/1.
            overwrite: replace an ensemble that is there.
            keep_example: store up to four rows of the example, for the checks and the documentation of the server.

        Raises:
            ModelError: the ensemble runs a live module.
            ArtifactError: something else is at the path.
        """
        from ensemble.storage.artifact import save

        save(self, path, overwrite=overwrite, keep_example=keep_example)
