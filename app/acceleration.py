"""What makes a ready model faster while it answers: its calls are compiled in a process beside, one model at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from app.background import Background
from app.engine import Engine
from app.planning import Planning, steps_for
from app.served import Served
from ensemble import EnsembledError
from ensemble.planning.optimize import Course

log = logging.getLogger("app.acceleration")

# Seconds after which nothing further is compiled for a model.
_LONGEST = 600.0


class Accelerator:
    """Compiles the calls of models that are being served.

    Args:
        engine: the thread on which what was compiled is checked and put to use.
        planning: what may be compiled, and where.
        bound: seconds in which what was compiled must have been tried on the engine.
    """

    def __init__(self, engine: Engine, planning: Planning, bound: float | None = None) -> None:
        self._engine = engine
        self._bound = bound
        self._planning = planning
        self._background = Background()

    @property
    def busy(self) -> bool:
        """Whether a call is being compiled, on a thread that the process may leave behind."""
        return self._background.busy

    def close(self) -> None:
        """End the process that compiles."""
        if self._planning.workshop is not None:
            self._planning.workshop.close()

    async def accelerate(self, model: Served, wanted: Callable[[], bool]) -> None:
        """Compile calls of a model, and use those that are faster than what there is. Failures are logged.

        Args:
            model: one that is ready.
            wanted: asked before each call whether the model is still served.
        """
        if model.plan_complete or self._planning.workshop is None:
            return
        try:
            await self._accelerate(model, wanted)
        except Exception as error:
            log.exception("calls are run as they are: %s", type(error).__name__, extra=_about(model))
        finally:
            # It holds a few hundred megabytes, and the next model may be long in coming.
            await self._background.run(self.close)

    async def _accelerate(self, model: Served, wanted: Callable[[], bool]) -> None:
        made, planning, workshop, about = model.ensemble, self._planning, self._planning.workshop, _about(model)
        assert workshop is not None
        begun, course = time.perf_counter(), Course(made.missing_backends())
        for kind, reason in course.failed.items():
            log.info("%s is not used: %s", kind, reason, extra=about)
        for step in steps_for(made, planning):
            if not wanted():
                return
            if not course.wants(step):
                continue
            if time.perf_counter() - begun > _LONGEST:
                log.warning("nothing more is compiled, since it takes so long", extra=about)
                course.late(step)
                break
            started = time.perf_counter()
            try:
                compiled = await self._background.run(made.compile, step, workshop)
                used = await self._engine.run(made.adopt, compiled, bound=self._bound)
            except EnsembledError as error:
                if not wanted():
                    # The process that compiles was ended.
                    return
                course.fail(step, error)
                log.warning("%s compiles nothing more: %s", step.family, error, extra=about)
                continue
            took = round(time.perf_counter() - started, 1)
            assert made.plan is not None
            said = str(made.plan.way(step.rows)) if used else f"no gain from {step}"
            log.info("%s", said, extra={**about, "seconds": took})
        await self._engine.run(made.note_failures, course.failed)
        if course.complete:
            await self._background.run(made.remember, model.plan_sizes, workshop, planning.precision)


def _about(model: Served) -> dict[str, str]:
    return {"model": model.name, "version": model.version}
