"""Targets that come with a request, and outputs that a model does not have, in both APIs."""

import json

import numpy as np
import pytest

from app.errors import BadRequest
from app.protocol.plain import decode_predict
from app.protocol.request import InferRequest, check_output_name
from app.protocol.tensors import TensorSpec
from app.protocol.v2 import decode_infer

X = TensorSpec("x", "FP32", (-1, 2))
ONE = {"log_prob": TensorSpec("target", "INT64", (-1,))}
TWO = {
    "a.log_prob": TensorSpec("a.target", "FP32", (-1,)),
    "b.log_prob": TensorSpec("b.target", "FP32", (-1, 2)),
}
LACKING = {"abstain": "abstain was not fitted: fit it."}
ROWS = [[1, 2], [3, 4]]


def plain(outputs, target=None, targets=ONE):
    body = {"inputs": ROWS, "outputs": outputs} | ({} if target is None else {"target": target})
    names = ("mean", *targets)
    return decode_predict(json.dumps(body).encode(), [X], names, ["mean"], targets=targets, lacking=LACKING)


def v2(outputs, target=None, targets=ONE, *, binary=False):
    """``target`` as lists by name, or the list of the only one."""
    given = target if isinstance(target, dict) else {"target": target} if target is not None else {}
    specs = {spec.name: spec for spec in targets.values()}
    tail = b""
    entries = []
    for name, values in given.items():
        array = np.array(values, specs[name].type.dtype)
        entry = {"name": name, "shape": list(array.shape), "datatype": specs[name].datatype}
        if binary:
            tail += array.tobytes()
            entry["parameters"] = {"binary_data_size": array.nbytes}
        else:
            entry["data"] = array.ravel().tolist()
        # Before the model's inputs or behind them.
        entries.append(entry)
    entries.insert(len(entries) // 2, {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]})
    body = json.dumps({"inputs": entries, "outputs": [{"name": name} for name in outputs]}).encode()
    names = ("mean", *targets)
    length = len(body) if binary else None
    return decode_infer(body + tail, [X], names, ["mean"], length, targets=targets, lacking=LACKING)


def v2_binary(outputs, target=None, targets=ONE):
    return v2(outputs, target, targets, binary=True)


EVERY = pytest.mark.parametrize("read", [plain, v2, v2_binary])


@EVERY
def test_a_target_stands_beside_the_inputs(read):
    request = read(["log_prob", "mean"], [2, 0])
    assert list(request.inputs) == ["x"]
    assert request.rows == 2
    assert list(request.targets) == ["target"]
    assert request.targets["target"].dtype == np.int64
    assert request.targets["target"].tolist() == [2, 0]
    assert read(["mean"]).targets == InferRequest(None, {}, (), 1).targets == {}


@EVERY
def test_of_several_each_is_named(read):
    both = {"b.target": [[1, 2], [3, 4]], "a.target": [5, 6]}
    request = read(["a.log_prob", "b.log_prob"], both, TWO)
    assert {name: array.tolist() for name, array in request.targets.items()} == both
    assert list(read(["b.log_prob"], {"b.target": [[1, 2], [3, 4]]}, TWO).targets) == ["b.target"]


@EVERY
@pytest.mark.parametrize(
    ("outputs", "target", "text"),
    [
        (["log_prob"], None, r"output 'log_prob' must come with input 'target' of the shape \[batch\]"),
        (["mean"], [2, 0], "input 'target' must come with output 'log_prob' asked for, which it is for"),
        (["log_prob"], [2, 0, 1], "input 'target' must have 2 rows, as the inputs have, however: 3"),
        (["log_prob"], [[2, 0]], "input 'target' must "),
        (["abstain"], None, "output 'abstain' is not there: abstain was not fitted: fit it"),
    ],
)
def test_what_does_not_go_together_is_refused(read, outputs, target, text):
    with pytest.raises(BadRequest, match=text):
        read(outputs, target)


@EVERY
def test_a_target_too_many_of_several_is_refused(read):
    with pytest.raises(BadRequest, match=r"input 'a\.target' must come with output 'a\.log_prob'"):
        read(["b.log_prob"], {"b.target": [[1, 2], [3, 4]], "a.target": [5, 6]}, TWO)


def test_a_model_without_targets_takes_none():
    with pytest.raises(BadRequest, match="target must be left out: no output of this model is about a target"):
        plain(["mean"], [1, 2], {})
    with pytest.raises(BadRequest, match="input must have a name that is one of 'x'"):
        decode_infer(json.dumps({"inputs": [{"name": "target"}]}).encode(), [X], ["mean"], ["mean"])
    with pytest.raises(BadRequest, match=r"target must be an object with a list for each of 'a\.target', 'b\.target'"):
        plain(["a.log_prob"], [1, 2], TWO)


def test_what_is_lacking_is_told_before_what_there_is():
    with pytest.raises(BadRequest, match="output 'abstain' is not there"):
        check_output_name("abstain", ["mean"], [], LACKING)
    with pytest.raises(BadRequest, match="output must be one of 'mean', however: 'other'"):
        check_output_name("other", ["mean"], [], LACKING)
