"""The programs that variants run on: the model's own, and rewritten ones for those that have factors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch

from ensemble.members import own_shapes
from ensemble.perturbation.factors import Shape
from ensemble.program.program import Program
from ensemble.structured import factorable, factored_program
from ensemble.variants.kind import Kind

# A rewritten program is small, but for its number there is no bound.
_MOST_PROGRAMS = 32
_MOST_FORMS = 1024


class Programs:
    """Rewrites one program for the factors that are asked for, and keeps what was rewritten last.

    Args:
        program: the model's own.
        dtypes: of its weights.
        known: a program that is rewritten already, by the factors that it is for.
    """

    def __init__(
        self,
        program: Program,
        dtypes: Mapping[str, torch.dtype],
        known: Mapping[tuple[tuple[str, Shape], ...], Program],
    ) -> None:
        self._program = program
        self._dtypes = dtypes
        self._rewritten = OrderedDict(known)
        self._forms: dict[tuple[tuple[str, Shape], ...], dict[str, Shape]] = {}

    def factorable(self, wanted: Mapping[str, Shape]) -> dict[str, Shape]:
        """Those of the weights that the program uses in products alone; found out once."""
        key = tuple(sorted(wanted.items()))
        found = self._forms.get(key)
        if found is None:
            found, _ = factorable(self._program, wanted)
            if len(self._forms) >= _MOST_FORMS:
                self._forms.clear()
            self._forms[key] = found
        return found

    def kind(
        self,
        members: int,
        sizes: Mapping[str, tuple[int, ...]],
        factored: Mapping[str, Shape],
        mixture: tuple[float, ...] | None = None,
    ) -> Kind:
        """What so many members are that differ in some weights.

        Args:
            members: how many.
            sizes: shapes of the weights that differ.
            factored: those of them that have factors.
            mixture: the members' weights in the mixture.
        """
        shapes = own_shapes(dict(sorted(sizes.items())), factored, self._dtypes)
        own = tuple((name, dtype, shape) for name, (dtype, shape) in shapes.items())
        return Kind(members, own, tuple(sorted(factored.items())), mixture)

    def running(self, kind: Kind) -> Program:
        """What evaluates members of a kind."""
        if not kind.factored:
            return self._program
        if kind.factored not in self._rewritten:
            self._rewritten[kind.factored] = factored_program(self._program, dict(kind.factored))
            if len(self._rewritten) > _MOST_PROGRAMS:
                self._rewritten.popitem(last=False)
        self._rewritten.move_to_end(kind.factored)
        return self._rewritten[kind.factored]
