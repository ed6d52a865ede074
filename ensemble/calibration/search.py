"""Comparing recipes within a budget: which settings are tried, what each recipe is worth, and which is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ensemble.calibration.averaging import gain
from ensemble.calibration.budget import Budget
from ensemble.calibration.families import Average, Family, average
from ensemble.calibration.likelihood import row_log_likelihood
from ensemble.calibration.made import Made, members_of
from ensemble.calibration.report import Finding
from ensemble.calibration.trials import Trials
from ensemble.errors import EnsembledError, TooShortError
from ensemble.perturbation import Learned, Perturbation, Recipe

# Members that a setting is judged by: more tell little more.
TRIED_MEMBERS = 64
# Where that takes so long that there is not time for so many settings, fewer, but no fewer than this.
_LEAST_TRIED = 8
_LEAST_TRIALS = 10
# Standard errors by which rows tell one thing from another.
_SURELY = 2.0
# Share of the budget that is kept for making the ensemble and its thresholds.
_RESERVE = 0.15
_NOTHING_TO_LEARN_FROM = "there are no rows for it to learn from"
_NO_TARGETS = "it learns from targets, too: give data=(inputs, targets)"
_HOW_TO_LEARN = (
    "{names} from rows that choose nothing: give validation=(inputs, targets), rows that the model was not trained on; "
    "data are then what is learned from, usually the training rows. (ensembled build: --data and --validation.)"
)


def compare(
    trials: Trials,
    asked: list[Family],
    members: int,
    clock: Budget,
    tell: Callable[[str], None],
    *,
    named: bool,
    aside: int,
) -> tuple[Made, Finding]:
    """Compare the recipes within the budget and make the members of the one to keep.

    One that the caller named is kept, too, where the rows do not tell it from the net alone: what it is for may lie
    away from them.
    """
    tell("the net alone")
    alone = Family("single", trials=[trials.single()])
    single = alone.trials[0]
    # In the end all members see all held-out rows.
    last = single.seconds * members * (1 + aside / len(trials.rows))
    reserve = min(max(_RESERVE * clock.total, last), 0.5 * max(0.0, clock.left))
    tried = tried_members(members, single.seconds, clock.left - reserve)
    _search(trials, asked, members, tried, clock, reserve, tell)
    baseline = average(alone, single, trials.task)
    found = [average(family, single, trials.task) for family in asked if family.trials]
    found = _in_order(found, baseline)
    best = max((one.log_likelihood for one in found), default=0.0)
    notes = _how_to_learn(asked)
    chosen, why = baseline, "No recipe makes the held-out rows likelier than the net alone."
    for one in found:
        ours, error = gain(one.left_out, baseline.left_out)
        # What trains stands first only where the rows do not surely speak against it.
        tolerated = _SURELY * error if named or one.family.dear else 0.0
        if ours <= -tolerated:
            continue
        tell(f"members of {one.family.name}")
        made = members_of(trials, one, members)
        reached = _reached(trials, made)
        if reached >= baseline.fitted - tolerated:
            why = _why(ours, error, len(found), named=named, likeliest=one.log_likelihood >= best)
            return made, Finding(baseline, tuple(found), tuple(asked), one, why, reached, tuple(notes))
        notes.append(
            f"{one.family.name} promised {ours:.4f} nats, but with {members} members the rows are less likely than "
            "under the net alone."
        )
    made = members_of(trials, chosen, members)
    reached = _reached(trials, made)
    return made, Finding(baseline, tuple(found), tuple(asked), chosen, why, reached, tuple(notes))


def _how_to_learn(asked: Sequence[Family]) -> list[str]:
    """What would let those recipes be tried that had nothing to learn from."""
    names = [family.name for family in asked if family.failure == _NOTHING_TO_LEARN_FROM]
    if not names:
        return []
    listed = f"{', '.join(names[:-1])} and {names[-1]} learn" if names[1:] else f"{names[0]} learns"
    return [_HOW_TO_LEARN.format(names=listed)]


def _in_order(found: Sequence[Average], baseline: Average) -> list[Average]:
    """What makes the held-out rows likeliest first, but before it what trains members, if they do not surely say that
    it is worse.

    Members that were trained are as good nets each and nearer to separately trained ones than perturbed ones are. The
    net's own training was often stopped by the held-out rows, so that they favour it, and what stays near it.
    """
    ordered = sorted(found, key=lambda one: one.log_likelihood, reverse=True)

    def kept(one: Average) -> bool:
        rivals = (gain(one.left_out, other.left_out) for other in (baseline, ordered[0]))
        return one.family.dear and all(ours >= -_SURELY * error for ours, error in rivals)

    return [*filter(kept, ordered), *(one for one in ordered if not kept(one))]


def _why(ours: float, error: float, compared: int, *, named: bool, likeliest: bool) -> str:
    if ours <= 0:
        asked = "It was asked for" if named else "It trains its members"
        return (
            f"{asked}, and the held-out rows hardly tell it from the net alone: "
            f"{ours:+.4f} ± {error:.4f} nats each, left out of the weights."
        )
    other = ", and likelier than under any other recipe" if compared > 1 else ""
    if not likeliest:
        other = "; under another recipe they are not surely likelier, and this one trains its members"
    return (
        f"Left out of the weights, the held-out rows are likelier by {ours:.4f} ± {error:.4f} nats each than "
        f"under the net alone{other}."
    )


def tried_members(members: int, one: float, left: float) -> int:
    """How many members a setting is judged by: as many as tell enough, fewer where a model takes long.

    Args:
        one: seconds that one member takes for the selection rows.
        left: seconds that there are to compare settings.
    """
    return min(members, max(_LEAST_TRIED, min(TRIED_MEMBERS, int(left / _LEAST_TRIALS / max(one, 1e-9)))))


def _search(
    trials: Trials,
    asked: list[Family],
    members: int,
    tried: int,
    clock: Budget,
    reserve: float,
    tell: Callable[[str], None],
) -> None:
    """Try settings, each recipe's in turn, for as long as there is time for another."""
    for family in asked:
        if trials.learning is None and family.learns_from != "nothing":
            family.failure = _NOTHING_TO_LEARN_FROM
        elif trials.learning is not None and trials.learning.targets is None and family.learns_from == "examples":
            family.failure = _NO_TARGETS
    able = [family for family in asked if not family.failure]
    # Those with factors first, which are the fastest.
    drawn = sorted((f for f in able if not f.learned), key=lambda f: f.candidates[0].structure((2, 2)) is None)
    cheap = [family for family in able if family.learned and not family.dear]
    dear = [family for family in able if family.dear]
    first = True
    # What trains gets whatever time the others leave.
    for group, share in ((drawn, 0.4 if cheap or dear else 1.0), (cheap, 0.4 if dear else 1.0), (dear, 1.0)):
        end = clock.spent + share * (clock.left - reserve)
        waiting = {id(family): list(family.candidates) for family in group}
        while any(waiting.values()):
            for family in group:
                queue = waiting[id(family)]
                if not queue:
                    continue
                # A setting takes about as long as the one before.
                last = family.trials or [trial for other in group for trial in other.trials]
                needed = last[-1].seconds if last else 0.0
                if not first and clock.spent + needed > end:
                    family.cut_short = True
                    queue.clear()
                    continue
                left = (end - clock.spent) / sum(map(len, waiting.values()))
                candidate = queue.pop(0)
                tell(f"{family.name} {_short(candidate)}")
                count = tried if isinstance(candidate, Perturbation) else members
                if _try(trials, family, candidate, count, left if family.dear else end - clock.spent):
                    first = False
                else:
                    queue.clear()


def _try(trials: Trials, family: Family, candidate: Recipe, count: int, left: float) -> bool:
    # What is drawn can be drawn again in any number; what is learned is judged as it will be kept.
    if family.dear:
        count = max(1, count // len(family.candidates))
    if isinstance(candidate, Learned):
        candidate = candidate.within(max(left, 1.0))
    try:
        family.trials.append(trials.of(candidate, count))
    except EnsembledError as error:
        if not family.trials:
            # Seconds are of the recipe; whoever fits has given a budget.
            short = isinstance(error, TooShortError)
            family.failure = f"the budget leaves it too little: {left:.1f} s" if short else str(error)
        return False
    return True


def _reached(trials: Trials, made: Made) -> float:
    """Mean log-likelihood of the selection rows under members as they will be kept."""
    found = []
    for outputs, some in trials.outputs(made.members, trials.rows):
        assert some.targets is not None
        found.append(
            row_log_likelihood(
                trials.task,
                trials.head,
                outputs,
                some.targets,
                made.calibration,
                made.members.mixture,
            )
        )
    return float(torch.cat(found).mean())


def _short(recipe: Recipe) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in recipe.settings().items() if isinstance(value, float))
