"""The models that are served, and how they are loaded, replaced and unloaded while they are.

Whatever becomes of a version happens beside those that answer, and shows in one step: a new model takes its place in
the table once it is loaded, checked and warm. Requests keep the model that they were given, so those under way finish
on the old one, which is gone with the last of them. What fails changes nothing but the reason that is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path

import torch

from app.acceleration import Accelerator
from app.engine import Engine
from app.errors import NotFound, Unavailable
from app.planning import PLAIN, Planning
from app.repository.entries import UNLOADED, Entry, Table
from app.repository.loading import SHUTTING_DOWN, Loader, LoadFailure, Place
from app.repository.scan import RepositoryError, Stamp, scan, scan_model, stamp_of
from app.repository.watch import Watch
from app.served import Served
from app.versions import Policy, parse

log = logging.getLogger("app.repository")

# Seconds in which a version that is being exchanged should be there again.
_EXCHANGE = 0.2


class Repository(Table):
    """The directory of models and what is served of it.

    Args:
        root: the directory.
        engine: the thread that answers, on which the first model is loaded.
        device, dtype: of the weights.
        max_batch: rows in one call.
        default: name of the model that is asked when none is named.
        versions: which versions are served; see :mod:`app.versions`.
        planning: how the fastest way of running each is found.

    Attributes:
        on_ready: called with the name and version of each model that has become ready.
        on_retired: called with each model that has left the table.

    Raises:
        RepositoryError: there is no model to serve.
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
        versions: str = "latest",
        planning: Planning = PLAIN,
    ) -> None:
        super().__init__(default)
        self._root = root
        self._policy: Policy = parse(versions)
        self._loader = Loader(engine, Place(device, dtype, max_batch, planning))
        # Names that somebody unloaded; nothing but a request loads them again.
        self._unloaded: set[str] = set()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._under_way: set[asyncio.Task[None]] = set()
        self._watch = Watch(root)
        self.on_ready: Callable[[str, str], None] = lambda name, version: None
        self.on_retired: Callable[[Served], None] = lambda model: None
        found = scan(root)
        for name, there in found.items():
            chosen = {*self._policy.choose(name, there), *self._policy.listed(name)}
            for version in sorted(chosen, key=int):
                self._add(Entry(name, version, there.get(version, root / name / version)))
        if default is not None and default not in found:
            raise RepositoryError(f"The default model {default!r} is not in {root}; there are {', '.join(found)}.")
        for name in self._policy.own.keys() - found.keys():
            log.warning("the setting versions names a model that is not there", extra={"model": name})

    @property
    def loading_beside(self) -> bool:
        """Whether a model is being loaded on a thread that the process may leave behind."""
        return self._loader.busy

    async def load_all(self) -> None:
        """Load every model; one that fails is not ready and says why, and the others go on."""
        for name in self.names:
            async with self._turns[name]:
                for entry in self.versions(name):
                    if entry.required and entry.state != "READY":
                        # What is ready answers while the others are loaded.
                        beside = any(other.model is not None for other in self.entries.values())
                        await self._bring(name, entry.version, entry.path, beside=beside)

    async def load(self, name: str) -> None:
        """Load what the directory holds of a model: versions that are new, have changed, or are not ready.

        A version whose files are those that it was loaded from stays as it is. Versions that are not to be served any
        more leave once all the others are ready.

        Raises:
            NotFound: the directory has no such model.
            BadRequest: a version cannot be served; what was served before still is.
            Unavailable: the same for a reason that may pass; or the service is shutting down.
        """
        await self._finish(self._load(name))

    async def unload(self, name: str) -> None:
        """Stop serving a model; requests under way are answered. It stays unloaded until somebody loads it.

        Raises:
            NotFound: there is no such model.
            Unavailable: the service is shutting down.
        """
        await self._finish(self._unload(name))

    async def poll(self) -> None:
        """Take up what has changed in the directory. What fails is logged, and not tried again until it changes."""
        with contextlib.suppress(Unavailable):
            await self._finish(self._poll())

    async def accelerate(self, name: str, version: str, accelerator: Accelerator) -> None:
        """Make a ready model faster beside the engine."""
        key = name, version
        if key not in self.entries or (model := self.entries[key].model) is None:
            return
        served = weakref.ref(model)

        def wanted() -> bool:
            return not self.draining and (still := served()) is not None and self.is_served(still)

        self._change(key, compiling=True)
        try:
            await accelerator.accelerate(model, wanted)
        finally:
            if self.is_served(model):
                self._change(key, compiling=False)

    def drain(self) -> None:
        """Be ready no more, and take no more requests. Safe in a signal handler."""
        self.draining = True

    def stop(self) -> None:
        """As :meth:`drain`, and leave what is being loaded."""
        self.drain()
        self._loader.stop()
        for task in self._under_way:
            task.cancel()

    async def _finish(self, work: Coroutine[None, None, None]) -> None:
        """Do something to the end, even if whoever asked for it does not wait; only the service's end ends it."""
        if self.draining:
            work.close()
            raise Unavailable(SHUTTING_DOWN)
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._finished)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if self.draining:
                raise Unavailable(SHUTTING_DOWN) from None
            raise

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            # Whoever waited was told; if nobody did, it was logged.
            task.exception()

    async def _load(self, name: str) -> None:
        if name not in self.names and not await self._found(name):
            raise NotFound(f"there is no model {name[:64]!r} in the directory of models")
        async with self._turns[name]:
            found = await self._found(name)
            if any(version not in found for version in self.served(name)):
                # A version that is being exchanged is not there for a moment.
                await asyncio.sleep(_EXCHANGE)
                found = await self._found(name)
            chosen = self._policy.choose(name, found)
            if not chosen:
                there = f"; of it there are versions {', '.join(found)}, which are not to be served" if found else ""
                raise NotFound(f"there is no model {name!r} in the directory of models{there}")
            self._unloaded.discard(name)
            failures = await self._renew(name, {version: found[version] for version in chosen})
        if failures:
            still = self.served(name)
            rest = f"; version {', '.join(still)} goes on answering" if still else ""
            what = ", ".join(f"version {version} cannot be served: {f.reason}" for version, f in failures.items())
            kind = next(iter(failures.values())).kind
            raise kind(f"model {name!r} {what}{rest}")

    async def _found(self, name: str) -> dict[str, Path]:
        try:
            return await asyncio.to_thread(scan_model, self._root, name)
        except RepositoryError as error:
            log.error("%s", error)
            raise Unavailable("the directory of models cannot be read; the log explains it") from None

    async def _unload(self, name: str) -> None:
        if name not in self.names:
            raise NotFound(f"unknown model {name[:64]!r}; there are {', '.join(self.names) or 'none'}")
        async with self._turns[name]:
            self._unloaded.add(name)
            for entry in self.versions(name):
                self._change(
                    (name, entry.version),
                    state="UNAVAILABLE",
                    reason=UNLOADED,
                    model=None,
                    compiling=False,
                    required=False,
                    stamp=None,
                )
                self._retire(entry)
        log.info("unloaded", extra={"model": name})

    async def _poll(self) -> None:
        for name, there in (await self._watch.look(self)).items():
            async with self._turns[name]:
                if name in self._unloaded and there:
                    continue
                found, whole = await self._watch.versions(name) if there else ({}, set())
                chosen = self._policy.choose(name, found)
                if not (complete := whole.issuperset(chosen)):
                    # What is not whole is waited for, and what is served stays until it is.
                    usable = {version: path for version, path in found.items() if version in whole}
                    kept = self.served(name) or self._policy.choose(name, usable)
                    chosen = [version for version in usable if version in chosen or version in kept]
                if chosen or not there:
                    await self._renew(name, {v: found[v] for v in chosen}, again=False, keep=not complete)
                    self._unloaded.discard(name)

    async def _renew(
        self, name: str, chosen: Mapping[str, Path], *, again: bool = True, keep: bool = False
    ) -> dict[str, LoadFailure]:
        """Make the versions of a model that are served these.

        Args:
            name: of the model; its turn is held.
            chosen: the versions, and their directories.
            again: try again what failed before, although its files are the same.
            keep: leave all others that are served.

        Returns:
            What failed, by version.
        """
        failures: dict[str, LoadFailure] = {}
        for version, path in chosen.items():
            stamp = await asyncio.to_thread(stamp_of, path)
            if self._is_up_to_date((name, version), stamp, again):
                continue
            if failure := await self._bring(name, version, path, beside=True):
                failures[version] = failure
        old = [] if keep else [entry for entry in self.versions(name) if entry.version not in chosen]
        # What is to take the place of others has to be there first.
        if old and set(chosen) <= set(self.served(name)):
            self._drop(old)
            for entry in old:
                log.info("not served any more", extra={"model": name, "version": entry.version})
                self._retire(entry)
        return failures

    def _is_up_to_date(self, key: tuple[str, str], stamp: Stamp, again: bool) -> bool:
        entry = self.entries.get(key)
        if entry is None:
            return False
        if entry.model is not None and entry.stamp == stamp:
            # What failed to replace it may have been taken away again.
            self._change(key, reason="", tried=stamp)
            return True
        return not again and entry.tried == stamp

    async def _bring(self, name: str, version: str, path: Path, *, beside: bool) -> LoadFailure | None:
        """Load a version; of one that is there already, the old model answers until then, and after a failure."""
        key = name, version
        if key not in self.entries:
            # The service was ready without it.
            self._add(Entry(name, version, path, required=False))
        if self.entries[key].model is None:
            doing = ""
            self._change(key, path=path, state="LOADING", reason="loading")
        else:
            doing = "being replaced: "
            self._change(key, path=path, reason=f"{doing}loading")
        tried = await asyncio.to_thread(stamp_of, path)
        try:
            loaded = await self._loader.load(
                name, version, path, beside=beside, tell=lambda text: self._change(key, reason=doing + text)
            )
        except LoadFailure as failure:
            self._failed(key, failure.reason, tried)
            return failure
        except asyncio.CancelledError:
            self._failed(key, SHUTTING_DOWN, None)
            raise
        old = self.entries[key]
        self._change(
            key,
            state="READY",
            reason="",
            model=loaded.model,
            compiling=False,
            required=True,
            stamp=loaded.stamp,
            tried=loaded.stamp,
        )
        self._retire(old)
        self.on_ready(name, version)
        return None

    def _retire(self, entry: Entry) -> None:
        if entry.model is not None:
            self.on_retired(entry.model)

    def _failed(self, key: tuple[str, str], reason: str, tried: Stamp | None) -> None:
        if self.entries[key].model is None:
            self._change(key, state="UNAVAILABLE", reason=reason, tried=tried)
        else:
            self._change(key, reason=f"its replacement cannot be served: {reason}", tried=tried)
