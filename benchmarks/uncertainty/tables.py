"""A run as Markdown: scores with their standard errors, the share of the gap that is closed, and what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.speed.tables import markdown
from benchmarks.uncertainty.results import Record, Results, error
from benchmarks.uncertainty.settings import PUBLISHED

NOTHING = "–"
HEADS = {"point": "point head", "variance": "variance head"}
TITLES = {
    "single": "the net itself",
    "deep-2": "deep ensemble of 2",
    "deep-5": "deep ensemble of 5",
    "deep-10": "deep ensemble of 10",
    "mc-dropout": "Monte-Carlo dropout",
    "gaussian": "`Gaussian`",
    "low_rank": "`LowRank`",
    "rank1": "`Rank1`",
    "dropout": "`Dropout`",
    "perturb_and_correct": "`PerturbAndCorrect`",
    "swag": "`Swag`",
    "laplace": "`Laplace`",
    "adapted-1": "`Adapted`, one training",
    "adapted-3": "`Adapted`, three trainings",
    "auto": '`recipe="auto"`',
    "laplace-torch": "laplace-torch, last layer",
}
DIGITS = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE",
    "auroc_unknown": "AUROC, digits 8 and 9",
    "auroc_noise": "AUROC, noise",
    "auroc_shift": "AUROC, shifted",
}


def header(results: Results) -> str:
    """What it was measured on, and with what."""
    return f"{results.machine}\n\n`{results.command}`"


def regression(results: Results, head: str) -> str:
    """Test log-likelihood, RMSE, shares of the gap, and cost, of one head."""
    names, methods = results.tables(head), results.methods(head)
    if not names:
        return ""
    splits = max(len(results.of(name, head, "single")) for name in names)
    notes = _Notes()

    def grid(cell: Callable[[str, str], str]) -> list[list[str]]:
        return [[TITLES.get(method, method), *(cell(name, method) for name in names)] for method in methods]

    def value(score: str, digits: int) -> Callable[[str, str], str]:
        return lambda name, method: _value(results, name, head, method, score, digits, notes)

    published = [f"{PUBLISHED[name]:.2f}" if name in PUBLISHED else NOTHING for name in names]
    likelihoods = [*grid(value("log_likelihood", 3)), ["Monte-Carlo dropout, as published", *published]]
    parts = [
        f"### {HEADS[head].capitalize()}",
        f"Test log-likelihood in nats, mean and standard error over {splits} splits (higher is better):",
        markdown(["", *names], likelihoods),
        "Test RMSE in the target's own units:",
        markdown(["", *names], grid(value("rmse", 3))),
        "Share of the gap between the net and ten of them that is closed, in log-likelihood and, after the stroke, in "
        "RMSE; and the cost, in trainings of one net besides the one, by gradient steps (in brackets seconds a split):",
        markdown(["", *names, "cost"], _shares(results, head, names, methods)),
    ]
    return "\n\n".join([*parts, *notes.lines()])


def _shares(results: Results, head: str, names: Sequence[str], methods: Sequence[str]) -> list[list[str]]:
    rows = []
    for method in methods:
        if method in ("single", "deep-10"):
            continue
        row = [TITLES.get(method, method)]
        for name in names:
            pair = [results.share(name, head, method, score) for score in ("log_likelihood", "rmse")]
            row.append(" / ".join(NOTHING if share is None else f"{100 * share:.0f} %" for share in pair))
        rows.append([*row, _cost([r for name in names for r in results.of(name, head, method)])])
    return rows


def _cost(records: Sequence[Record]) -> str:
    costs = [record.cost for record in records if record.cost is not None and not record.reason]
    if not costs:
        return NOTHING
    seconds = [record.seconds for record in records if record.seconds]
    took = f" ({sum(seconds) / len(seconds):.1f} s)" if seconds else ""
    least, most = min(costs), max(costs)
    return (f"{least:.2g}" if most - least < 0.05 else f"{least:.2g}–{most:.2g}") + took


def classes(results: Results, name: str) -> str:
    """All scores of a classification."""
    methods = [m for m in results.methods("classes") if results.of(name, "classes", m)]
    scores = [s for s in DIGITS if any(s in r.scores for r in results.records if r.table == name)]
    if not methods or not scores:
        return ""
    notes = _Notes()
    rows = [
        [TITLES.get(m, m), *(_value(results, name, "classes", m, score, 3, notes) for score in scores)] for m in methods
    ]
    draws = len(results.of(name, "classes", "single"))
    text = f"Mean and standard error over {draws} draws of the training rows:"
    return "\n\n".join([f"### {name}", text, markdown(["", *(DIGITS[s] for s in scores)], rows), *notes.lines()])


def _value(results: Results, name: str, head: str, method: str, score: str, digits: int, notes: _Notes) -> str:
    records = results.of(name, head, method)
    values = results.values(name, head, method, score)
    failed = [record.reason for record in records if record.reason]
    if failed:
        return notes.short(f"{failed[0]} ({len(failed)} of {len(records)} splits)")
    if not values:
        return NOTHING
    return f"{sum(values) / len(values):.{digits}f} ± {error(values):.{digits}f}"


class _Notes:
    """Reasons that are too long for a cell, numbered."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def short(self, reason: str) -> str:
        return f"none ({self._numbers.setdefault(reason, len(self._numbers) + 1)})"

    def lines(self) -> list[str]:
        return ["\n".join(f"{number}. {text}" for text, number in self._numbers.items())] if self._numbers else []


def whole(results: Results) -> str:
    """All tables."""
    parts = [header(results), *(regression(results, head) for head in HEADS if results.tables(head))]
    parts += [classes(results, name) for name in results.tables("classes")]
    return "\n\n".join([*(part for part in parts if part), marks(results)]) + "\n"


STATIC = ("gaussian", "low_rank", "rank1", "dropout", "perturb_and_correct", "swag", "laplace")
_ON = ("boston", "concrete", "yacht", "wine")


def marks(results: Results) -> str:
    """What was to be reached, and what was: counted from the tables above."""
    rows: list[list[str]] = []

    def mark(text: str, found: str, reached: bool | None) -> None:
        rows.append([text, found, NOTHING if reached is None else "yes" if reached else "no"])

    for head, title in HEADS.items():
        names = results.tables(head)
        static = [m for m in STATIC if m in results.methods(head)]
        drops = {
            (name, m): a - b
            for name in names
            for m in static
            if (a := results.mean(name, head, m, "log_likelihood")) is not None
            and (b := results.mean(name, head, "single", "log_likelihood")) is not None
        }
        if drops:
            (name, m), least = min(drops.items(), key=lambda item: item[1])
            text = f"fitted static recipes, {title}: nowhere more than 0.01 nat below the net"
            mark(text, f"{least:+.3f} at worst ({TITLES[m]}, {name})", least >= -0.01)
    for method, score, share, of in (
        *((m, "log_likelihood", 0.25, "log-likelihood") for m in STATIC),
        ("adapted-1", "log_likelihood", 0.35, "log-likelihood"),
        ("adapted-3", "log_likelihood", 0.50, "log-likelihood"),
        ("adapted-3", "rmse", 0.25, "RMSE"),
    ):
        shares = {name: results.share(name, "variance", method, score) for name in _ON}
        if all(value is not None for value in shares.values()):
            found = sum(value is not None and value >= share for value in shares.values())
            text = f"{TITLES[method]}, variance head: {100 * share:.0f} % of the gap in {of} on three of four sets"
            mark(text, f"{found} of 4 ({', '.join(_percent(shares.values()))})", found >= 3)
    for head, title in HEADS.items():
        reached = {name: results.mean(name, head, "auto", "log_likelihood") for name in _ON}
        if all(value is not None for value in reached.values()):
            above = [name for name, value in reached.items() if value is not None and value >= PUBLISHED[name] - 0.005]
            mark(
                f'`recipe="auto"`, {title}: at or above Monte-Carlo dropout as published on all four',
                f"{len(above)} of 4",
                len(above) == 4,
            )
    for score in ("auroc_noise", "auroc_shift"):
        ours, theirs = (results.mean("digits", "classes", m, score) for m in ("perturb_and_correct", "deep-10"))
        if ours is not None and theirs is not None:
            mark(
                f"`PerturbAndCorrect`, {DIGITS[score]}: at or above ten nets",
                f"{ours:.4f} and {theirs:.4f}",
                ours >= theirs,
            )
    return "### What was asked for\n\n" + markdown(["", "found", "reached"], rows) if rows else ""


def _percent(shares: Iterable[float | None]) -> list[str]:
    return [NOTHING if share is None else f"{100 * share:.0f} %" for share in shares]
