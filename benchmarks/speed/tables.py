"""A run as Markdown: ratios first, then milliseconds, the limit of the machine, and how far the answers differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from benchmarks.models import RECIPES
from benchmarks.speed.results import Record, Results, quartiles
from benchmarks.speed.running import WAYS

NOTHING = "–"


def header(results: Results) -> str:
    """What it was measured on, and how to read it."""
    limits = results.limits
    lines = [results.machine, f"`{results.command}`"]
    if limits:
        bandwidth = limits["bandwidth"]
        streaming = bandwidth[max(bandwidth)]
        lines.append(
            f"Limits of the machine, measured in this run: {streaming / 1e9:.3g} GB/s read from memory, "
            f"{max(bandwidth.values()) / 1e9:.3g} GB/s from the nearest cache, {limits['float32'] / 1e9:.3g} GFLOP/s "
            f"in float32, {limits['bfloat16'] / 1e9:.3g} GFLOP/s in bfloat16."
        )
    lines.append(
        "Everything is float32. N members, B rows a call. The ways take turns in a cell, each after a run that is not "
        "counted (caches are warm). A time stands only where the answers agree with those of the members as plain "
        "modules, to 1e-4 of the largest magnitude."
    )
    return "\n\n".join(lines)


def model(results: Results, key: str) -> str:
    """The tables of one model."""
    title = f"## {results.names.get(key, key)}"
    if key in results.missing:
        return f"{title}\n\nMissing: {results.missing[key]}."
    records = [record for record in results.records if record.model == key]
    if not records:
        return f"{title}\n\nNot measured."
    ways = [way for way in WAYS if any(record.way == way for record in records)]
    cells = sorted({(record.members, record.rows) for record in records})
    notes = _Notes()

    def grid(cell: Callable[[Record], str], heading: str) -> str:
        rows = []
        for members, batch in cells:
            found = [results.record(key, members, batch, way) for way in ways]
            shown = [NOTHING if record is None else cell(record) for record in found]
            rows.append([str(members), str(batch), *shown])
        return f"{heading}\n\n" + markdown(["N", "B", *(WAYS[way].title for way in ways)], rows)

    parts = [
        title,
        grid(lambda record: speedup(record, notes), "Times faster than the loop over modules:"),
        grid(milliseconds, "Milliseconds: median (least; quartiles):"),
        _limit_table(results, key, cells),
        _agreement(records, ways),
        _plans(records),
    ]
    if notes.texts:
        parts.insert(2, "\n".join(f"{number}. {text}" for text, number in notes.texts.items()))
    return "\n\n".join(part for part in parts if part)


def whole(results: Results, models: Sequence[str]) -> str:
    return "\n\n".join(["# Speed", header(results), *(model(results, key) for key in models)]) + "\n"


class _Notes:
    """Reasons that are too long for a cell, numbered."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}

    def short(self, reason: str) -> str:
        if len(reason) <= 24:
            return reason
        return f"none ({self.texts.setdefault(reason, len(self.texts) + 1)})"


def speedup(record: Record, notes: _Notes | None = None) -> str:
    """How many times faster than the loop, or why that is not known."""
    if record.reason:
        return (notes or _Notes()).short(record.reason)
    if record.speedup is None:
        return "no loop"
    return f"{record.speedup:.3g}" if record.speedup >= 1 else f"{record.speedup:.2f}"


def milliseconds(record: Record) -> str:
    if not record.seconds:
        return NOTHING
    least, first, middle, third = (1000 * value for value in quartiles(record.seconds))
    return f"{middle:.3g} ({least:.3g}; {first:.3g}–{third:.3g})"


def _limit_table(results: Results, key: str, cells: Sequence[tuple[int, int]]) -> str:
    """The bound of each recipe, and how near this library comes to it."""
    recipes = [recipe for recipe in RECIPES if any(b.model == key and b.recipe == recipe for b in results.bounds)]
    heading = ["N", "B"]
    for recipe in recipes:
        heading += [f"{recipe}: GB", "GFLOP", "limit, ms", "ours / limit"]
    rows = []
    for members, batch in cells:
        row = [str(members), str(batch)]
        for recipe in recipes:
            bound = results.bound(key, members, batch, recipe)
            record = results.record(key, members, batch, recipe)
            if bound is None:
                row += [NOTHING] * 4
                continue
            row += [f"{bound.nbytes / 1e9:.3g}", f"{bound.flops / 1e9:.3g}", f"{1000 * bound.seconds:.3g}"]
            ratio = record.median / bound.seconds if record and record.median else None
            row.append(NOTHING if ratio is None else f"{ratio:.3g}" if ratio >= 1 else f"{ratio:.3g} (no bound)")
        rows.append(row)
    text = (
        "The least that it can take: weights that must be read at the bandwidth of a working set of that size, or "
        "flops of the program that runs (products that members share once) at the peak, whichever is more:"
    )
    table = f"{text}\n\n" + markdown(heading, rows) if rows and recipes else ""
    return "\n\n".join(part for part in (table, _below(results, key)) if part)


def _below(results: Results, key: str) -> str:
    """Where a way took less than the limit of its recipe, which shows that this was measured too low."""
    found = []
    for record in results.records:
        bound = results.bound(key, record.members, record.rows, WAYS[record.way].recipe)
        if record.model == key and bound and record.median and record.median < bound.seconds:
            ratio = record.median / bound.seconds
            found.append(f"{WAYS[record.way].title} {record.members} × {record.rows} ({ratio:.3g} times)")
    return "Below the measured limit, which is then no bound: " + ", ".join(found) + "." if found else ""


def _agreement(records: Sequence[Record], ways: Sequence[str]) -> str:
    found = []
    for way in ways:
        errors = [record.error for record in records if record.way == way and record.error is not None]
        checked = [record.checked for record in records if record.way == way and record.error is not None]
        if errors:
            found.append(f"{WAYS[way].title} {max(errors):.1e} ({max(checked)} members)")
    return "Largest difference from the loop over members: " + ", ".join(found) + "." if found else ""


def _plans(records: Sequence[Record]) -> str:
    found = [f"{WAYS[r.way].title} {r.members} × {r.rows}: {r.note}" for r in records if r.note]
    return "How this library ran (members × rows): " + "; ".join(found) + "." if found else ""


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns line up as text too."""
    widths = [max(3, *(len(row[i]) for row in [heading, *rows])) for i in range(len(heading))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "/").ljust(w) for cell, w in zip(cells, widths, strict=True)) + " |"

    def lines() -> Iterator[str]:
        yield line(heading)
        yield "| " + " | ".join("-" * width for width in widths) + " |"
        for row in rows:
            yield line(row)

    return "\n".join(lines())
