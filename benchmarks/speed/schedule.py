"""The order of a run: models, numbers of members, batches, and in each cell all ways in turns, within a budget."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import Limits, free_memory, limits, version
from benchmarks.speed import budget, reference
from benchmarks.speed.budget import LOOP
from benchmarks.speed.counting import Count, Facts, Size, facts_of
from benchmarks.speed.fitting import calling, holding, shifts, unfit
from benchmarks.speed.results import Bound, Record, Results
from benchmarks.speed.running import WAYS, Prepared, Running
from benchmarks.speed.worker import LostError, RefusedError, Worker, isolated

NO_TIME = "no time left"
ROUNDS = 5
# Share of the free memory that may be used.
_USED = 0.85


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and for how long.

    Args:
        models, members, batches, ways: what, in order.
        minutes: about how long all may take.
        seconds: of timing for each way in a cell.
        planning: seconds that this library may take for its plan, for each batch size.
        patience: seconds after which a way that is still preparing or running is given up.
        verbose: leave what workers print.
    """

    models: Sequence[str]
    members: Sequence[int]
    batches: Sequence[int]
    ways: Sequence[str]
    minutes: float
    seconds: float
    planning: float
    patience: float
    verbose: bool = False


Say = Callable[[str], None]


class Schedule:
    """One run.

    Args:
        settings: what.
        results: where records go.
        folder: an empty one, for references.
        say: takes progress.
        finished: called after each model, with its key.
    """

    def __init__(
        self, settings: Settings, results: Results, folder: Path, say: Say, finished: Callable[[str], None]
    ) -> None:
        self.settings, self.results, self.folder, self.say, self.finished = settings, results, folder, say, finished
        self.deadline = time.monotonic() + 60 * settings.minutes
        self.limits: Limits | None = None
        # The model that is being measured.
        self.current: str | None = None
        self.installed = [way for way in settings.ways if (package := WAYS[way].package) is None or version(package)]

    def run(self) -> None:
        groups = len(self.settings.models) * len(self.settings.members)
        for model in self.settings.models:
            # What a model leaves of its share goes to those that follow.
            share = len(self.settings.members) * (self.deadline - time.monotonic()) / groups
            groups -= len(self.settings.members)
            self.current = model
            self.model(model, time.monotonic() + share)
            self.finished(model)
            self.current = None

    def model(self, model: str, deadline: float) -> None:
        """All cells of one model."""
        recipes = sorted({WAYS[way].recipe for way in self.settings.ways})
        try:
            facts: Facts = self._isolated(facts_of, model, recipes, self.settings.batches)
            self.results.names[model] = facts.name
            self.say(f"{facts.name}: the machine's limits")
            self._measure_limits()
            for recipe, counts in facts.counts.items():
                self._bounds(model, recipe, counts)
            for recipe in recipes:
                self.say(f"  the loop over {recipe} members, for reference")
                path = self._reference(model, recipe)
                seconds = max(5.0, min(40.0, (deadline - time.monotonic()) / 20))
                most = max(self.settings.members)
                self._isolated(reference.write, model, recipe, most, self.settings.batches, path, seconds)
        except RefusedError as error:
            self.results.missing[model] = str(error)
            self.say(f"{model}: {error}")
            return
        efforts = {members: self._effort(members, facts.size) for members in self.settings.members}
        for members in self.settings.members:
            # What one leaves of its share goes to those that follow.
            share = efforts[members] / sum(efforts.values()) if efforts[members] else 0.0
            del efforts[members]
            self.group(model, members, facts.size, _share(deadline, share))
        # Other work on the machine may have been in the way of one measurement, and so of none for the whole model.
        with contextlib.suppress(RefusedError):
            self._measure_limits()

    def _effort(self, members: int, size: Size) -> float:
        groups, _ = self._groups(members, size)
        settings = self.settings
        return budget.effort(groups, len(settings.batches), settings.seconds, settings.planning)

    def _groups(self, members: int, size: Size) -> tuple[list[list[str]], dict[str, str]]:
        needs = {way: holding(way, size, members) for way in budget.order(self.installed)}
        return shifts(needs, int(_USED * free_memory()), LOOP)

    def group(self, model: str, members: int, size: Size, deadline: float) -> None:
        """All cells of one model and number of members."""
        for way in self.settings.ways:
            if way not in self.installed:
                self._reason(model, members, self.settings.batches, way, "not installed")
        groups, reasons = self._groups(members, size)
        for way, reason in reasons.items():
            self._reason(model, members, self.settings.batches, way, reason)
        for number, ways in enumerate(groups):
            measured = {LOOP} if any(LOOP in earlier for earlier in groups[:number]) else set()
            ways = budget.order(ways, measured)
            end = budget.end(ways, len(groups) - 1 - number, time.monotonic(), deadline)
            with contextlib.ExitStack() as stack:
                self._shift(model, members, ways, size, end, stack)

    def _shift(
        self,
        model: str,
        members: int,
        ways: Sequence[str],
        size: Size,
        deadline: float,
        stack: contextlib.ExitStack,
    ) -> None:
        workers: dict[str, Worker] = {}
        starting = _share(deadline, budget.STARTING)
        for number, way in enumerate(ways):
            if time.monotonic() > starting:
                self.say(f"  {members} members, {WAYS[way].title}: {NO_TIME}")
                self._reason(model, members, self.settings.batches, way, NO_TIME)
                continue
            path = self._reference(model, WAYS[way].recipe)
            planning = budget.planning(
                self.settings.planning, ways[number:], len(self.settings.batches), starting - time.monotonic()
            )
            arguments = (model, way, members, self.settings.batches, path, planning)
            worker = Worker(Running, *arguments, verbose=self.settings.verbose, environment=WAYS[way].environment)
            stack.enter_context(worker)
            try:
                took = self._ask(worker, "start", deadline=starting)
                workers[way] = worker
                self.say(f"  {members} members, {WAYS[way].title}: held after {took:.1f} s")
            except RefusedError as error:
                self.say(f"  {members} members, {WAYS[way].title}: {error}")
                self._reason(model, members, self.settings.batches, way, str(error))
        for number, rows in enumerate(self.settings.batches):
            end = budget.cell(ways, len(self.settings.batches) - 1 - number, time.monotonic(), deadline)
            ready = self._prepare(model, members, rows, workers, size, end)
            times, lost = self._time(rows, {way: workers[way] for way in ready})
            self._keep(model, members, rows, ready, times, lost)
            for way, reason in lost.items():
                self._give_up(model, members, rows, way, reason, workers)

    def _prepare(
        self, model: str, members: int, rows: int, workers: dict[str, Worker], size: Size, deadline: float
    ) -> dict[str, Prepared]:
        ready = {}
        preparing = _share(deadline, budget.PREPARING)
        for way, worker in list(workers.items()):
            if time.monotonic() > preparing:
                self._reason(model, members, [rows], way, NO_TIME)
                continue
            activations = calling(way, size, members, rows)
            if activations > _USED * free_memory():
                self._reason(model, members, [rows], way, unfit(holding(way, size, members) + activations))
                continue
            try:
                ready[way] = self._ask(worker, "prepare", rows, deadline=deadline)
                self.say(f"  {members} × {rows}, {WAYS[way].title}: prepared in {ready[way].seconds:.1f} s")
            except LostError as error:
                self._give_up(model, members, rows, way, str(error), workers)
            except RefusedError as error:
                self.say(f"  {members} × {rows}, {WAYS[way].title}: {error}")
                self._reason(model, members, [rows], way, str(error))
        return ready

    def _give_up(self, model: str, members: int, rows: int, way: str, reason: str, workers: dict[str, Worker]) -> None:
        """Of a way whose worker is gone: what took too long for this batch would for a larger one."""
        workers.pop(way).close()
        self.say(f"  {members} × {rows}, {WAYS[way].title}: {reason}")
        self._reason(model, members, [rows], way, reason)
        later = [batch for batch in self.settings.batches if batch > rows]
        reason = reason if reason == NO_TIME else f"gave up at {rows} rows: {reason}"
        self._reason(model, members, later, way, reason)

    def _time(self, rows: int, workers: dict[str, Worker]) -> tuple[dict[str, list[float]], dict[str, str]]:
        """Let the ways take turns, so that a machine that slows down slows all of them."""
        times: dict[str, list[float]] = {way: [] for way in workers}
        lost: dict[str, str] = {}
        for _ in range(ROUNDS):
            for way, worker in workers.items():
                spent = sum(times[way])
                if way in lost or (spent > 20 and len(times[way]) > 2) or spent > 60:
                    continue
                try:
                    visit = self.settings.seconds / ROUNDS
                    times[way] += worker.ask("run", rows, visit, timeout=self.settings.patience)
                except RefusedError as error:
                    lost[way] = str(error)
        return times, lost

    def _keep(
        self,
        model: str,
        members: int,
        rows: int,
        ready: dict[str, Prepared],
        times: dict[str, list[float]],
        lost: dict[str, str],
    ) -> None:
        loop = statistics.median(times[LOOP]) if times.get(LOOP) else None
        if loop is None and (earlier := self.results.record(model, members, rows, LOOP)):
            loop = earlier.median
        for way, prepared in ready.items():
            if way == LOOP and self.results.record(model, members, rows, LOOP):
                continue
            self.results.records.append(
                Record(
                    model,
                    members,
                    rows,
                    way,
                    times[way],
                    loop,
                    prepared.error,
                    prepared.checked,
                    prepared.seconds,
                    prepared.note,
                    "" if times[way] else lost[way],
                )
            )
        if told := [f"{WAYS[way].title} {1000 * statistics.median(t):.3g} ms" for way, t in times.items() if t]:
            self.say(f"  {members} × {rows}: " + ", ".join(told))

    def _ask(self, worker: Worker, method: str, *arguments: int, deadline: float) -> Any:
        left = deadline - time.monotonic()
        if left < 1:
            raise RefusedError(NO_TIME)
        try:
            return worker.ask(method, *arguments, timeout=min(self.settings.patience, left))
        except LostError as error:
            # What is to blame is the budget, not the way.
            raise LostError(NO_TIME) if error.late and left < self.settings.patience else error from None

    def _reference(self, model: str, recipe: str) -> Path:
        return self.folder / f"{model}-{recipe}.npz"

    def _reason(self, model: str, members: int, batches: Sequence[int], way: str, reason: str) -> None:
        for rows in batches:
            if self.results.record(model, members, rows, way) is None:
                self.results.records.append(Record(model, members, rows, way, reason=reason))

    def _measure_limits(self) -> None:
        measured: Limits = self._isolated(limits, min(4.0, 3 * self.settings.seconds))
        self.limits = measured if self.limits is None else self.limits.best(measured)
        self.results.limits = dataclasses.asdict(self.limits)
        for bound in self.results.bounds:
            bound.seconds = self.limits.seconds(bound.nbytes, bound.flops)

    def _bounds(self, model: str, recipe: str, counts: dict[int, Count]) -> None:
        assert self.limits is not None
        for members in self.settings.members:
            for rows, counted in counts.items():
                nbytes, flops = counted.of(members)
                seconds = self.limits.seconds(nbytes, flops)
                self.results.bounds.append(Bound(model, members, rows, recipe, nbytes, flops, seconds))

    def _isolated(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return isolated(function, *arguments, timeout=self.settings.patience, verbose=self.settings.verbose)


def _share(deadline: float, share: float) -> float:
    now = time.monotonic()
    return now + share * (deadline - now)
