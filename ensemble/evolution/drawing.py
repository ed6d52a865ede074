"""The noise of a step, drawn some pairs of members at a time, and kept from their evaluation for the update."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ensemble.evolution.antithetic import Noise

# Noise that is drawn at a time, and that is kept.
_DRAWN_BYTES = 32 * 2**20
_KEPT_BYTES = 256 * 2**20


def step_seed(seed: int, step: int) -> int:
    """What the noise of a step is drawn from."""
    text = f"{seed}\0{step}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"population").digest(), "little") >> 1


class Drawing:
    """The noise of one step's pairs.

    It is always cut into the same pieces, so that what was drawn for some members serves others.

    Args:
        noise: of which form.
        pairs: how many there are.
        device: where it is wanted.
    """

    def __init__(self, noise: Noise, pairs: int, device: torch.device) -> None:
        self.noise = noise
        self._pairs = pairs
        self._device = device
        self._size = max(1, _DRAWN_BYTES // max(1, noise.nbytes))
        self._seed: int | None = None
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __call__(self, seed: int, members: range) -> Iterator[tuple[range, dict[str, Tensor]]]:
        """The pieces that hold these members' pairs.

        Args:
            seed: the step's. What is kept is that of one seed.
            members: without gaps.

        Yields:
            The pairs of a piece, and their noise, as :meth:`Noise.draw` gives it.
        """
        if seed != self._seed:
            self._seed, self._kept = seed, {}
        first, last = members.start // 2, (members.stop - 1) // 2
        for start in range(first - first % self._size, last + 1, self._size):
            pairs = range(start, min(start + self._size, self._pairs))
            yield pairs, self._drawn(seed, pairs)

    def _drawn(self, seed: int, pairs: range) -> dict[str, Tensor]:
        found = self._kept.get(pairs.start)
        if found is None:
            found = {name: t.to(self._device) for name, t in self.noise.draw(seed, pairs).items()}
            if (sum(map(_nbytes, self._kept.values())) + _nbytes(found)) <= _KEPT_BYTES:
                self._kept[pairs.start] = found
        return found


def _nbytes(noise: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in noise.values())
