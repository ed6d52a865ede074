"""The benchmark of training measures the same work twice."""

from benchmarks.training.__main__ import case, main, measure


def test_both_ways_train_the_same_members():
    found, apart = measure(case("uci"), members=3, steps=2, visits=1)
    assert apart < 1e-4
    assert all(milliseconds > 0 for milliseconds in found.values())


def test_the_table_names_the_machine(capsys):
    assert main(["--cases", "uci", "--members", "2", "--steps", "2", "--visits", "1"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out.splitlines()[0]
    assert out.splitlines()[-1].startswith("| uci | 2 |")
