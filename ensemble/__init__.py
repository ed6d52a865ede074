"""One trained PyTorch model as an ensemble of perturbed members that says how sure it is.

import ensemble

ens = ensemble.perturb(model, ensemble.Gaussian(scale=0.02), members=256, example=x, task="classification")
p = ens.predict(x)                   # p.label, p.mean, p.predictive_entropy, p.mutual_information, ...
ens.save("models/digits/1")
"""

from ensemble.adaptation.adapt import adapt
from ensemble.calibration import Calibration
from ensemble.calibration.fit import fit
from ensemble.calibration.report import FitReport
from ensemble.compatibility import compatibility
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
from ensemble.evaluation.evaluate import Evaluation, evaluate
from ensemble.evolution.population import Population
from ensemble.hypernetworks.contextual import Contextual
from ensemble.hypernetworks.generate import generate
from ensemble.hypernetworks.hypernetwork import Hypernetwork
from ensemble.learning.snapshots import SwagSnapshots
from ensemble.perturbation import Learned, Perturbation, Recipe
from ensemble.perturbation.adapted import Adapted
from ensemble.perturbation.dropout import Dropout
from ensemble.perturbation.gaussian import Gaussian
from ensemble.perturbation.laplace import Laplace
from ensemble.perturbation.low_rank import LowRank
from ensemble.perturbation.mixture import Mixture
from ensemble.perturbation.perturb_and_correct import PerturbAndCorrect
from ensemble.perturbation.rank_one import Rank1
from ensemble.perturbation.swag import Swag
from ensemble.prediction import Prediction
from ensemble.storage.artifact import load

__all__ = [
    "Adapted",
    "ArtifactError",
    "Calibration",
    "Contextual",
    "Dropout",
    "Ensemble",
    "EnsembledError",
    "Evaluation",
    "ExportError",
    "FitReport",
    "Gaussian",
    "Hypernetwork",
    "InputError",
    "Laplace",
    "Learned",
    "LowRank",
    "MemoryLimitError",
    "Mixture",
    "ModelError",
    "PerturbAndCorrect",
    "Perturbation",
    "Population",
    "Prediction",
    "Rank1",
    "Recipe",
    "RecipeError",
    "StatisticError",
    "Swag",
    "SwagSnapshots",
    "adapt",
    "compatibility",
    "evaluate",
    "fit",
    "generate",
    "load",
    "perturb",
    "stack",
]
