import itertools

import pytest

from benchmarks.speed import cost

SIZES, ROWS = (16, 64, 256), (1, 8)


def grid(seconds):
    return {(n, b): [seconds(n, b) * (1 + 0.01 * i) for i in range(5)] for n, b in itertools.product(SIZES, ROWS)}


def test_linear_growth_is_not_called_worse():
    assert cost.faster_than_linear(grid(lambda n, b: 1e-4 + 1e-5 * n * b)) == []
    assert cost.faster_than_linear(grid(lambda n, b: 1e-3)) == []


def test_faster_growth_is_named():
    worse = cost.faster_than_linear(grid(lambda n, b: 1e-5 * n * b * (2 if n == 256 and b == 8 else 1)))
    assert len(worse) == 2
    assert "from 64 to 256 members at 8 rows the time grows 8 times, 2.00 times what linear" in worse[0]
    assert "from 1 to 8 rows at 256 members the time grows 16 times, 2.00 times what linear" in worse[1]


def test_growth_within_the_spread_is_not_called_worse():
    times = {(16, 1): [0.5, 1.0, 1.5], (32, 1): [1.5, 2.4, 3.5]}
    assert cost.faster_than_linear(times) == []


def test_a_missing_cell_is_skipped():
    found = {(16, 1): [1.0], (256, 1): [64.0], (16, 8): [1.0]}
    assert cost.faster_than_linear(found) == [
        "from 16 to 256 members at 1 rows the time grows 64 times, 4.00 times what linear growth would be"
    ]
    assert cost.table(found).splitlines()[-1].split("|")[3].strip() == "–"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_picture_is_the_same_for_the_same_figures(tmp_path):
    pytest.importorskip("matplotlib")
    grids = {"MLP": grid(lambda n, b: 1e-5 * n * b)}
    for name in ("a.svg", "b.svg"):
        cost.draw(grids, tmp_path / name)
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert b"<svg" in first
