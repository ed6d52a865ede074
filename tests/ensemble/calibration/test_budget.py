import pytest

from ensemble import InputError
from ensemble.calibration.budget import Budget, seconds


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("60s", 60),
        ("5m", 300),
        ("2min", 120),
        ("1.5h", 5400),
        ("250ms", 0.25),
        (" 7 ", 7),
        (".5s", 0.5),
        (90, 90),
        (0.1, 0.1),
    ],
)
def test_durations(given, wanted):
    assert seconds(given) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "given", ["", "s", "-1s", "0s", 0, -3, "1 day", float("inf"), float("nan"), True, None, "1e3s"]
)
def test_what_is_no_duration_is_refused(given):
    with pytest.raises(InputError, match='such as "60s"'):
        seconds(given)


def test_a_budget_runs_out():
    now = [100.0]
    budget = Budget(10, clock=lambda: now[0])
    now[0] += 4
    assert (budget.spent, budget.left) == (4, 6)
    now[0] += 8
    assert budget.left == -2
