import pytest
import torch
from torch import nn

import ensemble
from ensemble import Gaussian, LowRank
from ensemble.backends import BACKENDS, openvino, unrolled
from ensemble.backends.tracing import trace
from ensemble.planning.optimize import Step, missing, steps
from tests.ensemble.planning.test_runner import as_if_fastest
from tests.ensemble.test_structured import remade
from tests.reference import call, worst
from tests.scenarios import SCENARIOS, seeded

converts = pytest.mark.skipif(bool(openvino.missing(torch.device("cpu"))), reason="OpenVINO is not there")
CONVOLUTION = torch.ops.aten.convolution.default


def _steps(ens, rows=8):
    return [(step.rows, step.chunk) for step in steps(ens._runner, (rows,)) if step.kind == "unrolled"]


@converts
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_members_side_by_side_answer_as_their_modules_do(made, workshop, precision):
    scenario, ens = SCENARIOS["cnn"], remade(made("cnn"), Gaussian(scale=0.1), members=6)
    ens.measure((4,), seconds=0.1)
    as_if_fastest(ens, ens.compile(Step("unrolled", 4, 3, precision), workshop))
    assert [way.best.kind for way in ens.plan.ways] == ["unrolled"]
    states = [ens.member(index) for index in range(6)]
    for rows in (1, 4):
        inputs = scenario.inputs(rows)
        assert worst(call(ens, inputs), seeded(scenario), states, inputs) <= (1e-4 if precision == "float32" else 2e-2)


def test_each_member_has_convolutions_of_its_own_on_images_as_the_model_has_them(made):
    ens = remade(made("cnn"), Gaussian(scale=0.1), members=6)
    job = ens._runner.job("unrolled", ens.example(5), 3)
    graphs = {"openvino": trace(job)[0].graph, "unrolled": trace(job, side_by_side=True)[0].graph}
    found = {kind: graph.find_nodes(op="call_function", target=CONVOLUTION) for kind, graph in graphs.items()}
    assert len(found["unrolled"]) == 3 * len(found["openvino"]) > 0
    assert {node.args[-1] for node in found["unrolled"]} == {1}
    assert 3 in {node.args[-1] for node in found["openvino"]}
    assert {node.meta["val"].shape[0] for node in found["unrolled"]} == {5}


@converts
@pytest.mark.parametrize(
    ("members", "chunk"), [(1, 1), (6, 1), (16, 1), (17, 17), (24, 2), (128, 8), (1024, 64), (1022, None), (97, None)]
)
def test_there_are_few_graphs_of_not_too_many_members(made, members, chunk):
    ens = remade(made("cnn"), Gaussian(scale=0.1), members=members)
    assert _steps(ens) == ([] if chunk is None else [(8, chunk)])


@converts
def test_it_is_tried_where_members_have_convolutions_of_their_own(made):
    assert _steps(remade(made("cnn"), Gaussian(scale=0.1), members=6)) == [(8, 1)]
    assert _steps(remade(made("mlp"), Gaussian(scale=0.1), members=6)) == []
    # What members share would be computed for each.
    assert _steps(remade(made("cnn"), LowRank(scale=0.1), members=6)) == []
    assert _steps(remade(made("cnn"), Gaussian(scale=0.1, include=["head.*"]), members=6)) == []
    # Activations of so many rows would not fit.
    assert _steps(remade(made("cnn"), Gaussian(scale=0.1), members=6), rows=10**6) == []


@pytest.mark.parametrize(
    ("convolutions", "products", "mostly"), [(0, 3, False), (1, 0, True), (1, 2, True), (1, 3, False), (2, 4, True)]
)
def test_a_model_with_few_convolutions_among_its_products_is_no_convolutional_one(convolutions, products, mostly):
    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(convolutions)] + [nn.Linear(4, 4) for _ in range(products)]
    ens = ensemble.perturb(nn.Sequential(*layers), Gaussian(scale=0.1), members=2, example=torch.randn(2, 3, 4, 4))
    assert unrolled.convolves(ens.program.graph) == mostly


def test_one_package_is_missing_once(monkeypatch):
    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda _: None)
    found = missing(torch.device("cpu"))
    assert "openvino" in found
    assert "unrolled" not in found
    assert unrolled.missing(torch.device("cpu")) == found["openvino"]
    assert BACKENDS["unrolled"] is unrolled
