"""Bodies made from a model's metadata are requests that the model would take."""

import json

import numpy as np
import pytest

from app.loadtest.config import LoadTestError
from app.loadtest.payload import POOL, bodies, is_answer, load_body, load_data


def model(*inputs):
    return {"name": "m", "inputs": [dict(zip(("name", "datatype", "shape"), i, strict=True)) for i in inputs]}


def tensors(body):
    return {
        i["name"]: np.array(i["data"], dtype=object if i["datatype"] == "BOOL" else None).reshape(i["shape"])
        for i in json.loads(body)["inputs"]
    }


def test_rows_are_generated_from_shape_and_datatype():
    made = bodies(
        model(("x", "FP32", [-1, 3]), ("ids", "INT64", [-1, -1]), ("flag", "BOOL", [-1])), rows=4, outputs=["mean"]
    )
    assert len(set(made)) == len(made) == POOL
    for body in made:
        parsed = json.loads(body)
        assert parsed["outputs"] == [{"name": "mean"}]
        assert [(i["name"], i["datatype"], i["shape"]) for i in parsed["inputs"]] == [
            ("x", "FP32", [4, 3]),
            ("ids", "INT64", [4, 8]),
            ("flag", "BOOL", [4]),
        ]
        values = tensors(body)
        assert np.all((values["x"] >= 0) & (values["x"] < 1))
        assert set(values["ids"].flat) <= {0, 1}
        assert all(type(value) is bool for value in values["flag"].flat)


def test_the_seed_decides_the_rows_and_no_outputs_are_asked_for_by_default():
    metadata = model(("x", "FP64", [-1, 2]))
    assert bodies(metadata, rows=1, seed=4) == bodies(metadata, rows=1, seed=4)
    assert bodies(metadata, rows=1, seed=4) != bodies(metadata, rows=1, seed=5)
    assert "outputs" not in json.loads(bodies(metadata, rows=1)[0])


def test_rows_of_data_are_all_sent_and_stay_together():
    x = np.arange(20.0).reshape(10, 2)
    y = np.arange(10)
    made = bodies(model(("x", "FP32", [-1, 2]), ("y", "INT32", [-1])), rows=3, data={"x": x, "y": y, "unused": y[:2]})
    assert len(made) == 4
    seen = set()
    for body in made:
        values = tensors(body)
        assert values["x"].shape == (3, 2)
        assert np.array_equal(values["x"][:, 0], 2 * values["y"])
        seen |= set(values["y"].tolist())
    assert seen == set(range(10))


def test_a_single_array_needs_no_name(tmp_path):
    rows = np.random.default_rng(0).random((100, 2), dtype=np.float32)
    np.savez(tmp_path / "rows.npz", rows)
    made = bodies(model(("x", "FP32", [-1, 2])), rows=1, data=load_data(tmp_path / "rows.npz"))
    assert len(made) == POOL
    sent = np.concatenate([tensors(body)["x"] for body in made]).astype(np.float32)
    assert {tuple(row) for row in sent} <= {tuple(row) for row in rows}


@pytest.mark.parametrize(
    ("inputs", "rows", "data", "message"),
    [
        ([("x", "FP16", [-1, 2])], 1, None, "cannot carry"),
        ([("x", "BYTES", [-1])], 1, None, "cannot carry"),
        ([("x", "FP32", [5, 2])], 2, None, "rows=2"),
        ([("x", "FP32", [-1, 2])], 1, {"x": np.zeros((4, 3))}, "must have shape"),
        ([("x", "INT32", [-1])], 1, {"x": np.zeros(4)}, "must be INT32"),
        ([("x", "FP32", [-1]), ("y", "FP32", [-1])], 1, {"x": np.zeros(4), "z": np.zeros(4)}, "input 'y'"),
        ([("x", "FP32", [-1]), ("y", "FP32", [-1])], 1, {"x": np.zeros(4), "y": np.zeros(3)}, "as many rows"),
        ([("x", "FP32", [-1])], 1, {"x": np.zeros(0)}, "must have shape"),
    ],
)
def test_refuses_what_cannot_be_sent(inputs, rows, data, message):
    with pytest.raises(LoadTestError, match=message):
        bodies(model(*inputs), rows=rows, data=data)


def test_refuses_metadata_and_files_that_are_something_else(tmp_path):
    with pytest.raises(LoadTestError, match="not V2"):
        bodies({"inputs": [{"name": "x"}]}, rows=1)
    (tmp_path / "text").write_text("no numbers, no {json")
    with pytest.raises(LoadTestError, match="numpy"):
        load_data(tmp_path / "text")
    with pytest.raises(LoadTestError, match="must hold JSON"):
        load_body(tmp_path / "text")
    with pytest.raises(LoadTestError, match="cannot be read"):
        load_body(tmp_path / "missing")


def test_refuses_pickled_data(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.array([{}], dtype=object))
    with pytest.raises(LoadTestError, match="numpy"):
        load_data(tmp_path / "rows.npz")


@pytest.mark.parametrize(
    ("body", "good"),
    [
        (b'{"model_name":"m","outputs":[]}', True),
        (b'{"outputs":[]}\n', True),
        (b"", False),
        (b"<html>", False),
        (b'{"outputs":', False),
        (b'{"outputs": oops}', False),
        (b'{"outputs": 3}', False),
        (b'{"error":"no"}', False),
        (b'["outputs"]', False),
        (b'{"outputs":[' + b"0," * 40_000 + b"0]}", True),
        (b'{"outputs":[' + b"0," * 40_000, False),
    ],
)
def test_tells_a_v2_answer_from_others(body, good):
    assert is_answer(body) is good
