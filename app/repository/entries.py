"""The table of models: which versions there are, in which state, and which one answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from app.errors import NotFound, Unavailable
from app.repository.scan import Stamp
from app.served import Served

State = Literal["UNAVAILABLE", "LOADING", "READY"]
# Why a model is not ready, in the word that Triton uses.
UNLOADED = "unloaded"
_DRAINING = "the service is shutting down; ask another instance"


@dataclass(frozen=True)
class Entry:
    """One version of one model.

    Attributes:
        name, version: of the model.
        path: its directory.
        state: of the protocol's repository index.
        reason: why it is not ready; of one that is, how far its replacement has come, or why there is none.
        model: what answers, once it is ready.
        compiling: whether its calls are still being compiled.
        required: whether the service is ready only with it.
        stamp: of the files that the model was loaded from.
        tried: of the files that were loaded last, whether that went well or not; None before the first time.
    """

    name: str
    version: str
    path: Path
    state: State = "UNAVAILABLE"
    reason: str = "not loaded yet"
    model: Served | None = None
    compiling: bool = False
    required: bool = True
    stamp: Stamp | None = None
    tried: Stamp | None = None

    @property
    def coming(self) -> bool:
        """Whether it is about to be ready, so that it is worth asking again."""
        return self.state == "LOADING" or (self.required and self.state == "UNAVAILABLE" and self.tried is None)


class Table:
    """Versions of models by name and version; read by everyone, changed on the event loop's thread only.

    Args:
        default: name of the model that is asked when none is named; the only one that is loaded by default.

    Attributes:
        entries: by (name, version), in the order of names and of versions.
        draining: whether the service is shutting down, so that nothing is ready any more.
    """

    def __init__(self, default: str | None = None) -> None:
        self.entries: dict[tuple[str, str], Entry] = {}
        self.draining = False
        self._default = default
        # The latest version of each name that can answer, which most requests ask for.
        self._latest: dict[str, Served] = {}

    @property
    def names(self) -> list[str]:
        """Names of all models, loaded or not."""
        return list(dict.fromkeys(name for name, _ in self.entries))

    def versions(self, name: str) -> list[Entry]:
        """Every version of a model, ascending; none of a model that is unknown."""
        return [entry for entry in self.entries.values() if entry.name == name]

    def served(self, name: str) -> list[str]:
        """The versions of a model that can answer, ascending."""
        return [entry.version for entry in self.versions(name) if entry.model is not None]

    @property
    def default(self) -> str | None:
        """Name of the model that is asked when none is named; None if there is none."""
        usable = [e.name for e in self.entries.values() if e.model is not None or e.state == "LOADING"]
        only = list(dict.fromkeys(usable)) or self.names
        return self._default or (only[0] if len(only) == 1 else None)

    @property
    def ready(self) -> bool:
        """Whether every model that should be is loaded, checked and warm, and the service is not shutting down."""
        return not self.draining and not self.waiting

    @property
    def waiting(self) -> dict[str, str]:
        """What the service is not ready for: {name, with the version if several are missing: reason}."""
        missing = [e for e in self.entries.values() if e.required and e.state != "READY"]
        names = [entry.name for entry in missing]
        return {e.name if names.count(e.name) == 1 else f"{e.name}/{e.version}": e.reason for e in missing}

    def entry(self, name: str | None = None, version: str | None = None) -> Entry:
        """A version of a model.

        Args:
            name: the default model if it is not given.
            version: the latest that is ready if it is not given; if none is, one that says why.

        Raises:
            NotFound: there is none.
        """
        if name is None:
            name = self.default
            if name is None:
                raise NotFound(
                    f"there is no default model among {_listing(self.names)}; ask POST /v1/models/NAME/predict, or "
                    "start the service with --default-model"
                )
        versions = self.versions(name)
        if not versions:
            raise NotFound(f"unknown model {name[:64]!r}; there are {_listing(self.names)}")
        if version is not None:
            found = self.entries.get((name, version))
            if found is None:
                raise NotFound(
                    f"model {name!r} has no version {version[:20]!r}; it has {_listing(e.version for e in versions)}"
                )
            return found
        # Of equals the first, which is the latest.
        return max(reversed(versions), key=lambda entry: (entry.model is not None, entry.state == "LOADING"))

    def ready_model(self, name: str | None = None, version: str | None = None) -> Served:
        """As :meth:`entry`, if it can answer.

        Raises:
            NotFound: there is none.
            Unavailable: it is loading, was unloaded, or could not be loaded; or the service is shutting down.
        """
        if self.draining:
            raise Unavailable(_DRAINING)
        if version is None and name in self._latest:
            return self._latest[name]
        entry = self.entry(name, version)
        if entry.model is None:
            which = f"model {entry.name!r}" + (f" version {version}" if version is not None else "")
            raise Unavailable(
                f"{which} is not ready: {entry.reason}", headers={"Retry-After": "1"} if entry.coming else None
            )
        return entry.model

    def is_served(self, model: Served) -> bool:
        """Whether requests still reach a model, which it does not outlive."""
        entry = self.entries.get((model.name, model.version))
        return entry is not None and entry.model is model

    def _add(self, entry: Entry) -> None:
        self.entries[entry.name, entry.version] = entry
        # A new table, since a thread may be going through the old one.
        self.entries = dict(sorted(self.entries.items(), key=lambda item: (item[0][0], int(item[0][1]))))
        self._find_latest()

    def _drop(self, entries: Iterable[Entry]) -> None:
        gone = {(entry.name, entry.version) for entry in entries}
        self.entries = {key: entry for key, entry in self.entries.items() if key not in gone}
        self._find_latest()

    def _change(self, key: tuple[str, str], **changes: object) -> None:
        # Names of fields cannot be typed as keyword arguments.
        self.entries[key] = replace(self.entries[key], **changes)  # type: ignore[arg-type]  # fields by name
        if "model" in changes:
            self._find_latest()

    def _find_latest(self) -> None:
        # In the order of versions, so the last one stays.
        self._latest = {e.name: e.model for e in self.entries.values() if e.model is not None}


def _listing(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
