"""Other members of an ensemble's model: of another recipe or seed, or with weights that somebody brings.

The model is a function of its weights already, so nothing is exported again and nothing that all members share is
copied. What differs from the ensemble is one set of members' own weights, a variant. Variants of one kind, with as many
members and own weights of the same shapes, are evaluated together, each on rows of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.members import Members, draw_own
from ensemble.outputs import Outputs
from ensemble.perturbation import Perturbation
from ensemble.prediction import Prediction
from ensemble.structured import structures
from ensemble.tasks import heads
from ensemble.variants.bringing import NO_REFERENCE, Bringing
from ensemble.variants.evaluation import Evaluation
from ensemble.variants.kind import Kind, OwnWeights
from ensemble.variants.programs import Programs

if TYPE_CHECKING:
    from ensemble.ensemble import Ensemble

_MOST_KINDS = 1024
_SAVED_BEFORE = (
    "this ensemble was saved by a version that did not keep which of its weights are parameters; build it again."
)


class Variants:
    """Makes variants of one ensemble and evaluates them.

    One thread at a time may draw and evaluate; all else may be called beside it.

    Args:
        made: the ensemble.

    Attributes:
        trained: the trained weights by name, as far as they are known.
    """

    def __init__(self, made: Ensemble) -> None:
        self._program = made.program
        self._device = made.device
        dtypes = made.members.dtypes
        shared = made.members.shared
        if len(made) == 1 and made.origin.recipe is None:
            # A member that was not drawn is what was trained.
            shared = made.members.whole(0)
        # As trained, from which members are drawn; and where and as what the members are, which they share.
        self.trained = {**shared, **made.origin.reference}
        placed = {
            name: shared[name] if name in shared else weight.to(self._device, dtypes[name])
            for name, weight in self.trained.items()
        }
        self._unknown = any(name not in self.trained for name in dtypes)
        self._trainable = _trainable(made)
        outputs = Outputs(made.task, tuple(heads(made.task, made.program.outputs)), made.noise_variance)
        self._statistics = frozenset(outputs.described())
        known = {tuple(sorted(made.members.factored.items())): made.running} if made.members.factored else {}
        self._programs = Programs(made.program, dtypes, known)
        sizes = {name: tuple(empty.shape) for name, empty in made.program.empty_weights().items()}
        self._bringing = Bringing(self._programs, sizes, dtypes, placed, self._device)
        self._evaluation = Evaluation(self._programs, placed, outputs)
        self._kinds: dict[tuple[Perturbation, int], tuple[Perturbation, Kind]] = {}

    @property
    def statistics(self) -> Collection[str]:
        """Names of what may be asked of variants, for which nothing was fitted."""
        return self._statistics

    def perturbed(self, recipe: Perturbation, members: int) -> tuple[Perturbation, Kind]:
        """The recipe as it is settled for this model, and the kind of variant that it gives. Nothing is drawn.

        Raises:
            RecipeError: the recipe does not fit the model, or the model's trained weights are not known.
        """
        key = recipe, members
        found = self._kinds.get(key)
        if found is None:
            if self._unknown or self._trainable is None:
                raise RecipeError(NO_REFERENCE if self._unknown else _SAVED_BEFORE)
            settled = recipe.settled(self._program)
            names = settled.select(self.trained, self._trainable)
            sizes = {name: tuple(self.trained[name].shape) for name in names}
            forms = self._programs.factorable(structures(settled, {name: self.trained[name] for name in names}))
            mixture = settled.mixture(members)
            kind = self._programs.kind(members, sizes, forms, None if mixture is None else tuple(mixture.tolist()))
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            self._kinds[key] = found = settled, kind
        return found

    def draw(self, recipe: Perturbation, kind: Kind, seed: int) -> dict[str, Tensor]:
        """A variant's own weights: those that :func:`ensemble.perturb` draws with the same values, bit for bit.

        Args:
            recipe, kind: from :meth:`perturbed`.

        Raises:
            MemoryLimitError: they do not fit.
        """
        shapes = {name: (dtype, shape) for name, dtype, shape in kind.own}
        return draw_own(
            recipe, self.trained, shapes, dict(kind.factored), count=kind.count, seed=seed, device=self._device
        )

    def brought(self, weights: Mapping[str, Tensor]) -> tuple[Kind, dict[str, Tensor]]:
        """A variant with weights that are given; all others are as trained.

        Args:
            weights: by name, of the weight's shape, or (members, *shape). Instead of a weight the factors of what is
                added to it may be given, W + L Rᵀ: L, (rows, rank), under the name + ".left" and R, (columns, rank),
                under the name + ".right", all dimensions of W after the first being its columns.

        Returns:
            The kind of variant, and its own weights.

        Raises:
            InputError: a name that is none, a wrong shape or dtype, numbers that are not finite, or members of
                different numbers.
        """
        kind, given = self._bringing.checked(weights)
        return kind, self._bringing.formed(kind, given)

    def checked(self, weights: Mapping[str, Tensor]) -> tuple[Kind, dict[str, Tensor]]:
        """The first half of :meth:`brought`, which takes no more memory than what is given.

        Returns:
            The kind, and what :meth:`formed` needs.

        Raises:
            InputError: as there.
        """
        return self._bringing.checked(weights)

    def formed(self, kind: Kind, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The second half: a variant's own weights. Factors of a weight that is in no product are multiplied out."""
        return self._bringing.formed(kind, given)

    def members(self, kind: Kind, own: OwnWeights) -> Members:
        """A variant as members; what they share is not copied."""
        return self._evaluation.members(kind, own)

    def predict(
        self,
        kind: Kind,
        variants: Sequence[OwnWeights],
        inputs: Sequence[Sequence[Tensor]],
        statistics: Sequence[str] | None = None,
        *,
        confidence_level: float | None = None,
        levels: Sequence[float] | None = None,
        target: Any = None,
    ) -> Prediction:
        """Statistics of every variant's rows; what was fitted to the ensemble is not used.

        Args:
            kind, variants, inputs: as for :meth:`evaluate`.
            statistics, confidence_level, levels, target: as for :meth:`ensemble.Ensemble.predict`, of all rows.

        Returns:
            Of all rows, those of one variant after those of another, in the order of the variants.

        Raises:
            InputError, StatisticError: as there.
        """
        return self._evaluation.predict(
            kind, variants, inputs, statistics, confidence_level=confidence_level, levels=levels, target=target
        )

    def evaluate(
        self, kind: Kind, variants: Sequence[OwnWeights], inputs: Sequence[Sequence[Tensor]]
    ) -> Iterator[tuple[list[int], Iterator[tuple[Tensor, ...]]]]:
        """Run the members of every variant on the variant's rows.

        Args:
            kind: of all of them.
            variants: their own weights.
            inputs: of each its flat inputs, (its rows, ...), on the device.

        Yields:
            Some of the variants, by their places, as many as are evaluated together; and chunks of their flat outputs,
            each (some members, rows, ...), which hold the rows of one of these variants after those of another. They
            are to be read before the next is asked for.
        """
        return self._evaluation.evaluate(kind, variants, inputs)


def _trainable(made: Ensemble) -> frozenset[str] | None:
    """Names of the model's parameters; None where they are not known."""
    if made.origin.trainable is not None:
        return frozenset(made.origin.trainable)
    settings = made.origin.recipe.settings() if made.origin.recipe else {}
    everything = settings.get("include") == ["*"] and not settings.get("exclude")
    return frozenset(made.origin.reference) if everything else None
