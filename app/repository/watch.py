"""Looking at the directory of models again and again: of which of them something may have changed."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from app.repository.entries import Table
from app.repository.scan import RepositoryError, complete, scan, scan_model

log = logging.getLogger("app.repository")


class Watch:
    """What was seen of the directory when it was last looked at.

    Args:
        root: the directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._missed: set[tuple[str, str]] = set()
        self._trouble = ""

    async def look(self, table: Table) -> dict[str, bool]:
        """The models that should follow the directory now, by name: whether the directory still has them.

        A version that is being exchanged is not there for a moment, so what one look misses is gone only if the next
        misses it too. Nothing follows a directory that is empty or cannot be read, as when a disk is gone for a while.
        """
        try:
            found = await asyncio.to_thread(scan, self._root, again=True)
        except RepositoryError as error:
            if str(error) != self._trouble:
                log.warning("what is served stays as it is: %s", error)
            self._trouble = str(error)
            return {}
        self._trouble = ""
        missed = {(e.name, e.version) for e in table.entries.values() if e.version not in found.get(e.name, {})}
        unsure = {name for name, _ in missed - self._missed}
        self._missed = missed
        return {name: name in found for name in dict.fromkeys([*found, *table.names]) if name not in unsure}

    async def versions(self, name: str) -> tuple[dict[str, Path], set[str]]:
        """The versions of a model, and those among them that nobody is still writing.

        Raises:
            RepositoryError: the directory cannot be read.
        """

        def look() -> tuple[dict[str, Path], set[str]]:
            found = scan_model(self._root, name)
            return found, {version for version, path in found.items() if complete(path)}

        return await asyncio.to_thread(look)
