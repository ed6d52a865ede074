"""How members were made, in the words of a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


def in_words(name: str, settings: Mapping[str, Any]) -> str:
    """A recipe with what its settings say, such as "rank1, scale 0.1"; of a mixture what its parts differ in.

    Args:
        name: the recipe's.
        settings: as :meth:`ensemble.Recipe.settings` gives them.
    """
    if name == "mixture":
        return _mixed(settings["parts"])
    said = [f"{key} {_value(value)}" for key, value in settings.items() if not _says_nothing(key, value)]
    return ", ".join([name, *said])


def _mixed(parts: list[dict[str, Any]]) -> str:
    kinds = Counter(part["recipe"] for part in parts)
    first = parts[0]["settings"]
    if len(kinds) > 1:
        return f"mixture of {len(parts)} settings: {', '.join(f'{n} of {kind}' for kind, n in kinds.items())}"
    differing = {key for part in parts for key, value in part["settings"].items() if value != first.get(key)}
    each = {key: sorted({part["settings"][key] for part in parts}) for key in differing}
    said = [f"{key} {', '.join(map(_value, values))}" for key, values in each.items()]
    same = in_words(parts[0]["recipe"], {key: value for key, value in first.items() if key not in differing})
    return f"mixture of {len(parts)} settings of {', '.join([same, *said])}"


def _says_nothing(key: str, value: Any) -> bool:
    return value in (None, [], ()) or (key == "include" and list(value) == ["*"])


def _value(value: Any) -> str:
    if isinstance(value, Mapping) and value.keys() == {"recipe", "settings"}:
        return f"({in_words(value['recipe'], value['settings'])})"
    if isinstance(value, list | tuple):
        return " ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
