"""Ways of making members, one a file.

A recipe is a frozen dataclass of settings that derives from :class:`~ensemble.perturbation.base.Perturbation`, or from
:class:`~ensemble.perturbation.learned.Learned` where its members depend on data. Dropping a file with one into this
folder makes it known by its name, in saved ensembles and on the command line.
"""

from __future__ import annotations

import importlib
import pkgutil

from ensemble.perturbation.base import Perturbation, Recipe
from ensemble.perturbation.learned import Learned, Material

for _module in pkgutil.iter_modules(__path__):
    for _name, _value in vars(importlib.import_module(f"{__name__}.{_module.name}")).items():
        if isinstance(_value, type) and issubclass(_value, Recipe):
            globals()[_name] = _value

recipes = Recipe.known

__all__ = ["Learned", "Material", "Perturbation", "Recipe", "recipes"]
