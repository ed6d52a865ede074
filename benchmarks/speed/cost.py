"""How the cost grows with members and rows: a picture, and in words where it grows faster than they do.

    python -m benchmarks.speed.cost

Low-rank members of an MLP and a CNN, planned as a server plans them. Needs matplotlib (pip install -e '.[plot]').
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.environment import settle
from benchmarks.speed.results import quartiles
from benchmarks.telling import teller

# (members, rows) -> seconds of each run.
Grid = dict[tuple[int, int], list[float]]
IMAGE = Path(__file__).parents[2] / "docs" / "images" / "cost.svg"
RECIPE = "low_rank"
_ROUNDS = 5
# Growth is called faster than linear when it is by so much, with the spread of both times on its side.
_TOLERANCE = 1.1


def faster_than_linear(grid: Grid) -> list[str]:
    """Where cost grows by more than members or rows do, a sentence each.

    Neighbouring points are compared: the ratio of the times to the ratio of the sizes. It counts where it is over 1.1
    even between the third quartile of the smaller point and the first one of the larger.
    """
    found = []
    sizes = [sorted({cell[axis] for cell in grid}) for axis in (0, 1)]
    for axis, (what, other) in enumerate((("members", "rows"), ("rows", "members"))):
        for fixed in sizes[1 - axis]:
            cells = [(size, fixed) if axis == 0 else (fixed, size) for size in sizes[axis]]
            known = [cell for cell in cells if cell in grid]
            for small, large in itertools.pairwise(known):
                growth = large[axis] / small[axis]
                _, first, middle, _ = quartiles(grid[large])
                _, _, before, third = quartiles(grid[small])
                if first / third / growth > _TOLERANCE:
                    found.append(
                        f"from {small[axis]} to {large[axis]} {what} at {fixed} {other} the time grows "
                        f"{middle / before:.3g} times, {middle / before / growth:.2f} times what linear growth would be"
                    )
    return found


def draw(grids: dict[str, Grid], path: Path) -> None:
    """A row of the picture for each model: time against members on the left, against rows on the right."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.axes import Axes

    ink = "#1f2430"
    plt.rcParams.update(
        {
            "font.size": 10,
            "text.color": ink,
            "axes.edgecolor": "#b8bec9",
            "axes.labelcolor": ink,
            "xtick.color": ink,
            "ytick.color": ink,
            "svg.hashsalt": "cost",
        }
    )
    figure, axes = plt.subplots(len(grids), 2, figsize=(9.6, 4.2 * len(grids)), squeeze=False, layout="constrained")
    shades = plt.get_cmap("viridis_r")

    def lines(ax: Axes, grid: Grid, axis: int) -> None:
        fixed = sorted({cell[1 - axis] for cell in grid})
        for number, value in enumerate(fixed):
            points = sorted((cell[axis], quartiles(times)) for cell, times in grid.items() if cell[1 - axis] == value)
            x = [size for size, _ in points]
            y = [1000 * middle for _, (_, _, middle, _) in points]
            color = shades(0.15 + 0.85 * number / max(1, len(fixed) - 1))
            ax.plot(x, y, "o-", color=color, ms=3.5, lw=1.4, label=_many(value, 1 - axis))
            low, high = ([1000 * q[index] for _, q in points] for index in (1, 3))
            ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        # Through the last point of the lowest line: where that lies above it, cost does not grow with the size.
        lowest = sorted((cell[axis], quartiles(times)[2]) for cell, times in grid.items() if cell[1 - axis] == fixed[0])
        last, top = lowest[-1]
        guide = [1000 * top * size / last for size, _ in lowest]
        ax.plot([size for size, _ in lowest], guide, "--", color="#8a93a3", lw=1, label="linear")
        ax.set(yscale="log", xlabel=("members", "rows")[axis], ylabel="ms")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
        ax.grid(True, which="major", color="#e4e7ec", linewidth=0.6)
        ax.legend(frameon=False, fontsize=8)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)

    for row, (name, grid) in zip(axes, grids.items(), strict=True):
        for axis, ax in enumerate(row):
            lines(ax, grid, axis)
            ax.set_title(f"{name}, against {('members', 'rows')[axis]}", loc="left", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date in it, so that the same figures give the same file.
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _many(count: int, axis: int) -> str:
    word = ("member", "row")[axis]
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def measure(
    model: str,
    sizes: Sequence[int],
    batches: Sequence[int],
    folder: Path,
    *,
    longest: float,
    planning: float,
    patience: float,
    deadline: float,
    say: Callable[[str], None],
) -> Grid:
    """Time one model's members.

    Args:
        model: of :data:`benchmarks.models.MODELS`.
        sizes: numbers of members, ascending.
        batches: numbers of rows, ascending.
        folder: an empty one, for what is compared with.
        longest: seconds; a cell whose call would take longer by its flops alone is left out.
        planning: seconds for the plan, for each batch size.
        patience: seconds after which a step is given up.
        deadline: of ``time.monotonic``; what is not measured by then is left out.
        say: takes progress, and what is left out.
    """
    from benchmarks.machine import limits
    from benchmarks.speed import reference
    from benchmarks.speed.counting import facts_of
    from benchmarks.speed.running import Running
    from benchmarks.speed.worker import LostError, RefusedError, Worker, isolated

    ceiling = isolated(limits, 4.0, timeout=patience)
    counts = isolated(facts_of, model, [RECIPE], batches, timeout=patience).counts[RECIPE]
    path = folder / f"{model}.npz"
    isolated(reference.write, model, RECIPE, max(sizes), batches, path, 10.0, timeout=patience)
    grid: Grid = {}
    for members in sizes:
        possible = [rows for rows in batches if ceiling.seconds(*counts[rows].of(members)) <= longest]
        if left_out := [str(rows) for rows in batches if rows not in possible]:
            say(f"{model}, {members} members: left out {', '.join(left_out)} rows, over {longest:.0f} s by flops alone")
        if not possible or time.monotonic() > deadline:
            say(f"{model}, {members} members: left out")
            continue
        with Worker(Running, model, RECIPE, members, possible, path, planning) as worker:
            ready: list[int] = []
            try:
                worker.ask("start", timeout=patience)
                for rows in possible:
                    prepared = worker.ask("prepare", rows, timeout=patience)
                    ready.append(rows)
                    say(f"{model}, {members} × {rows}: {prepared.note}, about {1000 * prepared.call:.3g} ms")
                    if time.monotonic() > deadline:
                        break
                for _ in range(_ROUNDS):
                    for rows in ready:
                        times = grid.setdefault((members, rows), [])
                        if sum(times) < longest or not times:
                            times += worker.ask("run", rows, 0.3, timeout=patience)
            except LostError as error:
                say(f"{model}, {members} members: gave up after {ready} rows: {error}")
            except RefusedError as error:
                say(f"{model}, {members} members: {error}")
    return {cell: times for cell, times in grid.items() if times}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.speed.cost", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--members", nargs="+", type=int, metavar="N", default=[16, 64, 256, 1024, 4096])
    parser.add_argument("--rows", nargs="+", type=int, metavar="B", default=[1, 4, 16, 64, 256])
    parser.add_argument("--minutes", type=float, default=90, help="about how long all may take (default: 90)")
    parser.add_argument("--longest", type=float, default=20, help="leave out calls over so many seconds (default: 20)")
    parser.add_argument("--planning", type=float, default=25, help="seconds for the plan, a batch size (default: 25)")
    parser.add_argument("--patience", type=float, default=300, help="seconds for one step (default: 300)")
    parser.add_argument("--threads", type=int, help="by default as many as there are cores")
    parser.add_argument("--output", type=Path, default=IMAGE, help="the picture, .svg or .png (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time there, too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        settle(args.threads, name)
        return _main(args, Path(name), list(sys.argv[1:] if argv is None else argv))


def _main(args: argparse.Namespace, folder: Path, words: list[str]) -> int:
    from benchmarks.machine import describe
    from benchmarks.models import MODELS

    begun, say = time.monotonic(), teller()

    print(describe())
    print(shlex.join(["python", "-m", "benchmarks.speed.cost", *words]))
    grids: dict[str, Grid] = {}
    for number, model in enumerate(args.models):
        share = (60 * args.minutes - (time.monotonic() - begun)) / (len(args.models) - number)
        title = f"{MODELS[model]().name}, low-rank members"
        grid = measure(
            model,
            sorted(set(args.members)),
            sorted(set(args.rows)),
            folder,
            longest=args.longest,
            planning=args.planning,
            patience=args.patience,
            deadline=time.monotonic() + share,
            say=say,
        )
        if not grid:
            print(f"{title}: nothing could be measured.")
            continue
        grids[title] = grid
        print(f"\n{title}, median ms (rows across):\n\n{table(grid)}\n")
        wanted = len(set(args.members)) * len(set(args.rows))
        worse = faster_than_linear(grid)
        print("\n".join(f"- {line}" for line in worse) if worse else "Nowhere does it grow faster than linearly.")
        if len(grid) < wanted:
            print(f"That is said of {len(grid)} of {wanted} cells; the others were left out.")
    if grids:
        draw(grids, args.output)
        print(f"\nThe picture is in {args.output}.")
    if args.json:
        plain: dict[str, Any] = {
            title: [{"members": n, "rows": b, "seconds": times} for (n, b), times in sorted(grid.items())]
            for title, grid in grids.items()
        }
        args.json.write_text(json.dumps(plain, indent=1))
    return 0 if grids else 1


def table(grid: Grid) -> str:
    """Medians, a row for each number of members."""
    from benchmarks.speed.tables import NOTHING, markdown

    batches = sorted({rows for _, rows in grid})
    cells = []
    for members in sorted({members for members, _ in grid}):
        found = [grid.get((members, rows)) for rows in batches]
        cells.append([str(members), *(f"{1000 * quartiles(t)[2]:.3g}" if t else NOTHING for t in found)])
    return markdown(["members", *map(str, batches)], cells)


if __name__ == "__main__":
    sys.exit(main())
