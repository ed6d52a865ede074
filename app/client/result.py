"""What an inference gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Result:
    """Outputs as arrays, and what is needed to get them again.

    Attributes:
        outputs: an array for each, by name; the first dimension is the batch.
        model, version: which answered.
        members: how many were evaluated.
        seed: from which they were drawn.
        request_id: under which the service's log has it.
        timings: seconds at the service by name: ``queue``, ``infer``, ``total``.
        parameters: whatever else the answer says.
    """

    outputs: Mapping[str, NDArray[Any]]
    model: str
    version: str
    members: int | None = None
    seed: int | None = None
    request_id: str | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.outputs[name]

    def __contains__(self, name: object) -> bool:
        return name in self.outputs
