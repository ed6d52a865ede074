import json

import pytest

from benchmarks.speed import tables
from benchmarks.speed.results import Bound, Record, Results, quartiles


@pytest.fixture
def results():
    limits = {"bandwidth": {1024: 8e10, 2**30: 4e10}, "float32": 2e11, "bfloat16": 4e11}
    found = Results("a machine", "python -m benchmarks.speed", limits, names={"mlp": "MLP"})
    found.records += [
        Record("mlp", 16, 1, "loop", [0.008, 0.010, 0.012], loop=0.010, error=0.0, checked=16),
        Record("mlp", 16, 1, "low_rank", [0.0005], loop=0.010, error=3e-7, checked=16, note="compiled, 16 at once"),
        Record("mlp", 16, 1, "vmap", [0.020], loop=0.010, error=2e-7, checked=12),
        Record("mlp", 16, 1, "jax", reason="not installed"),
        Record("mlp", 16, 1, "openvino", reason="wrong: differs from the loop by 3.0e-02"),
        Record("mlp", 1024, 1, "loop", reason="does not fit: 48 GB"),
        Record("mlp", 1024, 1, "low_rank", [0.004], error=3e-7, checked=128),
    ]
    found.bounds.append(Bound("mlp", 16, 1, "low_rank", 2e6, 1e7, 0.00025))
    return found


def cells(text, heading):
    """{way: cell} of each row of the first table after a heading."""
    lines = text[text.index(heading) :].splitlines()[2:]
    titles = [cell.strip() for cell in lines[0].strip("|").split("|")]
    rows = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(titles, [cell.strip() for cell in line.strip("|").split("|")], strict=True)))
    return rows


def test_ratios_and_reasons(results):
    text = tables.model(results, "mlp")
    first, second = cells(text, "Times faster")
    assert first["ensembled, LowRank"] == "20"
    assert first["vmap"] == "0.50"
    assert first["JAX jit(vmap)"] == "not installed"
    assert second["loop over modules"] == "does not fit: 48 GB"
    # Without a loop there is a time, and no ratio.
    assert second["ensembled, LowRank"] == "no loop"
    assert cells(text, "Milliseconds")[1]["ensembled, LowRank"].startswith("4 ")


def test_a_wrong_answer_has_no_time(results):
    text = tables.model(results, "mlp")
    assert cells(text, "Times faster")[0]["OpenVINO"] == "none (1)"
    assert "1. wrong: differs from the loop by 3.0e-02" in text
    assert cells(text, "Milliseconds")[0]["OpenVINO"] == tables.NOTHING


def test_spread_limit_and_agreement(results):
    text = tables.model(results, "mlp")
    assert cells(text, "Milliseconds")[0]["loop over modules"] == "10 (8; 9–11)"
    (row, _) = cells(text, "The least")
    assert row["limit, ms"] == "0.25"
    assert row["ours / limit"] == "2"
    assert "ensembled, LowRank 3.0e-07 (128 members)" in text
    assert "vmap 2.0e-07 (12 members)" in text
    assert "16 × 1: compiled, 16 at once" in text


def test_what_is_below_the_limit_is_said_to_show_that_it_is_none(results):
    assert "no bound" not in tables.model(results, "mlp")
    results.bounds[0] = Bound("mlp", 16, 1, "low_rank", 2e6, 1e7, 0.001)
    # Of a peer the limit of its dense members counts.
    results.bounds.append(Bound("mlp", 16, 1, "dense", 2e6, 1e7, 0.05))
    text = tables.model(results, "mlp")
    assert cells(text, "The least")[0]["low_rank: GB"] == "0.002"
    assert "0.5 (no bound)" in text
    (line,) = [line for line in text.splitlines() if line.startswith("Below the measured limit")]
    below = ["loop over modules 16 × 1 (0.2 times)", "ensembled, LowRank 16 × 1 (0.5 times)", "vmap 16 × 1 (0.4 times)"]
    assert line.endswith(f"no bound: {', '.join(below)}.")


def test_what_is_missing_says_why(results):
    results.missing["resnet"] = "no torchvision"
    assert "Missing: no torchvision." in tables.whole(results, ["mlp", "resnet", "lstm"])
    assert "Not measured." in tables.whole(results, ["mlp", "resnet", "lstm"])
    assert "40 GB/s read from memory, 80 GB/s from the nearest cache" in tables.header(results)


def test_json(results):
    plain = json.loads(json.dumps(results.plain()))
    assert plain["records"][1]["speedup"] == 20
    assert plain["records"][3]["median"] is None
    assert plain["bounds"][0]["flops"] == 1e7


def test_quartiles():
    assert quartiles([0.3]) == (0.3, 0.3, 0.3, 0.3)
    assert quartiles([1, 2, 3, 4, 5]) == (1, 2, 3, 4)


def test_a_table_lines_up():
    text = tables.markdown(["N", "what"], [["1", "a|b"], ["1024", "c"]])
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "a/b" in text
