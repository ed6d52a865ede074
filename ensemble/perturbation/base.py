"""What every recipe is: settings, and a choice of weights.

There are two kinds. A :class:`Perturbation` gives the weights of members [start, stop) as a function of a seed, so that
only the trained weights and the settings need to be kept. What a :class:`~ensemble.perturbation.learned.Learned` recipe
makes depends on data, and is kept itself.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor

from ensemble.errors import RecipeError
from ensemble.perturbation.factors import Factors, Shape

if TYPE_CHECKING:
    from ensemble.program.program import Program


@dataclasses.dataclass(frozen=True)
class Recipe(ABC):
    """Base of the recipes. Subclasses are frozen dataclasses and pass their name: ``class X(..., name="x")``.

    A subclass without a name is a base of several recipes and no recipe itself.
    """

    known: ClassVar[dict[str, type[Recipe]]] = {}
    name: ClassVar[str]

    def __init_subclass__(cls, *, name: str | None = None, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if name is not None:
            cls.name = name
            Recipe.known[name] = cls

    @abstractmethod
    def select(self, weights: Mapping[str, Tensor], trainable: Collection[str]) -> list[str]:
        """Names of the weights that differ between members, in the order of ``weights``.

        Args:
            weights: every weight that the model uses, by name.
            trainable: those of them that are parameters, not buffers.

        Raises:
            RecipeError: a pattern that matches nothing, or nothing left to perturb.
        """

    def settled(self, program: Program) -> Self:
        """The same recipe with what its settings leave open decided for a model, and so for the recipes in it.

        Called before :meth:`select`, so that what is kept with an ensemble says what was done.

        Raises:
            RecipeError: the recipe does not fit the model; the text says what would.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        settled = {name: _settled(value, program) for name, value in fields.items()}
        changed = {name: value for name, value in settled.items() if value is not fields[name]}
        return dataclasses.replace(self, **changed) if changed else self

    def kept(self) -> Self:
        """The recipe as an ensemble keeps it: without what is needed only while members are made."""
        return self

    def structure(self, shape: Sequence[int]) -> Shape | None:
        """The form and rank of the factors of a weight of this shape; None for a weight whose members are dense."""
        return None

    def mixture(self, count: int) -> Tensor | None:
        """Weights of ``count`` members in the mixture, (count,) float64, ≥ 0 and of sum 1; None if all are equal."""
        return None

    @classmethod
    def candidates(cls) -> Iterable[Mapping[str, Any]]:
        """Settings that :func:`ensemble.fit` compares on held-out data, the most telling first; the trained net alone
        always is among them.

        Each holds what a recipe needs beyond its defaults; of a recipe that the caller made they replace its own. With
        none, as here, the recipe is compared as it is given, and not tried where the caller leaves the choice.
        """
        return ()

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON values; :meth:`from_settings` is the inverse."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Rebuild a recipe from :meth:`settings`.

        Raises:
            RecipeError: unknown settings, or values out of range.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(settings) - fields):
            raise RecipeError(f"The recipe {cls.name!r} has no setting {', '.join(unknown)}; it has {sorted(fields)}.")
        return cls(**{name: _recipes(value) for name, value in settings.items()})


def _settled(value: Any, program: Program) -> Any:
    if isinstance(value, Recipe):
        return value.settled(program)
    if isinstance(value, tuple) and any(isinstance(item, Recipe) for item in value):
        return tuple(_settled(item, program) for item in value)
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Recipe):
        return {"recipe": value.name, "settings": value.settings()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _recipes(value: Any) -> Any:
    """A setting as it was, where it is a recipe or a list with some; nothing else is a dict."""
    if isinstance(value, Mapping):
        if value.keys() != {"recipe", "settings"} or not isinstance(value["settings"], Mapping):
            raise RecipeError('A recipe among settings is {"recipe": NAME, "settings": {...}}.')
        if value["recipe"] not in Recipe.known:
            raise RecipeError(f"There is no recipe {value['recipe']!r}, only {', '.join(sorted(Recipe.known))}.")
        return Recipe.known[value["recipe"]].from_settings(value["settings"])
    return tuple(_recipes(item) for item in value) if isinstance(value, list | tuple) else value


class Perturbation(Recipe):
    """A recipe whose members are a function of the trained weights, a seed and their number."""

    @abstractmethod
    def draw(self, name: str, weight: Tensor, seed: int, members: range) -> Tensor:
        """Weights of some members for one selected name.

        Member i is a function of ``weight``, the settings, ``seed``, ``name`` and i alone, bit for bit.

        Args:
            name: the weight's name in the model's state dict.
            weight: its trained value, on any device.
            seed: the ensemble's seed.
            members: which members.

        Returns:
            Tensor of shape (len(members), *weight.shape) with the dtype and device of ``weight``.
        """

    def factors(self, name: str, weight: Tensor, seed: int, members: range) -> Factors | None:
        """The same weights as thin factors on the trained value, where the recipe has them in that form.

        Returns:
            Factors in float32 or better on the CPU, which materialise to what :meth:`draw` gives; None where
            :meth:`structure` does.
        """
        return None


def as_patterns(patterns: str | Iterable[str], setting: str) -> tuple[str, ...]:
    """One pattern or several, as a tuple.

    Raises:
        RecipeError: something that is not text.
    """
    alone = isinstance(patterns, str) or not isinstance(patterns, Iterable)
    found: tuple[Any, ...] = (patterns,) if alone else tuple(patterns)
    if not all(isinstance(pattern, str) and pattern for pattern in found):
        raise RecipeError(f"{setting} must be name patterns such as 'fc*.weight', however: {patterns!r}.")
    return found


def choose(
    names: Sequence[str], candidates: Collection[str], include: Sequence[str], exclude: Sequence[str]
) -> list[str]:
    """Names that an include pattern and no exclude pattern matches (shell style: ``*``, ``?``, ``[..]``).

    Args:
        names: all names, in order.
        candidates: those of them that may be chosen at all.

    Raises:
        RecipeError: an include pattern that matches no candidate, an exclude pattern that matches no name, or
            nothing left.
    """

    def matches(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    allowed = [name for name in names if name in candidates]
    for pattern, among in [(p, allowed) for p in include] + [(p, list(names)) for p in exclude]:
        if not fnmatch.filter(among, pattern):
            raise RecipeError(f"The pattern {pattern!r} matches none of this model's weights: {_listing(among)}.")
    chosen = [n for n in allowed if matches(n, include) and not matches(n, exclude)]
    if not chosen:
        raise RecipeError(
            f"Nothing is left to perturb: include={list(include)} and exclude={list(exclude)} choose none of "
            f"{_listing(allowed)}."
        )
    return chosen


def _listing(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(names[:most]) or "(none)"
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown
