"""One trained PyTorch model as an ensemble of perturbed members that says how sure it is.

import ensemble

ens = ensemble.perturb(model, ensemble.Gaussian(scale=0.02), members=256, example=x, task="classification")
p = ens.predict(x)                   # p.label, p.mean, p.predictive_entropy, p.mutual_information, ...
ens.save("models/digits/1")
"""

from ensemble.artifact import load
from ensemble.construct import perturb, stack
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
from ensemble.perturbation import Perturbation
from ensemble.perturbation.gaussian import Gaussian
from ensemble.prediction import Prediction

__all__ = [
    "ArtifactError",
    "Ensemble",
    "EnsembledError",
    "ExportError",
    "Gaussian",
    "InputError",
    "MemoryLimitError",
    "ModelError",
    "Perturbation",
    "Prediction",
    "RecipeError",
    "StatisticError",
    "load",
    "perturb",
    "stack",
]
