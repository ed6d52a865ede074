"""What is trained, on what, and how many members go together."""

from __future__ import annotations

from collections.abc import Collection

from ensemble.data import Data
from ensemble.errors import InputError, ModelError, RecipeError
from ensemble.losses import Loss
from ensemble.members import Members
from ensemble.memory import require
from ensemble.program.program import Program
from ensemble.structured import LEFT, RIGHT, factored_program
from ensemble.training.chunk import Chunk
from ensemble.training.objective import Objective, differentiable
from ensemble.training.schedule import Schedule

# What the activations of members that are trained together take. On a CPU more than its caches hold slows all down.
_CACHED, _ELSEWHERE = 8 * 2**20, 512 * 2**20
# What their weights, gradients, moments and best weights take.
_STATE = 256 * 2**20
_COPIES = 6


class Job:
    """All that training needs, as :func:`~ensemble.training.loop.train` takes it.

    Attributes:
        objective: the loss as a function of members' weights.
        own: names of the stacked tensors that are trained.
        device: where they live.
        chunk: how many members go together; 1 until :meth:`settle`.
    """

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
        self.objective = Objective(differentiable(program).with_own_inputs, members.shared, loss)
        self.activations = program.activation_bytes * min(schedule.batch_size, len(data))
        self.members, self.own, self.schedule, self.seed = members, own, schedule, seed
        self.data, self.held = data, held
        self.bootstrap, self.early_stopping = bootstrap, early_stopping and held is None
        self.device = members.stacked[own[0]].device
        self.bytes_per_member = sum(members.stacked[n][0].numel() * members.stacked[n].element_size() for n in own)
        self.chunk = 1

    @property
    def looks(self) -> bool:
        """Whether rows are held back and looked at."""
        return self.early_stopping or self.held is not None

    def settle(self, chunk: int | None) -> None:
        """Decide how many members go together, and that one of them can take a step.

        Raises:
            InputError: a chunk that is none, or a loss that is none.
            ModelError: an operation has no derivative.
            MemoryLimitError: the trained members do not fit.
        """
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise InputError(f"chunk must be a number of members, at least 1, however: {chunk!r}.")
        stacked = [self.members.stacked[name] for name in self.own]
        require([(weight.dtype, weight.shape[1:]) for weight in stacked], self.members.count, self.device)
        self.chunk = self._fitting() if chunk is None else min(chunk, self.members.count)
        if self.schedule.steps == 0:
            return
        self.part(0, 1).check_loss()
        if self.chunk > 1:
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

    def part(self, start: int, count: int | None = None) -> Chunk:
        """Members from ``start`` on, a chunk of them by default, before their first step."""
        members = range(start, min(self.members.count, start + (count or self.chunk)))
        stacked = {name: tensor[start : members.stop] for name, tensor in self.members.stacked.items()}
        weights = {name: stacked.pop(name).clone() for name in self.own}
        return Chunk(
            members,
            weights,
            stacked,
            self.objective,
            self.data,
            self.schedule,
            seed=self.seed,
            bootstrap=self.bootstrap,
            early_stopping=self.early_stopping,
            held=self.held,
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
