"""Every setting of the service, once: its name, type, default and meaning.

A value comes from, in this order: a command-line flag, an environment variable ``ENSEMBLED_<NAME>``, a line of the
TOML file that ``--config`` (or ``ENSEMBLED_CONFIG``) names, the default. Flags and their help are made from this class.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "ENSEMBLED_"


class SettingsError(Exception):
    """A setting that cannot be used; the text names it and says what would be right."""


class Settings(BaseSettings):
    """See the module."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    models: Path = Field(Path("models"), description="directory of models: NAME/VERSION/manifest.json below it")
    host: str = Field("127.0.0.1", description="address to listen on; another than loopback needs allow-public")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one and logs it")
    allow_public: bool = Field(
        False, description="permit listening on an address that others can reach, although no key guards it"
    )
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?|auto)$", description="cpu, cuda, cuda:1, or auto")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = Field(
        None, description="dtype of the weights; as they were saved by default"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads of one operation; PyTorch's choice by default"
    )
    default_model: str | None = Field(
        None, description="model that POST /predict asks; the only one that is loaded by default"
    )
    max_batch: int = Field(64, ge=1, le=65536, description="rows that waiting requests are merged to in one call")
    max_queue: int = Field(4096, ge=1, description="rows that may wait; beyond it requests are answered 429")
    max_body: int = Field(16 * 2**20, ge=1024, description="bytes of a request's body; beyond it 413")
    shutdown_timeout: float = Field(30, gt=0, description="seconds that accepted requests get to finish after SIGTERM")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    log_format: Literal["json", "text"] = Field("text", description="text for people, or one JSON object a line")

    @field_validator("threads", "dtype", "default_model", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any) -> Any:
        # Compose files pass variables that are not set as empty text.
        return None if value == "" else value

    @model_validator(mode="after")
    def _public_only_on_purpose(self) -> Settings:
        if not self.allow_public and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines and no key guards the service; listen on "
                "127.0.0.1, or say --allow-public (ENSEMBLED_ALLOW_PUBLIC=1) where something in front of it does"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, _File(settings_cls))


class _File(PydanticBaseSettingsSource):
    """The TOML file, if one is named."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        named = os.environ.get(f"{PREFIX}CONFIG")
        return _read_toml(Path(named)) if named else {}


def load(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Put the settings together.

    Args:
        flags: values that were given on the command line.
        config: the file; else what ENSEMBLED_CONFIG names.

    Raises:
        SettingsError: with one line for each setting that is wrong.
    """
    given = dict(flags)
    if config is not None:
        # Between flags and the environment nothing may come, so the file's values yield to both.
        environment = {name for name in Settings.model_fields if f"{PREFIX}{name}".upper() in os.environ}
        given = {k: v for k, v in _read_toml(config).items() if k not in environment} | given
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError("\n".join(_sentence(e) for e in error.errors())) from None


def _sentence(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    text = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"there is no setting {where!r}; there are {', '.join(Settings.model_fields)}"
    return f"{where}: {text}, however: {error['input']!r}" if where else text


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
