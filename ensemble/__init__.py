"""One trained PyTorch model as an ensemble of perturbed members that says how sure it is.

import ensemble

ens = ensemble.perturb(model, ensemble.Gaussian(scale=0.02), members=256, example=x, task="classification")
p = ens.predict(x)                   # p.label, p.mean, p.predictive_entropy, p.mutual_information, ...
ens.save("models/digits/1")
"""

from ensemble.artifact import load
from ensemble.calibration import Calibration
from ensemble.compatibility import compatibility
from ensemble.construct import perturb, stack
from ensemble.contextual import Contextual
from ensemble.ensemble import Ensemble
from ensemble.errors import (
    ArtifactError,
    EnsembledError,
    ExportError,
    InputError,
    MemoryLimitError,
    ModelError,
    RecipeError,
    StatisticError,
)
from ensemble.generation import generate
from ensemble.hypernetwork import Hypernetwork
from ensemble.perturbation import Learned, Perturbation, Recipe
from ensemble.perturbation.gaussian import Gaussian
from ensemble.perturbation.low_rank import LowRank
from ensemble.perturbation.mixture import Mixture
from ensemble.perturbation.rank_one import Rank1
from ensemble.population import Population
from ensemble.prediction import Prediction

__all__ = [
    "ArtifactError",
    "Calibration",
    "Contextual",
    "Ensemble",
    "EnsembledError",
    "ExportError",
    "Gaussian",
    "Hypernetwork",
    "InputError",
    "Learned",
    "LowRank",
    "MemoryLimitError",
    "Mixture",
    "ModelError",
    "Perturbation",
    "Population",
    "Prediction",
    "Rank1",
    "Recipe",
    "RecipeError",
    "StatisticError",
    "compatibility",
    "generate",
    "load",
    "perturb",
    "stack",
]
