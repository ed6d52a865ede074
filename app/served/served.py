"""An ensemble as the service sees it: named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import ensemble
from app.batching import Arrays, Call, Outcome, OutOfMemory, non_finite_rows
from app.errors import BadRequest, Unavailable
from app.protocol import Question, TensorSpec
from app.served.arrays import to_tensor
from app.served.specs import OutputSpec
from ensemble.data import checked_targets
from ensemble.statistics.statistic import CONFIDENCE_LEVEL, LEVELS

# What searching for quantiles may cost: a member's distribution function, searched once, counts 1. In all of a request,
# and in one row, since the rows of many requests may share a call.
MOST_SEARCHED = 2**24
MOST_SEARCHED_IN_A_ROW = 2**18


@dataclass(eq=False)
class Served:
    """A model that is loaded, checked and warm. Everything but its description belongs to the engine's thread.

    Nothing of it changes but ``max_batch``.

    Attributes:
        name, version: under which it is asked for.
        ensemble: what answers.
        max_batch: rows in one call, as many as its plan has a way for at most; lowered when memory runs out.
        inputs: what it takes.
        outputs: what may be asked of it, by name.
        targets: of each output that is about a target, by the output's name, what the target must be.
        lacking: what could be asked of it if it were made otherwise: by name, what to do.
        error: largest relative difference from the loop over members, found when it was loaded.
        weights: how each weight runs and why, for people.
        example_inputs, example_outputs: one row and its real answer, for the documentation.
        plan_sizes: batch sizes that its plan was made for.
        plan_complete: whether nothing is left to be compiled for it.
    """

    name: str
    version: str
    ensemble: ensemble.Ensemble
    max_batch: int
    inputs: tuple[TensorSpec, ...]
    outputs: dict[str, OutputSpec]
    targets: dict[str, TensorSpec] = field(default_factory=dict)
    lacking: dict[str, str] = field(default_factory=dict)
    error: float = 0.0
    weights: list[dict[str, Any]] = field(default_factory=list)
    example_inputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    example_outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    plan_sizes: tuple[int, ...] = ()
    plan_complete: bool = False

    @property
    def defaults(self) -> tuple[str, ...]:
        """What is sent when nothing is selected."""
        return tuple(name for name, output in self.outputs.items() if output.default)

    @property
    def confidence_level(self) -> float:
        """Of intervals and sets where a request gives none."""
        fitted = self.ensemble.calibration
        return CONFIDENCE_LEVEL if fitted is None else fitted.confidence_level

    @property
    def details(self) -> dict[str, Any]:
        """What every answer says so that it can be replayed."""
        return {"members": len(self.ensemble), "seed": self.ensemble.origin.seed}

    def plainest(self, question: Question, outputs: Collection[str]) -> Question:
        """The same question without what says nothing new of these outputs, so that more requests share calls."""
        if question == Question():
            return question
        used = {parameter for name in outputs for parameter in self.outputs[name].uses}
        level, levels = question.confidence_level, question.levels
        return replace(
            question,
            # Who asks for all of them shares calls with those who do not say.
            members=None if question.members == len(self.ensemble) else question.members,
            confidence_level=None if "confidence_level" not in used or level == self.confidence_level else level,
            levels=None if "levels" not in used or levels == LEVELS else levels,
        )

    def check_searches(self, outputs: Collection[str], rows: int, members: int, question: Question) -> None:
        """That quantiles are not so many that the calls of others would have to wait for them.

        Args:
            outputs: what is asked for.
            rows: of the request.
            members: that are asked.
            question: its levels.

        Raises:
            BadRequest: they are; the text says how many would do.
        """
        if not any(self.outputs[name].uses for name in outputs):
            # What takes no level searches for none.
            return
        levels = len(LEVELS if question.levels is None else question.levels)
        quantiles = self.ensemble.outputs.searches(list(outputs), levels) if outputs else 0
        if quantiles * members * max(rows, MOST_SEARCHED // MOST_SEARCHED_IN_A_ROW) <= MOST_SEARCHED:
            return
        searched = f"{quantiles} quantiles in each row (levels times elements) of the mixture of {members} members"
        if quantiles * members <= MOST_SEARCHED_IN_A_ROW:
            most = MOST_SEARCHED // (quantiles * members)
            raise BadRequest(f"a request for {searched} may have {most} rows at most, however: {rows}")
        most = MOST_SEARCHED_IN_A_ROW // quantiles
        would = f", or {most} members at most" if most else ""
        raise BadRequest(
            f"{searched} are too many, since quantiles times members may be {MOST_SEARCHED_IN_A_ROW}; ask for fewer "
            f"levels or outputs{would}"
        )

    def check_targets(self, targets: Arrays, rows: int) -> None:
        """That targets are such as the model could give.

        Args:
            targets: by name, of the datatypes and shapes of :attr:`targets`.
            rows: how many.

        Raises:
            BadRequest: a class that there is not, or no number.
        """
        heads = self.ensemble.outputs.targets()
        for output, spec in self.targets.items():
            if spec.name in targets:
                try:
                    checked_targets(to_tensor(targets[spec.name]), rows, self.ensemble.task, heads[output][0])
                except ensemble.InputError as error:
                    raise BadRequest(f"{spec.subject} cannot be used: {error}") from None

    def infer(
        self, inputs: Arrays, outputs: Collection[str], question: Question | None = None
    ) -> dict[str, NDArray[Any]]:
        """Answer a batch of any size. Runs on the engine's thread.

        Args:
            inputs: an array for each input, of its datatype, and for each target that an output is about, all with the
                same number of rows.
            outputs: names of statistics.
            question: of all members by default.

        Raises:
            BadRequest: the model cannot be evaluated on these values.
            Unavailable: there is not enough memory for so many rows at once.
        """
        rows = next(iter(inputs.values())).shape[0]
        pieces = []
        try:
            for start in range(0, rows, self.max_batch):
                some = {name: array[start : start + self.max_batch] for name, array in inputs.items()}
                call = Call(self, some, outputs, min(self.max_batch, rows - start), question=question)
                pieces.append(self.compute(call).arrays)
        except OutOfMemory as error:
            raise Unavailable("there is not enough memory for this many rows at once; send fewer") from error
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in outputs}

    def compute(self, call: Call) -> Outcome:
        """Make one call. Runs on the engine's thread.

        Raises:
            BadRequest: the model cannot be evaluated on these values.
            OutOfMemory: there is not enough memory for so many rows at once.
        """
        question = call.question or Question()
        assert isinstance(question, Question)
        tensors = {spec.name: to_tensor(call.inputs[spec.name]) for spec in self.inputs}
        try:
            found = self.ensemble.predict(
                tensors,
                statistics=list(call.outputs),
                members=question.members,
                tolerance=question.tolerance,
                confidence_level=question.confidence_level,
                levels=question.levels,
                target=self.target_of(call),
            )
            flat = found.flat()
            arrays = {name: flat[name].cpu().numpy() for name in call.outputs}
        except Exception as error:
            if is_out_of_memory(error):
                if self.ensemble.device.type == "cuda":
                    # What earlier calls left behind may be in pieces that are too small.
                    torch.cuda.empty_cache()
                raise OutOfMemory(f"not enough memory for {call.rows} rows") from error
            if not self.example_works():
                raise
            # Shapes and datatypes were checked before, so it is the values.
            raise BadRequest(
                "the model cannot be evaluated on these values, although it can on its example; an index beyond the "
                "model's table is a usual reason"
            ) from error
        members = question.members if found.counts is None else found.counts.numpy()
        return Outcome(arrays, members, non_finite_rows(arrays))

    def target_of(self, call: Call) -> Any:
        """The target of a call, as the library takes it; None if no output is about one."""
        found = {
            self.ensemble.outputs.targets()[name][0].name: to_tensor(call.inputs[self.targets[name].name])
            for name in call.outputs
            if name in self.targets
        }
        return next(iter(found.values()), None) if len(self.ensemble.outputs.heads) == 1 else found or None

    def example_works(self) -> bool:
        """Whether the model can be evaluated on its example; then it is the values if it cannot be on others."""
        try:
            self.ensemble.predict(dict(zip((s.name for s in self.inputs), self.ensemble.example(1), strict=True)))
        except Exception:
            # Whatever it is, it is no fault of the request's.
            return False
        return True


def is_out_of_memory(error: Exception) -> bool:
    """Whether there was not enough memory for what was tried."""
    # On the CPU PyTorch has no class of its own for it.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
