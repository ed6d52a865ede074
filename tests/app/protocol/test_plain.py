import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from app.errors import BadRequest
from app.protocol.datatypes import DATATYPES
from app.protocol.plain import decode_predict, encode_predict
from app.protocol.request import InferRequest, Options, Question, RequestedOutput
from app.protocol.tensors import TensorSpec

X = TensorSpec("x", "FP32", (-1, 2))
MASK = TensorSpec("mask", "BOOL", (-1,))
OUTPUTS = ("mean", "std", "label")


def decode(document, specs=(X,)):
    return decode_predict(json.dumps(document).encode(), specs, OUTPUTS, ["mean", "label"])


def test_the_least_that_one_can_send():
    request = decode({"inputs": [[1, 2], [3, 4.5]]})
    assert request.inputs["x"].dtype == np.float32
    assert request.inputs["x"].tolist() == [[1, 2], [3, 4.5]]
    assert request.rows == 2
    assert request.outputs == (RequestedOutput("mean"), RequestedOutput("label"))
    assert (request.id, request.options) == (None, Options())


def test_all_that_one_can_send():
    request = decode(
        {
            "inputs": {"mask": [True, False], "x": [[1, 2], [3, 4]]},
            "outputs": ["std", "mean"],
            "id": "a-1",
            "parameters": {"members": 8},
        },
        [X, MASK],
    )
    assert list(request.inputs) == ["x", "mask"]
    assert request.inputs["mask"].tolist() == [True, False]
    assert request.outputs == (RequestedOutput("std"), RequestedOutput("mean"))
    assert (request.id, request.options, request.rows) == ("a-1", Options(Question(members=8)), 2)


def test_one_input_may_be_named():
    assert decode({"inputs": {"x": [[1, 2]]}}).inputs["x"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("document", "specs", "message"),
    [
        ({}, [X], r"inputs must be a list of rows, such as \[\[\.\.\.\], \.\.\.\], however: null"),
        (
            {"input": [[1, 2]]},
            [X],
            "keys must be among 'inputs', 'outputs', 'id', 'parameters', 'target', however: 'input'",
        ),
        ({"inputs": [[1, 2]]}, [X, MASK], "an object with a list for each of 'x', 'mask', however: a list"),
        ({"inputs": {"x": [[1, 2]]}}, [X, MASK], "all inputs of the model must be given, however: 'mask' missing"),
        ({"inputs": {"y": [[1, 2]]}}, [X], "inputs must be named among 'x', however: 'y'"),
        ({"inputs": {}}, [X], "'x' missing"),
        ({"inputs": [1, 2]}, [X], "a single row is a batch of one"),
        ({"inputs": []}, [X], "input 'x' must have at least one row"),
        ({"inputs": [[1, True]]}, [X], r"element \[0\]\[1\] is true"),
        ({"inputs": [[1, False]]}, [X], r"element \[0\]\[1\] is false"),
        ({"inputs": {"x": None}}, [X], "input 'x' must have data that is a list of numbers, however: null"),
        ({"inputs": {"x": [[1, 2]], "mask": [True, True]}}, [X, MASK], "'x' has 1 and 'mask' has 2"),
        ({"inputs": [[1, 2]], "outputs": "mean"}, [X], "outputs must be a list of names among 'mean', 'std', 'label'"),
        ({"inputs": [[1, 2]], "outputs": ["var"]}, [X], "output must be one of .* however: 'var'"),
        ({"inputs": [[1, 2]], "outputs": [{"name": "mean"}]}, [X], "name must be text, however: an object"),
        ({"inputs": [[1, 2]], "outputs": ["mean", "mean"]}, [X], "'mean' must be asked for only once"),
        ({"inputs": [[1, 2]], "id": "a b"}, [X], "id must be"),
        ({"inputs": [[1, 2]], "parameters": 3}, [X], "parameters must be an object"),
        ({"inputs": [[1, 2]], "parameters": {"member": 3}}, [X], "parameters must be among .* however: 'member'"),
        ({"inputs": [[1, 2]], "parameters": {"members": 0}}, [X], "parameters.members must be a whole number from 1"),
        ({"inputs": [[1, 2]]}, [TensorSpec("h", "FP16", (-1, 2))], "'h' is FP16, which travels in binary only"),
    ],
)
def test_what_is_wrong_is_named(document, specs, message):
    with pytest.raises(BadRequest, match=message):
        decode(document, specs)


def test_an_answer():
    request = InferRequest("r-1", {}, (RequestedOutput("label"), RequestedOutput("mean")), 2)
    arrays = {"mean": np.array([[0.1, 0.9], [0.5, 0.5]], dtype=np.float32), "label": np.array([1, 0])}
    body = encode_predict("m", "3", request, arrays, {"members": 8, "seed": 1})
    assert json.loads(body) == {
        "model": "m",
        "version": "3",
        "members": 8,
        "seed": 1,
        "id": "r-1",
        "outputs": {"label": [1, 0], "mean": [[0.1, 0.9], [0.5, 0.5]]},
    }
    assert list(json.loads(body)["outputs"]) == ["label", "mean"]


def test_an_answer_without_id_and_details():
    request = InferRequest(None, {}, (RequestedOutput("mean"),), 1)
    body = encode_predict("m", "3", request, {"mean": np.array([[0.5]])}, {})
    assert json.loads(body) == {"model": "m", "version": "3", "outputs": {"mean": [[0.5]]}}


def test_outputs_that_are_not_finite_are_listed():
    request = InferRequest(None, {}, tuple(map(RequestedOutput, ("mean", "std"))), 1)
    body = encode_predict("m", "3", request, {"mean": np.array([[1.5]]), "std": np.array([[np.nan]])}, {})
    assert json.loads(body)["outputs"] == {"mean": [[1.5]], "std": [[None]]}
    assert json.loads(body)["non_finite"] == ["std"]


IN_JSON = [name for name, datatype in DATATYPES.items() if datatype.in_json]


@given(st.lists(st.sampled_from(IN_JSON), min_size=1, max_size=4), st.integers(1, 3), st.data())
def test_an_answer_read_as_a_request_gives_the_same_arrays(datatypes, rows, data):
    arrays, specs = {}, []
    for index, name in enumerate(datatypes):
        dtype = DATATYPES[name].dtype
        shape = (rows, *data.draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)))
        finite = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
        arrays[f"t{index}"] = data.draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **finite)))
        specs.append(TensorSpec(f"t{index}", name, (-1, *shape[1:])))
    request = InferRequest("r-1", {}, tuple(map(RequestedOutput, arrays)), rows)
    answer = json.loads(encode_predict("m", "3", request, arrays, {}))
    again = decode({"inputs": answer["outputs"], "id": answer["id"]}, specs)
    assert (again.id, again.rows, list(again.inputs)) == ("r-1", rows, list(arrays))
    for name, array in arrays.items():
        assert (again.inputs[name].dtype, again.inputs[name].shape) == (array.dtype, array.shape)
        assert again.inputs[name].tobytes() == array.tobytes()
