"""Every setting of the service, once: its name, type, default and meaning.

A value comes from, in this order: a command-line flag, an environment variable ``ENSEMBLED_<NAME>``, a line of the
TOML file that ``--config`` (or ``ENSEMBLED_CONFIG``) names, the default. Flags and their help are made from this class.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app import versions

PREFIX = "ENSEMBLED_"
DEVICE = re.compile(r"cpu|cuda(:[0-9]{1,3})?|auto")
# Seconds; a look at the directory takes some milliseconds.
_LEAST_POLL = 0.1


class SettingsError(Exception):
    """A setting that cannot be used; the text names it and says what would be right."""


class Settings(BaseModel):
    """See the module."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: Path = Field(Path("models"), description="directory of models: NAME/VERSION/manifest.json below it")
    host: str = Field("127.0.0.1", description="address to listen on; another than loopback needs allow-public")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one and logs it")
    allow_public: bool = Field(
        False, description="permit listening on an address that others can reach, although no key guards it"
    )
    versions: str = Field(
        "latest", description='versions that are served: latest, latest:N, all, or 1,3; of one model NAME=..., several '
        'joined by semicolons ("latest:2; digits=1,3")',
    )  # fmt: skip
    poll: float = Field(
        0, ge=0, le=86400, description="seconds between looks for models that are new, changed or gone; 0 for none"
    )
    management: bool = Field(False, description="permit loading and unloading models while serving")
    device: str = Field("cpu", description="cpu, cuda, cuda:1, or auto")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = Field(
        None, description="dtype of the weights (float32, bfloat16, float16, float64); as they were saved by default"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads of one operation; PyTorch's choice by default"
    )
    compile: bool = Field(
        True, description="once a model is ready, compile its calls in the background (needs a C++ compiler)"
    )
    default_model: str | None = Field(
        None, description="model that POST /predict asks; the only one that is loaded by default"
    )
    max_batch: int = Field(64, ge=1, le=65536, description="rows that waiting requests are merged to in one call")
    max_queue: int = Field(4096, ge=1, description="rows that may wait; beyond it requests are answered 429")
    max_delay: float = Field(
        0,
        ge=0,
        le=10,
        description="seconds that requests which do not fill a call wait for others, though the engine is idle",
    )
    default_timeout: float | None = Field(
        None,
        gt=0,
        le=86400,
        description="seconds after which a request that names no deadline is answered 504; none by default",
    )
    engine_timeout: float = Field(
        120, gt=0, le=86400, description="seconds for one call; while it takes longer the service is not alive"
    )
    max_body: int = Field(16 * 2**20, ge=1024, description="bytes of a request's body; beyond it 413")
    max_inflated_body: int = Field(
        64 * 2**20, ge=1024, description="bytes that a compressed body may become; beyond it 413"
    )
    body_timeout: float = Field(
        30, gt=0, le=86400, description="seconds in which a request's body must arrive; beyond them 408"
    )
    shutdown_timeout: float = Field(
        30, gt=0, le=86400, description="seconds that accepted requests get to finish after SIGTERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level that is logged: debug, info, warning or error"
    )
    log_format: Literal["json", "text"] = Field("text", description="text for people, or json: one object a line")

    @field_validator("threads", "dtype", "default_model", "default_timeout", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("versions", mode="before")
    @classmethod
    def _versions_in_a_table(cls, value: Any) -> Any:
        return versions.as_text(value)

    @field_validator("versions")
    @classmethod
    def _known_versions(cls, value: str) -> str:
        versions.parse(value)
        return value

    @field_validator("poll")
    @classmethod
    def _not_all_the_time(cls, value: float) -> float:
        if 0 < value < _LEAST_POLL:
            raise ValueError(f"must be 0, or at least {_LEAST_POLL}")
        return value

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not DEVICE.fullmatch(value):
            raise ValueError("must be cpu, cuda, cuda:N or auto")
        return value

    @model_validator(mode="after")
    def _public_only_on_purpose(self) -> Settings:
        if not self.allow_public and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines and no key guards the service; listen on "
                "127.0.0.1, or say --allow-public (ENSEMBLED_ALLOW_PUBLIC=1) where something in front of it does"
            )
        return self


def load(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Put the settings together.

    Args:
        flags: values that were given on the command line.
        config: the file; else what ENSEMBLED_CONFIG names.

    Raises:
        SettingsError: with one line for each setting that is wrong.
    """
    # Compose files pass variables that are not set as empty text.
    given = {name: value for name, value in os.environ.items() if name.startswith(PREFIX) and value}
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
    return f"{where}: {text[:1].lower()}{text[1:]}, however: {error['input']!r}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} is not TOML: {error}") from None
    return {key.replace("-", "_"): value for key, value in values.items()}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
