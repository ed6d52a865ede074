"""Everything the library refuses, said so that a person can act on it.

EnsembledError
├── ModelError          the model cannot be made into an ensemble
│   └── ExportError     ... because torch.export cannot capture it (``live=True`` may still work)
├── RecipeError         a perturbation's settings, or what they select in this model, make no sense
│   └── TooShortError   ... because the time that it was given does not suffice
├── InputError          a call's inputs do not fit the model's signature
├── StatisticError      a statistic that does not exist, or not for this task
├── MemoryLimitError    the ensemble does not fit; the text says what would
└── ArtifactError       a saved ensemble is damaged, unsafe or from another version
"""


class EnsembledError(Exception):
    """Base of all errors that this library raises on purpose."""


class ModelError(EnsembledError):
    """The model cannot be made into an ensemble; the text says why and what to change."""


class ExportError(ModelError):
    """``torch.export`` cannot capture the model."""


class RecipeError(EnsembledError, ValueError):
    """A perturbation's settings are out of range or select nothing."""


class TooShortError(RecipeError):
    """The seconds that a recipe was given do not suffice for anything."""


class InputError(EnsembledError, ValueError):
    """Inputs whose names, shapes or dtypes do not fit the model's signature."""


class StatisticError(EnsembledError, ValueError):
    """An unknown statistic, or one that the task does not have."""


class MemoryLimitError(EnsembledError):
    """The ensemble needs more memory than the device has free."""


class ArtifactError(EnsembledError):
    """A saved ensemble that cannot be loaded."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of somebody else's says, or its class if it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
