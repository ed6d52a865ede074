"""The recipe that a request asks for, and how an answer says it so that it can be asked for again."""

from __future__ import annotations

import dataclasses
from typing import Any

import ensemble
from app.errors import BadRequest
from app.protocol import Perturbed
from app.protocol.wording import quote
from ensemble.perturbation import recipes

# Recipes within recipes are no single values.
_NOT_SETTABLE = frozenset({"parts", "weights", "recipe"})
# Several patterns are one text, as protocols have no lists among parameters.
_PATTERNS = frozenset({"include", "exclude"})


def settable() -> frozenset[str]:
    """Names of all recipes' settings that a request may have."""
    return frozenset(name for kind in _drawn().values() for name in _settings(kind))


def recipe_of(asked: Perturbed, own: ensemble.Recipe | None) -> ensemble.Perturbation:
    """The recipe that a request asks for.

    Args:
        asked: what it says.
        own: the model's, of which comes what it leaves out.

    Raises:
        BadRequest: there is no such recipe, or it cannot have these settings.
    """
    name, drawn = asked.recipe, _drawn()
    if name is None:
        if not isinstance(own, ensemble.Perturbation):
            raise BadRequest(f"recipe must be given, one of {', '.join(drawn)}: the model's own draws no members")
        name = own.name
    if name not in drawn:
        why = " (its members are learned from data, not drawn from a seed)" if name in recipes else ""
        raise BadRequest(f"recipe must be one of {', '.join(drawn)}, however: {quote(name)}{why}")
    kind, given = drawn[name], dict[str, Any](asked.settings)
    known = _settings(kind)
    if unknown := [setting for setting in given if setting not in known]:
        has = f"it has {', '.join(known)}" if known else "a request sets none of it"
        raise BadRequest(f"the recipe {name!r} has no setting {', '.join(unknown)}; {has}")
    for setting in _PATTERNS & set(given):
        given[setting] = _patterns(given[setting], setting)
    settings = _defaults(name, own) | given
    fields = dataclasses.fields(kind)
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [needs for needs in needed if needs not in settings]:
        if not set(missing) <= set(known):
            raise BadRequest(f"the recipe {name!r} can be asked for only where it is the model's own")
        raise BadRequest(f"the recipe {name!r} needs {', '.join(missing)}")
    try:
        return kind.from_settings(settings)
    except (ensemble.EnsembledError, TypeError, ValueError) as error:
        raise BadRequest(f"the recipe {name!r} cannot have these settings: {error}") from None


def told(recipe: ensemble.Perturbation, own: ensemble.Recipe | None) -> dict[str, Any]:
    """What a request may say so that :func:`recipe_of` gives this recipe, each one value.

    Args:
        recipe: as it was asked for, not settled.
        own: the model's, of which comes what is left out.
    """
    found = {"recipe": recipe.name}
    settings, defaults = recipe.settings(), _defaults(recipe.name, own)
    for field in dataclasses.fields(recipe):
        name, value = field.name, settings[field.name]
        usual = getattr(recipe, name) == field.default
        if name in _NOT_SETTABLE or (usual and value == defaults.get(name, value)):
            continue
        if name not in _PATTERNS:
            found[name] = value
        elif name not in defaults or value != defaults[name]:
            found[name] = ",".join(value)
    return found


def _drawn() -> dict[str, type[ensemble.Perturbation]]:
    return {name: kind for name, kind in sorted(recipes.items()) if issubclass(kind, ensemble.Perturbation)}


def _settings(kind: type[ensemble.Recipe]) -> list[str]:
    fields = dataclasses.fields(kind)
    return [field.name for field in fields if field.name not in _NOT_SETTABLE]


def _defaults(name: str, own: ensemble.Recipe | None) -> dict[str, Any]:
    return own.settings() if own is not None and own.name == name else {}


def _patterns(value: object, setting: str) -> list[str]:
    if not isinstance(value, str):
        raise BadRequest(f"{setting} must be name patterns with commas, such as 'fc*.weight', however: {value!r}")
    return [part.strip() for part in value.split(",") if part.strip()]
