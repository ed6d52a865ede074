"""``ensembled serve``: flags made from the settings, and the server."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from app import logs
from app.keys import KeyFileError, keys_of
from app.settings import PREFIX, SECRETS, Settings, SettingsError, load, unknown_variables

DESCRIPTION = """\
Serve every model below a directory (NAME/VERSION/manifest.json) over HTTP: a plain API at /predict and the Open
Inference Protocol (V2) at /v2. Documentation with working examples is at /docs, metrics at /metrics. SIGTERM and
Ctrl-C finish what was accepted. A key (ENSEMBLED_API_KEY, or --api-keys-file) guards all of it but health."""

EPILOG = """\
Each setting may also come from the environment variable in brackets, or from a TOML file (--config FILE or
ENSEMBLED_CONFIG) with lines such as max-batch = 32. A flag wins over the environment, which wins over the file. The
one key of ENSEMBLED_API_KEY has no flag, since other users of the machine may read the command line.

examples:
  ensembled serve --models models
  ENSEMBLED_PORT=9000 ensembled serve --models models --device auto"""


_METAVARS = {
    "models": "DIR",
    "cache_dir": "DIR",
    "precision": "DTYPE",
    "host": "ADDRESS",
    "device": "DEVICE",
    "dtype": "DTYPE",
    "default_model": "NAME",
    "api_keys_file": "FILE",
    "versions": "VERSIONS",
    "poll": "SECONDS",
    "management_host": "ADDRESS",
    "metrics_host": "ADDRESS",
    "head_timeout": "SECONDS",
    "idle_timeout": "SECONDS",
    "answer_timeout": "SECONDS",
    "max_queue": "ROWS",
    "max_batch": "ROWS",
    "max_delay": "SECONDS",
    "default_timeout": "SECONDS",
    "engine_timeout": "SECONDS",
    "max_body": "BYTES",
    "max_bodies": "BYTES",
    "max_inflated_body": "BYTES",
    "allowed_hosts": "HOSTS",
    "max_perturbed_bytes": "BYTES",
    "perturbation_cache": "BYTES",
    "max_weights": "BYTES",
    "adaptation_memory": "BYTES",
    "adaptation_seconds": "SECONDS",
    "adapted_memory": "BYTES",
    "adapted_seconds": "SECONDS",
    "body_timeout": "SECONDS",
    "shutdown_timeout": "SECONDS",
    "log_level": "LEVEL",
    "log_format": "FORMAT",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each setting."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings")
    for name, field in Settings.model_fields.items():
        if name in SECRETS:
            continue
        flag = f"--{name.replace('_', '-')}"
        default = "" if field.default in (None, PydanticUndefined) else f"; default: {field.default}"
        text = f"{field.description} [{PREFIX}{name.upper()}{default}]".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(flag, metavar=_METAVARS.get(name, "N"), help=text)


def main(args: argparse.Namespace) -> int:
    """Serve; 2 if the settings cannot be used."""
    flags: dict[str, Any] = {n: v for n in Settings.model_fields if (v := getattr(args, n, None)) is not None}
    try:
        settings = load(flags, args.config)
        keys_of(settings)
    except (SettingsError, KeyFileError) as error:
        print(f"ensembled serve: {error}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level, settings.log_format)
    for sentence in unknown_variables(os.environ):
        logging.getLogger("app.settings").warning(sentence)
    for name in SECRETS:
        # The compilers that PyTorch starts have no need of it.
        os.environ.pop(f"{PREFIX}{name.upper()}", None)
    # PyTorch is imported here, once the settings are known to be good.
    from app.engine import DeviceError
    from app.repository import RepositoryError
    from app.server import serve
    from app.tracing import TracingError

    try:
        serve(settings)
    except (RepositoryError, DeviceError, TracingError) as error:
        print(f"ensembled serve: {error}", file=sys.stderr)
        return 2
    except SystemExit:
        # uvicorn's way to say that it could not listen; the reason is in the log.
        return 2
    return 0
