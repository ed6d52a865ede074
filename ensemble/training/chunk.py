"""Members that are trained together: each step is one call for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ensemble.data import Data
from ensemble.errors import RecipeError
from ensemble.training.best import Best
from ensemble.training.objective import Objective
from ensemble.training.rows import MOST_HELD, Rows
from ensemble.training.schedule import Schedule

# What activations take where no gradient needs them again.
_LOOKED_AT = 64 * 2**20


class Chunk:
    """Some members on their way.

    Args:
        members: their numbers.
        weights: that are trained, each (members, *shape), and are changed in place.
        fixed: that are each member's own too, and stay as they are.
        objective: what is minimised.
        data: inputs and targets, anywhere.
        schedule: of the steps.
        seed: of the members' rows.
        bootstrap: whether each has a resample of its own.
        early_stopping: whether rows of ``data`` are held back from each.
        held: rows to look at in their place, the same for all.

    Attributes:
        best: what the members keep.
        rows: which rows each is trained on and judged by.

    Raises:
        RecipeError: too few rows to hold some back.
    """

    def __init__(
        self,
        members: range,
        weights: dict[str, Tensor],
        fixed: Mapping[str, Tensor],
        objective: Objective,
        data: Data,
        schedule: Schedule,
        *,
        seed: int,
        bootstrap: bool,
        early_stopping: bool,
        held: Data | None,
    ) -> None:
        self.members, self.weights, self.fixed = members, weights, fixed
        self._objective, self._data, self._held, self._schedule = objective, data, held, schedule
        self._device = next(iter(weights.values())).device
        self.rows = Rows.draw(seed, members, len(data), bootstrap=bootstrap, hold_back=early_stopping)
        self.batches = self.rows.batches(schedule.batch_size)
        self._optimizer = torch.optim.AdamW(
            list(weights.values()),
            lr=schedule.lr,
            weight_decay=schedule.weight_decay,
            # All weights in one pass where there is such a kernel.
            fused=True if self._device.type in ("cpu", "cuda") else None,
        )
        self._looks = held is not None or self.rows.held is not None
        self.best = Best(weights, copied=self._looks, patience=schedule.patience)
        self._finite = torch.ones(len(members), dtype=torch.bool, device=self._device)

    def run(self, tell: Callable[[int], None]) -> Tensor:
        """All steps; gives the loss on the rows held back at the start, (members,)."""
        schedule = self._schedule
        before = self.look(0).cpu()
        for step in range(schedule.steps):
            self.step(step)
            done = step + 1
            if schedule.looks_after(done):
                self.look(done)
                tell(done)
                if self._looks and self.best.stopped:
                    break
        tell(schedule.steps)
        return before

    def step(self, step: int) -> None:
        """One step of every member."""
        gradients, losses = self.gradients(next(self.batches))
        for name, weight in self.weights.items():
            weight.grad = gradients[name]
        self._optimizer.param_groups[0]["lr"] = self._schedule.rate(step)
        self._optimizer.step()
        self._finite &= losses.isfinite()

    def gradients(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Of every member, on rows (members, size)."""
        return self._objective.gradients(self.weights, self.fixed, *self._taken(rows, self._data))

    def check_loss(self) -> None:
        """Raise unless the loss can be minimised.

        Raises:
            InputError: it is no number for each row, or does not depend on the weights.
        """
        self._objective.check(self.weights, self.fixed, *self._taken(next(self.batches), self._data))

    def look(self, step: int) -> Tensor:
        """Keep the weights of those members that do better than before.

        Returns:
            The loss of each on the rows held back, (members,) float64; infinity where none are.

        Raises:
            RecipeError: a member diverged, and has no weights to keep.
        """
        if self._looks:
            found = self._judged()
            self.best.offer(step, found, self.weights)
            lost = self.best.losses.isinf()
            if step == 0 and self._schedule.steps and self._held is None:
                # The trained weights have seen these rows, so that no step could do better than they do.
                self.best.losses.fill_(math.inf)
        else:
            found = self.best.losses
            self.best.steps.fill_(step)
            if step == self._schedule.steps and step > 0:
                # What the last step led to, nobody has seen yet.
                last = self._objective.losses(self.weights, self.fixed, *self._taken(next(self.batches), self._data))
                self._finite &= last.mean(1).isfinite()
            lost = ~self._finite
            for weight in self.weights.values():
                lost |= ~weight.isfinite().flatten(1).all(1)
        if bool(lost.any()):
            self._refuse(lost, step)
        return found

    def diverged(self) -> list[int]:
        """Members whose loss stopped being finite."""
        return [self.members[place] for place in (~self._finite).nonzero().flatten().tolist()]

    def _judged(self) -> Tensor:
        """The mean loss of every member on the rows held back, (members,) float64."""
        count, source, rows, counts = len(self.members), self._data, self.rows.held, self.rows.counts
        if self._held is not None:
            source = self._held
            rows = torch.arange(min(len(source), MOST_HELD)).expand(count, -1)
            counts = torch.full((count,), rows.shape[1])
        assert rows is not None
        size = max(1, _LOOKED_AT // max(1, self._objective.program.activation_bytes * count))
        found = torch.zeros(count, dtype=torch.float64, device=self._device)
        for start in range(0, rows.shape[1], size):
            piece = rows[:, start : start + size]
            each = self._objective.losses(self.weights, self.fixed, *self._taken(piece, source)).double()
            own = start + torch.arange(piece.shape[1]) < counts.unsqueeze(1)
            found += torch.where(own.to(self._device), each, 0).sum(1)
        return found / counts.to(self._device)

    def _taken(self, rows: Tensor, data: Data) -> tuple[list[Tensor], Tensor]:
        """Inputs and targets of these rows, each (members, rows, ...), where the members are."""
        assert data.targets is not None

        def taken(tensor: Tensor) -> Tensor:
            return tensor[rows.to(tensor.device)].to(self._device)

        return [taken(tensor) for tensor in data.inputs], taken(data.targets)

    def _refuse(self, lost: Tensor, step: int) -> None:
        names = [str(self.members[place]) for place in lost.nonzero().flatten().tolist()]
        who = f"member{'s' if len(names) > 1 else ''} {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        if step == 0:
            raise RecipeError(
                f"The loss of {who} is not finite before the first step: look for NaN or infinity in the inputs, or "
                "start nearer to the trained weights."
            )
        cure = "" if self._looks else ", or use early_stopping=True, with which a member keeps its best weights"
        taken = f"{step} step{'s' if step > 1 else ''}"
        raise RecipeError(
            f"Training diverged: after {taken} loss or weights of {who} are not finite. Lower lr (it is "
            f"{self._schedule.lr:g}){cure}; if that happens at any lr, look for NaN in the inputs."
        )
