"""What an ensemble's outputs are condensed to: each statistic by its name, streamed over chunks of members.

Notation: members i = 1..N, of weight w_i in the mixture that they are (1/N each, or as fitting found), Σ w_i = 1. A
classifier's member gives probabilities p_i, a regressor's μ_i, and σ_i² where the network has a variance head or a
noise variance is known. "The mean over members" is always Σ w_i. Entropies and logarithms are natural.
"""

from ensemble.statistics.available import available, resolve
from ensemble.statistics.mixture import quantiles
from ensemble.statistics.moments import Moments, entropy
from ensemble.statistics.statistic import Asked, Statistic
from ensemble.statistics.table import STATISTICS

__all__ = ["STATISTICS", "Asked", "Moments", "Statistic", "available", "entropy", "quantiles", "resolve"]
