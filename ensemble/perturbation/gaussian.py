"""Independent Gaussian noise on every chosen weight."""

from __future__ import annotations

from dataclasses import dataclass

from ensemble.perturbation.noise import Noise


@dataclass(frozen=True)
class Gaussian(Noise, name="gaussian"):
    """W_i = W + scale · rms(W) · E_i with E_i iid standard normal.

    rms(W) is taken over each named weight by itself, so one scale fits layers of any magnitude; a weight that is all
    zero (a bias that was never trained) stays as it is. Buffers, such as the running statistics of batch
    normalisation, are perturbed only where ``include`` names them.

    Args:
        scale: noise relative to the root mean square of each weight, ≥ 0. No unit.
        include: patterns of the names to perturb; all floating-point parameters by default.
        exclude: patterns of the names to leave as trained.

    Raises:
        RecipeError: a negative or non-finite scale, or patterns that are not text.

    Example:
        >>> Gaussian(scale=0.02, exclude="head.*")
        Gaussian(scale=0.02, include=('*',), exclude=('head.*',))
    """
