import json

import numpy as np
import pytest

from app.errors import BadRequest, PayloadTooLarge
from app.protocol import Bringable, Perturbed, TensorSpec, WeightSpec, decode_infer, decode_predict

X = TensorSpec("x", "FP32", (-1, 2))
WEIGHTS = {
    "fc.weight": WeightSpec("fc.weight", "FP32", (-1, 3, 2)),
    "fc.bias": WeightSpec("fc.bias", "FP32", (-1, 3)),
    "conv": WeightSpec("conv", "FP32", (-1, 4, 2, 3)),
    "scale": WeightSpec("scale", "FP64", (-1,)),
}
BRINGS = Bringable(frozenset({"scale", "rank", "include"}), 8, WEIGHTS, 1000)
INPUT = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 2]}


def v2(parameters, *tensors, brings=BRINGS, tail=b""):
    head = json.dumps({"inputs": [INPUT, *tensors], "parameters": parameters}).encode()
    return decode_infer(head + tail, (X,), ("mean",), ("mean",), len(head) if tail else None, brings=brings)


def plain(parameters, brings=BRINGS):
    body = json.dumps({"inputs": [[1, 2]], "parameters": parameters}).encode()
    return decode_predict(body, (X,), ("mean",), ("mean",), most_members=6, brings=brings)


def weight(name, shape, data, datatype="FP32"):
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def test_a_perturbation_stands_among_the_parameters_of_v2_and_under_its_name_in_the_plain_api():
    given = {"recipe": "low_rank", "scale": 0.5, "rank": 2, "seed": 7, "members": 8}
    want = Perturbed("low_rank", (("rank", 2), ("scale", 0.5)), 7, 8)
    asked = v2({**given, "priority": 1, "unknown": [1]})
    assert asked.perturbation == want
    # They are the perturbation's, and the model has fewer.
    assert asked.options.question.members is None
    assert asked.options.priority == 4
    assert plain({"perturbation": given}).perturbation == want
    assert plain({"perturbation": {"seed": 3}}).perturbation == Perturbed(seed=3)
    assert v2({"seed": 3}).perturbation == Perturbed(seed=3)


def test_a_request_without_one_is_as_before():
    assert v2({"members": 4}).perturbation is None
    assert v2({"members": 4}).options.question.members == 4
    assert v2({"seed": None, "recipe": None}).perturbation is None
    assert plain({"perturbation": None}).perturbation is None
    # Where nothing is known of a model, these are parameters that mean nothing.
    assert v2({"seed": 3, "scale": "x"}, brings=Bringable()).perturbation is None


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"recipe": 3}, "recipe must be the name of a recipe, however: 3"),
        ({"seed": -1}, "seed must be a whole number from 0 to 9223372036854775807, however: -1"),
        ({"seed": 2**63}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number.*however: true"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": 1, "members": 9}, "members must be a whole number from 1 to 8, however: 9"),
        ({"seed": 1, "members": 0}, "members must be a whole number from 1 to 8, however: 0"),
        ({"scale": [1]}, "scale must be a number, a short text, true or false"),
        ({"scale": "x" * 300}, "scale must be a number, a short text, true or false"),
    ],
)
def test_values_that_cannot_be_are_refused(parameters, message):
    with pytest.raises(BadRequest, match=f"parameters.{message}"):
        v2(parameters)
    with pytest.raises(BadRequest, match=f"parameters.perturbation.{message}"):
        plain({"perturbation": parameters})


def test_the_plain_api_refuses_what_it_does_not_know():
    with pytest.raises(BadRequest, match="may hold 'include', 'members', 'rank', 'recipe', 'scale', 'seed', however"):
        plain({"perturbation": {"sead": 3}})
    with pytest.raises(BadRequest, match="must be an object, however: 3"):
        plain({"perturbation": 3})
    with pytest.raises(BadRequest, match="members must be left out beside perturbation"):
        plain({"perturbation": {"seed": 3}, "members": 4})
    with pytest.raises(BadRequest, match="however: 'perturbation'"):
        plain({"perturbation": {"seed": 3}}, brings=Bringable())


def test_where_perturbations_are_not_permitted_that_is_said():
    brings = Bringable(BRINGS.settings, 0, refusals={"perturbation": "not here"})
    for ask in (lambda: v2({"seed": 3}, brings=brings), lambda: plain({"perturbation": {"seed": 3}}, brings)):
        with pytest.raises(BadRequest, match="not here"):
            ask()
    assert v2({"members": 4}, brings=brings).perturbation is None


@pytest.mark.parametrize(
    ("tensor", "want"),
    [
        (weight("fc.bias", [3], [1, 2, 3]), np.array([1, 2, 3], np.float32)),
        (weight("fc.bias", [2, 3], [[1, 2, 3], [4, 5, 6]]), np.array([[1, 2, 3], [4, 5, 6]], np.float32)),
        (weight("fc.bias", [1, 3], [1, 2, 3]), np.array([[1, 2, 3]], np.float32)),
        (weight("fc.weight", [3, 2], [[1, 2], [3, 4], [5, 6]]), np.arange(1, 7, dtype=np.float32).reshape(3, 2)),
        (weight("fc.weight", [3, 2], [1, 2, 3, 4, 5, 6]), np.arange(1, 7, dtype=np.float32).reshape(3, 2)),
        (weight("scale", [], [0.5], "FP64"), np.array(0.5)),
        (weight("scale", [2], [0.5, 1], "FP64"), np.array([0.5, 1.0])),
        (weight("conv.right", [6, 2], list(range(12))), np.arange(12, dtype=np.float32).reshape(6, 2)),
        (weight("conv.left", [2, 4, 1], list(range(8))), np.arange(8, dtype=np.float32).reshape(2, 4, 1)),
    ],
)
def test_a_weight_has_its_own_shape_or_the_members_before_it_and_no_batch(tensor, want):
    asked = v2({}, tensor)
    (got,) = asked.weights.values()
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)
    assert got.shape == want.shape
    assert asked.rows == 1
    assert list(asked.inputs) == ["x"]
    raw = {"name": tensor["name"], "shape": tensor["shape"], "datatype": tensor["datatype"]}
    raw["parameters"] = {"binary_data_size": want.nbytes}
    (binary,) = v2({}, raw, tail=want.tobytes()).weights.values()
    np.testing.assert_array_equal(binary, want)
    assert binary.shape == want.shape


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            weight("fc.bias", [4], [1, 2, 3, 4]),
            r"'fc.bias' must have the shape \[3\] or \[members, 3\], however: \[4\]",
        ),
        (weight("fc.bias", [0, 3], []), r"however: \[0, 3\]"),
        (weight("fc.bias", ["3"], [1, 2, 3]), "however: .*the text '3'"),
        (
            weight("fc.bias", [3], [1, 2, 3], "FP64"),
            "weight 'fc.bias' must have datatype FP32, however: the text 'FP64'",
        ),
        (weight("fc.bias", [3], [1, 2]), "must have 3 numbers"),
        (weight("fc.bias", [3], [1, 2, "x"]), "weight 'fc.bias' must"),
        (weight("fc.bias", [3], [1, 2, True]), "weight 'fc.bias' must"),
        (weight("fc.weight", [3, 2], [[1, 2, 3], [4, 5, 6]]), "flat or nested as its shape"),
        (weight("fc.bias.left", [3, 1], [1, 2, 3]), "'x'; or be a weight of the model, or a factor of one, however"),
        (weight("fc.weight.left", [2, 1], [1, 2]), r"the shape \[3, rank\] or \[members, 3, rank\], however: \[2, 1\]"),
        (weight("nothing", [3], [1, 2, 3]), "however: the text 'nothing'"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tensor, message):
    with pytest.raises(BadRequest, match=message):
        v2({}, tensor)


def test_a_weight_comes_once():
    with pytest.raises(BadRequest, match=r"weight 'fc\.bias' must be given only once"):
        v2({}, *[weight("fc.bias", [3], [1, 2, 3])] * 2)


def test_all_weights_of_a_request_together_have_a_bound():
    many = weight("fc.bias", [42, 3], [0] * 126)
    assert v2({}, many, weight("conv", [4, 2, 3], [0] * 24)).weights.keys() == {"fc.bias", "conv"}
    with pytest.raises(PayloadTooLarge, match=r"1000 bytes at most; with weight 'fc\.weight' they have 1008"):
        v2({}, many, weight("fc.weight", [21, 3, 2], [0] * 126))


def test_where_weights_are_not_permitted_that_is_said_to_whoever_sends_one():
    brings = Bringable(BRINGS.settings, 8, refusals={"weights": "not here"}, named=frozenset(WEIGHTS))
    for name in ("fc.bias", "fc.weight.left"):
        with pytest.raises(BadRequest, match=f"one of 'x', however: the text '{name}'; not here"):
            v2({}, weight(name, [3], [1, 2, 3]), brings=brings)
    with pytest.raises(BadRequest, match=r"however: the text 'y'$"):
        v2({}, weight("y", [3], [1, 2, 3]), brings=brings)


def test_an_input_of_the_model_goes_before_a_weight_of_the_same_name():
    brings = Bringable(weights={"x": WeightSpec("x", "FP32", (-1, 5))}, weight_bytes=1000)
    assert list(v2({}, brings=brings).inputs) == ["x"]
