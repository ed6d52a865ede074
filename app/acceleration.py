"""What makes a ready model faster while it answers: its calls are compiled beside the engine, one model at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from app.background import Background
from app.engine import Engine
from app.served import Served
from ensemble import EnsembledError

log = logging.getLogger("app.acceleration")

# Seconds; a call that takes longer to compile is the last one of its model.
_LONGEST_COMPILE = 120


class Accelerator:
    """Compiles the calls of models that are being served.

    Args:
        engine: the thread on which what was compiled is checked and put to use.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._background = Background()

    @property
    def busy(self) -> bool:
        """Whether a compiler is running, on a thread that the process may leave behind."""
        return self._background.busy

    async def accelerate(self, model: Served, wanted: Callable[[], bool]) -> None:
        """Compile calls of a model, and use those that are faster than what there is. Failures are logged.

        Args:
            model: one that is ready.
            wanted: asked before each call whether the model is still served.
        """
        about = {"model": model.name, "version": model.version}
        for rows in sizes_to_compile(model):
            if not wanted():
                return
            begun = time.perf_counter()
            try:
                compiled = await self._background.run(model.ensemble.compile, rows)
                used = await self._engine.run(model.ensemble.adopt, compiled)
            except EnsembledError as error:
                log.warning("calls are run as they are, not compiled: %s", error, extra=about)
                return
            except Exception as error:
                log.exception("calls are run as they are: %s", type(error).__name__, extra=about)
                return
            took = round(time.perf_counter() - begun, 1)
            assert model.ensemble.plan is not None
            said = model.ensemble.plan.way(rows)
            log.info("%s%s", "" if used else "compiling brought nothing for ", said, extra={**about, "seconds": took})
            if took > _LONGEST_COMPILE:
                log.warning("no more calls are compiled, since it takes so long", extra=about)
                return


def sizes_to_compile(served: Served) -> list[int]:
    """Batch sizes for which a call is worth compiling: one row, the largest batch, and some between."""
    planned = [way.rows for way in served.ensemble.plan.ways] if served.ensemble.plan else []
    chosen = [rows for rows in planned if rows.bit_length() % 2 == 1 or rows == planned[-1]]
    # What waits while the engine is busy is merged to large batches; a single request finds it idle.
    return sorted(chosen, key=lambda rows: (rows not in (planned[0], planned[-1]), rows))
