"""The directory of models: which are there, and which are loaded.

``ROOT/NAME/VERSION/manifest.json`` is a model; of each name the highest version is served. Names and versions are
limited to what can be a path component and nothing else, and links that lead out of the directory are not followed.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from app import served
from app.acceleration import Accelerator
from app.engine import Engine
from app.errors import NotFound, Unavailable
from app.served import Served
from ensemble import EnsembledError

log = logging.getLogger("app.repository")

# Seconds between lines in the log that tell how far loading has come.
_TELL_EVERY = 3

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")
State = Literal["UNAVAILABLE", "LOADING", "READY"]


class RepositoryError(Exception):
    """The directory cannot be served; the text says what to do."""


class _Stopped(Exception):  # noqa: N818 - no error, but the way out of a load
    """The service ends while a model is being loaded."""


@dataclass(frozen=True)
class Entry:
    """One version of one model.

    Attributes:
        name, version: of the model.
        path: its directory.
        state: of the protocol's repository index.
        reason: why it is not ready.
        model: what answers, once it is ready.
        compiling: whether its calls are still being compiled.
    """

    name: str
    version: str
    path: Path
    state: State = "UNAVAILABLE"
    reason: str = "not loaded yet"
    model: Served | None = None
    compiling: bool = False


def scan(root: Path) -> dict[str, dict[str, Path]]:
    """Every model below a directory: {name: {version: its directory}}, versions ascending.

    Raises:
        RepositoryError: there is no such directory, no model in it, or it cannot be read.
    """
    try:
        return _scan(root)
    except OSError as error:
        raise RepositoryError(f"The models in {root} cannot be read: {error.strerror}: {error.filename}.") from error


def _scan(root: Path) -> dict[str, dict[str, Path]]:
    if not root.is_dir():
        raise RepositoryError(
            f"There is no directory {root}. Make a model first (ensembled build ... {root}/NAME/1, or make serve in "
            "the source tree), or point --models elsewhere."
        )
    whole = root.resolve()
    found: dict[str, dict[str, Path]] = {}
    for directory in sorted(root.iterdir()):
        if not NAME.fullmatch(directory.name) or not directory.is_dir():
            continue
        versions = [v for v in directory.iterdir() if VERSION.fullmatch(v.name) and (v / "manifest.json").is_file()]
        for version in sorted(versions, key=lambda v: int(v.name)):
            if version.resolve().is_relative_to(whole):
                found.setdefault(directory.name, {})[version.name] = version
            else:
                log.warning("left out, since it is a link out of the directory of models", extra={"path": str(version)})
    if not found:
        raise RepositoryError(
            f"{root} holds no model. A model is a directory NAME/VERSION with a manifest.json, such as "
            f"{root}/digits/1; ensembled build makes one."
        )
    return found


class Repository:
    """The models that are served.

    Args:
        root: the directory.
        engine: the thread on which models are loaded.
        device, dtype: of the weights.
        max_batch: rows in one call.
        default: name of the model that is asked when none is named.
    """

    def __init__(
        self,
        root: Path,
        engine: Engine,
        *,
        device: torch.device,
        dtype: torch.dtype | None = None,
        max_batch: int = 64,
        default: str | None = None,
    ) -> None:
        self._engine = engine
        self._device = device
        self._dtype = dtype
        self._max_batch = max_batch
        self.entries: dict[str, Entry] = {}
        for name, versions in scan(root).items():
            version, path = list(versions.items())[-1]
            self.entries[name] = Entry(name, version, path)
        if default is not None and default not in self.entries:
            raise RepositoryError(f"The default model {default!r} is not in {root}; there are {', '.join(self.names)}.")
        self._default = default
        self._stopped = False
        self.on_change: Callable[[], None] = lambda: None

    @property
    def names(self) -> list[str]:
        """Names of all models, loaded or not."""
        return list(self.entries)

    @property
    def default(self) -> str | None:
        """Name of the model that is asked when none is named; None if there is none."""
        usable = [entry.name for entry in self.entries.values() if entry.model is not None or entry.state == "LOADING"]
        only = usable if usable else self.names
        return self._default or (only[0] if len(only) == 1 else None)

    @property
    def ready(self) -> bool:
        """Whether every model is loaded, checked and warm."""
        return all(entry.state == "READY" for entry in self.entries.values())

    async def load_all(self) -> None:
        """Load every model; one that fails is not ready and says why, and the others go on."""
        for name in self.names:
            await self._load(name)

    async def accelerate_all(self, accelerator: Accelerator) -> None:
        """Make every ready model faster beside the engine, one after the other."""
        ready = [(entry.name, entry.model) for entry in self.entries.values() if entry.model is not None]
        for name, _ in ready:
            self._change(name, compiling=True)
        for name, model in ready:
            try:
                await accelerator.accelerate(model, lambda: True)
            finally:
                self._change(name, compiling=False)

    def stop_loading(self) -> None:
        """Leave what is being loaded at its next step."""
        self._stopped = True

    async def _load(self, name: str) -> None:
        entry = self._change(name, state="LOADING", reason="loading")
        about = {"model": entry.name, "version": entry.version}
        begun = time.perf_counter()

        told = begun

        def progress(doing: str, part: float) -> None:
            nonlocal told
            if self._stopped:
                raise _Stopped
            self._change(name, reason=f"{doing} ({part:.0%})")
            if time.perf_counter() - told > _TELL_EVERY:
                told = time.perf_counter()
                log.info("loading: %s (%d %%)", doing, round(100 * part), extra=about)

        def work() -> Served:
            progress("reading", 0.0)
            return served.load(
                entry.name,
                entry.version,
                entry.path,
                device=self._device,
                dtype=self._dtype,
                max_batch=self._max_batch,
                progress=progress,
            )

        try:
            model = await self._engine.run(work)
        except _Stopped:
            self._change(name, state="UNAVAILABLE", reason="the service is shutting down")
        except EnsembledError as error:
            # The reason is public, and where the models are is not.
            public = str(error).replace(str(entry.path), f"{entry.name}/{entry.version}")
            self._change(name, state="UNAVAILABLE", reason=public)
            log.error("model cannot be served: %s", error, extra=about)
        except Exception as error:
            self._change(name, state="UNAVAILABLE", reason="an unexpected error; the log explains it")
            log.exception("model cannot be served: %s", type(error).__name__, extra=about)
        else:
            self._change(name, state="READY", reason="", model=model)
            log.info(
                "model ready: %d members on %s, differs from the loop by %.1e",
                len(model.ensemble),
                model.ensemble.device,
                model.error,
                extra={**about, "seconds": round(time.perf_counter() - begun, 2)},
            )

    def _change(self, name: str, **changes: object) -> Entry:
        # Names of fields cannot be typed as keyword arguments.
        self.entries[name] = replace(self.entries[name], **changes)  # type: ignore[arg-type]
        self.on_change()
        return self.entries[name]

    def entry(self, name: str | None = None, version: str | None = None) -> Entry:
        """A model by name and version; the default model, and the version served, when they are not given.

        Raises:
            NotFound: there is none.
        """
        if name is None:
            name = self.default
            if name is None:
                raise NotFound(
                    f"there is no default model among {', '.join(self.names)}; ask POST /v1/models/NAME/predict, or "
                    "start the service with --default-model"
                )
        entry = self.entries.get(name)
        if entry is None:
            raise NotFound(f"unknown model {name[:64]!r}; there are {', '.join(self.names)}")
        if version is not None and version != entry.version:
            raise NotFound(f"model {name!r} has no version {version[:20]!r}; it has {entry.version}")
        return entry

    def ready_model(self, name: str | None = None, version: str | None = None) -> Served:
        """As :meth:`entry`, if it can answer.

        Raises:
            NotFound: there is none.
            Unavailable: it is loading, or could not be loaded.
        """
        entry = self.entry(name, version)
        if entry.model is None:
            raise Unavailable(f"model {entry.name!r} is not ready: {entry.reason}", headers={"Retry-After": "1"})
        return entry.model
