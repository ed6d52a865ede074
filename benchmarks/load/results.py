"""What one run gave, as JSON and as Markdown."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from benchmarks.load.services import OURS, SERVICES
from benchmarks.speed.tables import NOTHING, markdown


@dataclasses.dataclass(frozen=True)
class Cell:
    """One service under one load.

    Args:
        throughput: good answers a second.
        p50, p99: milliseconds of a good answer; None where there was none.
        errors: requests without a good answer, warm-up not counted.
    """

    clients: int
    throughput: float
    p50: float | None
    p99: float | None
    errors: int = 0


@dataclasses.dataclass
class Group:
    """All services on the same members.

    Args:
        model, recipe, members: what they serve.
        cells: of each service by its key, one for each number of clients.
        reasons: of each that could not be measured, why.
        differences: of each, how far its answers are from the loop at most.
        bare: milliseconds of the library's own call for one row, once in each round.
        single: of the same rounds, milliseconds of a single client's request, at the median.
        how: the way in which that call runs.
    """

    model: str
    recipe: str
    members: int
    cells: dict[str, list[Cell]] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    differences: dict[str, float] = dataclasses.field(default_factory=dict)
    bare: list[float] = dataclasses.field(default_factory=list)
    single: list[float] = dataclasses.field(default_factory=list)
    how: str = ""

    def cell(self, service: str, clients: int) -> Cell | None:
        return next((cell for cell in self.cells.get(service, ()) if cell.clients == clients), None)

    def best_peer(self, clients: int) -> tuple[str, Cell] | None:
        """The peer with the highest throughput."""
        found = [(key, cell) for key in self.cells if key != "ensembled" and (cell := self.cell(key, clients))]
        return max(found, key=lambda pair: pair[1].throughput, default=None)

    def ratio(self, clients: int) -> float | None:
        """How many times the throughput of the best peer this service has."""
        ours, best = self.cell("ensembled", clients), self.best_peer(clients)
        return ours.throughput / best[1].throughput if ours and best and best[1].throughput else None

    def added(self) -> float | None:
        """Milliseconds that a request of a single client takes beyond the bare call, at the median of the rounds."""
        differences = [single - bare for single, bare in zip(self.single, self.bare, strict=True)]
        return statistics.median(differences) if differences else None


@dataclasses.dataclass
class Results:
    """All groups.

    Args:
        by: who asked, by its key.
    """

    machine: str
    command: str
    by: str
    groups: list[Group] = dataclasses.field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        groups = []
        for group in self.groups:
            clients = sorted({cell.clients for cells in group.cells.values() for cell in cells})
            groups.append(
                dataclasses.asdict(group)
                | {"ratios": {str(count): group.ratio(count) for count in clients}, "added_ms": group.added()}
            )
        return {"schema": 1, "machine": self.machine, "command": self.command, "by": self.by, "groups": groups}


def table(group: Group) -> str:
    """One group as Markdown."""
    counts = sorted({cell.clients for cells in group.cells.values() for cell in cells})
    rows = []
    for clients in counts:
        for key, service in SERVICES.items():
            cell = group.cell(key, clients)
            if cell is not None:
                rows.append([str(clients), service.title, *_figures(group, cell, ours=service is OURS)])
    parts = [f"## {group.model}, {group.members} {group.recipe} members"]
    if rows:
        parts.append(markdown(["clients", "", "requests/s", "p50 ms", "p99 ms", "errors", "times the best peer"], rows))
    if (added := group.added()) is not None:
        parts.append(
            f"The bare call for one row takes {statistics.median(group.bare):.3g} ms ({group.how}); a single client's "
            f"request takes {added:.2f} ms more (medians of {len(group.bare)} rounds, in which both take turns)."
        )
    if group.differences:
        worst = max(group.differences.values())
        parts.append(f"Every answer that was checked agrees with the loop over members to {worst:.0e}.")
    parts += [f"{SERVICES[key].title}: {reason}." for key, reason in group.reasons.items()]
    return "\n\n".join(parts)


def _figures(group: Group, cell: Cell, ours: bool) -> list[str]:
    ratio = group.ratio(cell.clients) if ours else None
    return [
        f"{cell.throughput:,.1f}",
        *(NOTHING if ms is None else f"{ms:.3g}" if ms < 1000 else f"{ms:,.0f}" for ms in (cell.p50, cell.p99)),
        str(cell.errors),
        NOTHING if ratio is None else f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}",
    ]


def whole(results: Results) -> str:
    """All of it as Markdown."""
    about = (
        f"One row a request, JSON, a closed loop of clients ({results.by}) on the same machine. Every service has the "
        "same members, whose answers were checked before anything was timed, and ran alone."
    )
    parts = ["# Load", results.machine, f"`{results.command}`", about]
    return "\n\n".join([*parts, *(table(group) for group in results.groups)]) + "\n"
