"""Where settings come from, and what is said of those that cannot be used.

A value comes from, in this order: a command-line flag, an environment variable ``ENSEMBLED_<NAME>``, a line of the
TOML file that ``--config`` (or ``ENSEMBLED_CONFIG``) names, the default.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.settings.settings import SECRETS, Settings

PREFIX = "ENSEMBLED_"
# What is read, but is no setting: the file of settings, and what docker-compose.yml asks for.
_OTHERS = (f"{PREFIX}CONFIG", f"{PREFIX}MODELS_DIR")
# Kubernetes tells each container of every service, so one that is called "ensembled" makes ENSEMBLED_PORT a URL.
_KUBERNETES = re.compile(rf"{PREFIX}(SERVICE_(HOST|PORT)(_.*)?|PORT_[0-9]+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)")
_KUBERNETES_PORT = re.compile(r"(tcp|udp)://.*")


class SettingsError(Exception):
    """A setting that cannot be used; the text names it and says what would be right."""


def load(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Put the settings together.

    Args:
        flags: values that were given on the command line.
        config: the file; else what ENSEMBLED_CONFIG names.

    Raises:
        SettingsError: with one line for each setting that is wrong.
    """
    # Compose files pass variables that are not set as empty text.
    given = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PREFIX) and value and not _is_from_kubernetes(name, value)
    }
    file = config or (Path(given[f"{PREFIX}CONFIG"]) if f"{PREFIX}CONFIG" in given else None)
    environment = {name: given[key] for name in Settings.model_fields if (key := f"{PREFIX}{name.upper()}") in given}
    # Each later one wins.
    sources = [
        (f"in {file}, {{}}", _read_toml(file) if file else {}),
        (f"{PREFIX}{{}}", environment),
        ("--{}", dict(flags)),
    ]
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place, source in sources:
        values |= source
        places |= dict.fromkeys(source, place)
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(dict(e), places) for e in error.errors())) from None


def unknown_variables(names: Mapping[str, str]) -> list[str]:
    """A sentence for each variable that looks like a setting and is none, since it is most likely a typing error.

    Args:
        names: the environment. What its variables hold is not shown.
    """
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    sentences = []
    for name in sorted(names):
        if not name.startswith(PREFIX) or name in known or name in _OTHERS or _is_from_kubernetes(name, names[name]):
            continue
        near = difflib.get_close_matches(name, [*known, _OTHERS[0]], n=1)
        sentences.append(f"{name} is no setting and does nothing" + (f"; is {near[0]} meant?" if near else ""))
    return sentences


def _is_from_kubernetes(name: str, value: str) -> bool:
    return bool(_KUBERNETES.fullmatch(name) or (name == f"{PREFIX}PORT" and _KUBERNETES_PORT.fullmatch(value)))


def _sentence(error: Mapping[str, Any], places: Mapping[str, str]) -> str:
    text = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return text
    name = str(error["loc"][0])
    place = places.get(name, "{}")
    if place.startswith("--"):
        where = place.format(name.replace("_", "-"))
    else:
        where = place.format(name.upper() if place.startswith(PREFIX) else name)
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no such setting; there are {', '.join(Settings.model_fields)}"
    said = f"{where}: {text[:1].lower()}{text[1:]}"
    return said if name in SECRETS else f"{said}, however: {error['input']!r}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} is not TOML: {error}") from None
    return {key.replace("-", "_"): value for key, value in values.items()}
