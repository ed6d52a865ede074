"""The loop: every member takes its step in the same call, on rows of its own."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ensemble.data import Data
from ensemble.errors import InputError, ModelError, RecipeError
from ensemble.losses import Loss
from ensemble.members import Members, Progress
from ensemble.memory import require
from ensemble.program.program import Program
from ensemble.structured import LEFT, RIGHT, factored_program
from ensemble.training.objective import Objective
from ensemble.training.rows import MOST_HELD, Rows
from ensemble.training.schedule import Schedule

# What the activations of members that are trained together take. On a CPU more than its caches hold slows all down.
_CACHED, _ELSEWHERE = 8 * 2**20, 512 * 2**20
# What their weights, gradients, moments and best weights take.
_STATE = 256 * 2**20
# What activations take where no gradient needs them again.
_LOOKED_AT = 64 * 2**20
_COPIES = 6
_TRIALS = 12


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training gave.

    Args:
        members: with the weights that they keep.
        steps: that each member took.
        kept: the step after which a member had the weights that it keeps, (members,) int64.
        before: mean loss on the rows held back, at the start, (members,) float64; None where none were looked at.
        after: the same, with the weights that are kept.
        gradients: how many gradients of one row's loss all members together took.
        diverged: members whose loss stopped being finite, and that keep weights from before that.
    """

    members: Members
    steps: int
    kept: Tensor
    before: Tensor | None
    after: Tensor | None
    gradients: int
    diverged: tuple[int, ...]


def train(
    program: Program,
    members: Members,
    data: Data,
    loss: Loss,
    schedule: Schedule,
    *,
    seed: int = 0,
    bootstrap: bool = False,
    early_stopping: bool = False,
    held: Data | None = None,
    names: Collection[str] | None = None,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train members together, each on rows of its own.

    Member i comes out as it would alone, up to the rounding of float operations, whatever the number of members and the
    chunk: its rows and their order are a function of ``seed`` and i, and a step of Adam on stacked weights is a step of
    Adam on each. The model runs as it was captured, in evaluation mode: dropout is off, and batch normalisation keeps
    its statistics (its scale and shift are trained).

    Args:
        program: the model.
        members: where training starts; they are left as they are. Factors are trained as factors of the shared weight.
        data: inputs and targets.
        loss: a number for each row, or for each element of its target, of one member's flat outputs and the targets.
        schedule: steps, learning rate, rows of a step.
        seed: of the members' resamples and orders.
        bootstrap: train each member on its own resample of the rows.
        early_stopping: keep those weights of each member that did best on rows held back from it: the rows that its
            resample left out, or a tenth of all. Those it starts with are not among them, since whoever trained them
            had these rows.
        held: rows to look at in their place, the same for all members, and new to the weights that these start with.
        names: weights to train, by their names in the model; by default all of floating point that members have of
            their own.
        chunk: members that are trained together, one such chunk after another; by default as many as keep memory
            bounded.
        progress: called with (steps done, steps in all), of all chunks together.

    Raises:
        RecipeError: nothing to train, or a member diverged and has no finite weights to keep.
        InputError: targets are missing, or the loss does not give a number for each row.
        MemoryLimitError: the trained members do not fit.
    """
    work = _Work(program, members, data, loss, schedule, seed, bootstrap, early_stopping, held, names)
    with torch.inference_mode(False):
        work.settle(chunk)
        return work.run(progress)


def steps_within(
    seconds: float,
    program: Program,
    members: Members,
    data: Data,
    loss: Loss,
    schedule: Schedule,
    *,
    early_stopping: bool = False,
    held: Data | None = None,
    names: Collection[str] | None = None,
    chunk: int | None = None,
) -> int:
    """How many steps of :func:`train` with these arguments fit into a time, judged by a few trial steps.

    Args:
        seconds: the time, trials included.
        schedule: no more steps than it has.

    Raises:
        RecipeError: not one step fits, or as of :func:`train`.
        InputError, MemoryLimitError: as of :func:`train`.
    """
    if not 0 < seconds < math.inf:
        raise RecipeError(f"seconds must be a number > 0, however: {seconds!r}.")
    work = _Work(program, members, data, loss, schedule, 0, True, early_stopping, held, names)
    with torch.inference_mode(False):
        work.settle(chunk)
        return work.steps_within(seconds)


class _Work:
    """All that training needs, and how many members go together."""

    def __init__(
        self,
        program: Program,
        members: Members,
        data: Data,
        loss: Loss,
        schedule: Schedule,
        seed: int,
        bootstrap: bool,
        early_stopping: bool,
        held: Data | None,
        names: Collection[str] | None,
    ) -> None:
        if data.targets is None:
            raise InputError("Training needs targets: give data=(inputs, targets).")
        if held is not None and held.targets is None:
            raise InputError("The rows held back need targets: give (inputs, targets).")
        own = _trained(members, names)
        program = factored_program(program, members.factored) if members.factored else program
        self.objective = Objective(program.with_own_inputs, members.shared, loss)
        self.activations = program.activation_bytes * min(schedule.batch_size, len(data))
        self.members, self.own, self.schedule, self.seed = members, own, schedule, seed
        self.data, self.held = data, held
        self.bootstrap, self.early_stopping = bootstrap, early_stopping and held is None
        self.device = members.stacked[own[0]].device
        self.bytes_per_member = sum(members.stacked[n][0].numel() * members.stacked[n].element_size() for n in own)
        self.chunk = 1

    def settle(self, chunk: int | None) -> None:
        """Decide how many members go together.

        Raises:
            InputError: a chunk that is none.
            MemoryLimitError: the trained members do not fit.
        """
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise InputError(f"chunk must be a number of members, at least 1, however: {chunk!r}.")
        require(self.bytes_per_member, self.members.count, self.device)
        self.chunk = self._fitting() if chunk is None else min(chunk, self.members.count)
        if self.chunk > 1 and self.schedule.steps > 0:
            part = self.part(0, 2)
            # Where vmap refuses the model, members go one after the other.
            try:
                part.gradients(next(part.batches))
            except ModelError:
                self.chunk = 1

    def _fitting(self) -> int:
        bound = _CACHED if self.device.type == "cpu" else _ELSEWHERE
        state = _COPIES * self.bytes_per_member + 16 * len(self.data)
        return max(1, min(self.members.count, bound // max(1, self.activations), _STATE // max(1, state)))

    def part(self, start: int, count: int | None = None) -> _Part:
        """Members from ``start`` on, a chunk of them by default, before their first step."""
        return _Part(self, range(start, min(self.members.count, start + (count or self.chunk))))

    def steps_within(self, seconds: float) -> int:
        """How many steps fit into a time.

        Raises:
            RecipeError: not one does.
        """
        begun, part, times = time.perf_counter(), self.part(0), []
        looking = time.perf_counter()
        part.look(0)
        looking = time.perf_counter() - looking
        for step in range(min(_TRIALS, self.schedule.steps)):
            start = time.perf_counter()
            part.step(step)
            times.append(time.perf_counter() - start)
        if not times:
            return 0
        each = sorted(times)[len(times) // 2] + looking / self.schedule.every
        each *= math.ceil(self.members.count / self.chunk)
        spent = time.perf_counter() - begun
        if (fit := int((seconds - spent) / each)) < 1:
            raise RecipeError(
                f"seconds={seconds:g} is too short: one step of {self.members.count} members takes {each:.2g} s, after "
                f"{spent:.2g} s of trials."
            )
        return min(self.schedule.steps, fit)

    def run(self, progress: Progress | None) -> Trained:
        """Train chunk after chunk."""
        count, steps = self.members.count, self.schedule.steps
        parts = range(0, count, self.chunk)
        # Weights that are not trained are the same tensors as before.
        stacked = {n: torch.empty_like(t) if n in self.own else t for n, t in self.members.stacked.items()}
        kept = torch.zeros(count, dtype=torch.long)
        before, after = torch.full((2, count), math.nan, dtype=torch.float64)
        diverged: list[int] = []
        for number, start in enumerate(parts):
            part = self.part(start)
            there = slice(start, start + self.chunk)
            before[there] = part.run(functools.partial(_tell, progress, number * steps, len(parts) * steps))
            for name, tensor in part.best.items():
                stacked[name][there] = tensor
            kept[there], after[there] = part.kept.cpu(), part.reached.cpu()
            diverged += part.diverged()
        looked = self.early_stopping or self.held is not None
        return Trained(
            dataclasses.replace(self.members, stacked=stacked),
            steps,
            kept,
            before if looked else None,
            after if looked else None,
            count * steps * min(self.schedule.batch_size, part.rows.own.shape[1]),
            tuple(diverged),
        )


class _Part:
    """Some members on their way.

    Attributes:
        weights: as they are now, each (members, *shape).
        best: as they are kept; the same tensors where nothing is looked at.
        kept: the step after which they were so, (members,).
        reached: the loss on the rows held back that they had then, (members,) float64.
    """

    def __init__(self, work: _Work, members: range) -> None:
        self.work, self.members = work, members
        stacked = {name: t[members.start : members.stop] for name, t in work.members.stacked.items()}
        self.weights = {name: stacked.pop(name).clone() for name in work.own}
        self.fixed = stacked
        self.rows = Rows.draw(
            work.seed, members, len(work.data), bootstrap=work.bootstrap, hold_back=work.early_stopping
        )
        self.batches = self.rows.batches(work.schedule.batch_size)
        self.optimizer = torch.optim.AdamW(
            list(self.weights.values()),
            lr=work.schedule.lr,
            weight_decay=work.schedule.weight_decay,
            # All weights in one pass where there is such a kernel.
            fused=True if work.device.type in ("cpu", "cuda") else None,
        )
        self.looks = work.held is not None or self.rows.held is not None
        self.best = {name: w.clone() for name, w in self.weights.items()} if self.looks else self.weights
        self.kept = torch.zeros(len(members), dtype=torch.long, device=work.device)
        self.reached = torch.full((len(members),), math.inf, dtype=torch.float64, device=work.device)
        self.waited = torch.zeros(len(members), dtype=torch.long, device=work.device)
        self.finite = torch.ones(len(members), dtype=torch.bool, device=work.device)

    def run(self, tell: Callable[[int], None]) -> Tensor:
        """All steps; gives the loss on the rows held back at the start, (members,)."""
        schedule = self.work.schedule
        before = self.look(0).cpu()
        for step in range(schedule.steps):
            self.step(step)
            done = step + 1
            if schedule.looks_after(done):
                self.look(done)
                tell(done)
                if schedule.patience is not None and self.looks and bool((self.waited >= schedule.patience).all()):
                    break
        tell(schedule.steps)
        return before

    def step(self, step: int) -> None:
        """One step of every member."""
        gradients, losses = self.gradients(next(self.batches))
        for name, weight in self.weights.items():
            weight.grad = gradients[name]
        self.optimizer.param_groups[0]["lr"] = self.work.schedule.rate(step)
        self.optimizer.step()
        self.finite &= losses.isfinite()

    def gradients(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Of every member, on rows (members, size)."""
        return self.work.objective.gradients(self.weights, self.fixed, *self._taken(rows))

    def look(self, step: int) -> Tensor:
        """Keep the weights of those members that do better than before.

        Returns:
            The loss of each on the rows held back, (members,) float64; infinity where none are.

        Raises:
            RecipeError: a member diverged, and has no weights to keep.
        """
        found = self.reached
        if self.looks:
            found = self._judged()
            better = found < self.reached
            if (patience := self.work.schedule.patience) is not None:
                better &= self.waited < patience
            self.reached = torch.where(better, found, self.reached)
            self.kept[better] = step
            self.waited = torch.where(better, 0, self.waited + 1)
            for name, weight in self.weights.items():
                self.best[name][better] = weight[better]
            lost = self.reached.isinf()
            if step == 0 and self.work.schedule.steps and self.work.held is None:
                # The trained weights have seen these rows, so that no step could do better than they do.
                self.reached.fill_(math.inf)
        else:
            self.kept.fill_(step)
            lost = ~self.finite
            for weight in self.weights.values():
                lost |= ~weight.isfinite().flatten(1).all(1)
        if bool(lost.any()):
            self._refuse(lost, step)
        return found

    def diverged(self) -> list[int]:
        """Members whose loss stopped being finite."""
        return [self.members[place] for place in (~self.finite).nonzero().flatten().tolist()]

    def _judged(self) -> Tensor:
        """The mean loss of every member on the rows held back, (members,) float64."""
        work, count = self.work, len(self.members)
        rows, counts = self.rows.held, self.rows.counts
        if work.held is not None:
            rows = torch.arange(min(len(work.held), MOST_HELD)).expand(count, -1)
            counts = torch.full((count,), rows.shape[1])
        assert rows is not None
        source = work.data if work.held is None else work.held
        size = max(1, _LOOKED_AT // max(1, work.objective.program.activation_bytes * count))
        found = torch.zeros(count, dtype=torch.float64, device=work.device)
        for start in range(0, rows.shape[1], size):
            piece = rows[:, start : start + size]
            each = work.objective.losses(self.weights, self.fixed, *self._taken(piece, source)).double()
            own = start + torch.arange(piece.shape[1]) < counts.unsqueeze(1)
            found += torch.where(own.to(work.device), each, 0).sum(1)
        return found / counts.to(work.device)

    def _taken(self, rows: Tensor, source: Data | None = None) -> tuple[list[Tensor], Tensor]:
        """Inputs and targets of these rows, each (members, rows, ...), where the members are."""
        data = source or self.work.data
        assert data.targets is not None

        def taken(tensor: Tensor) -> Tensor:
            return tensor[rows.to(tensor.device)].to(self.work.device)

        return [taken(tensor) for tensor in data.inputs], taken(data.targets)

    def _refuse(self, lost: Tensor, step: int) -> None:
        names = [str(self.members[place]) for place in lost.nonzero().flatten().tolist()]
        who = f"member{'s' if len(names) > 1 else ''} {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        if step == 0:
            raise RecipeError(
                f"The loss of {who} is not finite before the first step: look for NaN or infinity in the inputs, or "
                "start nearer to the trained weights."
            )
        cure = "" if self.looks else ", or use early_stopping=True, with which a member keeps its best weights"
        raise RecipeError(
            f"Training diverged: after {step} steps loss or weights of {who} are not finite. Lower lr (it is "
            f"{self.work.schedule.lr:g}){cure}; if that happens at any lr, look for NaN in the inputs."
        )


def _trained(members: Members, names: Collection[str] | None) -> list[str]:
    """The stacked tensors to train.

    Raises:
        RecipeError: there are none, or a name that members have nothing of their own for.
    """
    sides = {side: name for name in members.factored for side in (name + LEFT, name + RIGHT)}
    floating = [name for name, tensor in members.stacked.items() if tensor.is_floating_point()]
    known = {sides.get(name, name) for name in floating}
    if names is not None and (unknown := sorted(set(names) - known)):
        raise RecipeError(f"Members have nothing of their own to train for {', '.join(unknown[:5])}.")
    found = [name for name in floating if names is None or sides.get(name, name) in names]
    if not found:
        raise RecipeError("Members have no floating-point weights of their own, so there is nothing to train.")
    return found


def _tell(progress: Progress | None, before: int, total: int, done: int) -> None:
    if progress is not None:
        progress(before + done, total)
