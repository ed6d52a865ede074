"""The part of an ensemble that holds it to what its members give by themselves, and to what its signature says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ensemble.errors import ModelError, first_line
from ensemble.members import Members
from ensemble.outputs import Outputs
from ensemble.planning.planned import Planned
from ensemble.program.program import plain
from ensemble.tasks import Task, sample
from ensemble.vectorised import loop


class Checked(Planned):
    """Base of :class:`~ensemble.ensemble.Ensemble`.

    Attributes:
        members: the weights.
        task: what the outputs mean.
    """

    members: Members
    task: Task
    _outputs: Outputs

    def loop(self, *args: Any, **kwargs: Any) -> Any:
        """As a call, but one member after the other with its full weights: the reference of every faster way."""
        inputs = self.program.bind(args, kwargs, self.device)
        return self.program.results.pack(loop(self.program, self.members, inputs, range(self.members.count)))

    def check(self, inputs: Sequence[Tensor] | None = None, members: int = 4) -> float:
        """Compare the vectorised call with the loop over materialised members.

        Args:
            inputs: flat inputs; the example that the ensemble keeps by default.
            members: how many members to compare, spread over the ensemble.

        Returns:
            The largest difference, relative to the largest magnitude of each output.

        Raises:
            ModelError: it is over 1e-4 (for 16-bit weights 5e-2), or the outputs are not finite.
        """
        flat = [t.to(self.device) for t in (inputs or self.example())]
        indices = sorted({round(i * (self.members.count - 1) / max(1, members - 1)) for i in range(members)})
        expected = loop(self.program, self.members, flat, indices)
        chunks = list(self._runner(flat))
        worst = 0.0
        for spec, want, parts in zip(self.program.outputs, expected, zip(*chunks, strict=True), strict=True):
            got = torch.cat(parts)[indices].double()
            if not bool(got.isfinite().all()):
                raise ModelError(f"The output {spec.name!r} is not finite on the example; the model cannot be served.")
            scale = max(float(want.double().abs().max()), 1e-30)
            worst = max(worst, float((got - want.double()).abs().max()) / scale)
        if worst > self._bound:
            raise ModelError(
                f"The vectorised call differs from the loop over members by {worst:.2g} (bound {self._bound})."
            )
        return worst

    def check_variances(self) -> None:
        """Of a gaussian model, that the variances it states on the example are positive.

        Raises:
            ModelError: one is not.
        """
        if self.task != "gaussian":
            return
        for outputs in self._runner(self.example()):
            for head in self._outputs.heads:
                variance = sample(self.task, head, outputs).variance
                if variance is not None and not bool((variance > 0).all()):
                    raise ModelError(
                        "A gaussian model returns (mean, variance) with a positive variance; this one gives "
                        f"{float(variance.min()):.3g} on the example. Use softplus or exp for it, and return the "
                        "variance, not its logarithm."
                    )

    def try_one(self) -> None:
        """Run one member on the example.

        Raises:
            ModelError: it fails, or gives something else than the signature says.
        """
        inputs = self.example()
        try:
            outputs = next(self._runner(inputs, count=1))
        except ModelError:
            raise
        except Exception as error:
            # What runs is the model's own code, or a graph from a file: it may raise anything.
            raise ModelError(
                f"The model does not run with {plain(self.dtype)} weights on the {self.device.type}: "
                f"{type(error).__name__} {first_line(error)[:300]}"
            ) from error
        if self.program.live:
            return
        for spec, output in zip(self.program.outputs, outputs, strict=True):
            shape = (1, *[inputs[0].shape[0] if size == -1 else size for size in spec.shape])
            if output.shape != shape or output.dtype != spec.dtype:
                raise ModelError(f"The output {spec.name!r} is not of the shape and dtype that the signature states.")
