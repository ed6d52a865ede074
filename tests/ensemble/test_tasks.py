import pytest
import torch

import ensemble
from ensemble import ModelError
from ensemble.program.program import TensorSpec
from ensemble.tasks import Head, heads, sample
from tests.scenarios import SCENARIOS, seeded

F32 = torch.float32


def spec(name, *shape, dtype=F32):
    return TensorSpec(name, dtype, shape)


@pytest.mark.parametrize(
    ("task", "outputs", "text"),
    [
        ("classification", [spec("y", -1)], r"'y' has shape \[-1\].*torch.stack"),
        ("classification", [spec("y", -1, 1)], "at least two classes"),
        ("classification", [spec("y", -1, 3, dtype=torch.int64)], "is torch.int64; the task classification needs"),
        ("regression", [spec("y", -1, dtype=torch.bool)], "needs floating point"),
        ("gaussian", [spec("y", -1)], r"returns \(mean, variance\) of equal shape"),
        ("gaussian", [spec("a", -1), spec("b", -1, 2)], "of equal shape"),
        ("raw", [spec("y", -1, dtype=torch.complex64)], "is complex"),
        ("other", [spec("y", -1)], "task must be one of classification, regression, gaussian, raw, however: 'other'"),
    ],
)
def test_outputs_that_do_not_fit_a_task_are_refused(task, outputs, text):
    with pytest.raises(ModelError, match=text):
        heads(task, outputs)


def test_a_gaussian_head_is_found_by_name_or_by_position():
    by_name = heads("gaussian", [spec("variance", -1), spec("mean", -1)])
    assert by_name == [Head("output", (1, 0), (), 0)]
    assert heads("gaussian", [spec("output_0", -1, 2), spec("output_1", -1, 2)]) == [Head("output", (0, 1), (2,), 0)]


def test_each_output_is_a_head():
    assert [h.name for h in heads("regression", [spec("a", -1), spec("b", 3, -1)])] == ["a", "b"]


def test_samples_have_the_batch_behind_the_members():
    head = heads("raw", [spec("h", 2, -1, 5)])[0]
    output = torch.arange(4 * 2 * 3 * 5).reshape(4, 2, 3, 5).to(torch.bfloat16)
    value = sample("raw", head, [output]).value
    assert value.shape == (4, 3, 2, 5)
    assert value.dtype == torch.float32
    assert torch.equal(value[1, 2, 0], output[1, 0, 2].float())


def test_classes_are_probabilities_with_the_variance_of_a_bernoulli_variable():
    head = heads("classification", [spec("y", -1, 3)])[0]
    logits = torch.randn(4, 2, 3, dtype=torch.float64)
    found = sample("classification", head, [logits])
    assert torch.allclose(found.value, logits.softmax(-1))
    assert torch.allclose(found.variance, found.value - found.value**2)
    assert found.value.dtype == torch.float64


def test_integer_and_boolean_outputs_have_statistics_of_the_raw_task(made):
    x = SCENARIOS["switch"].inputs(3)
    y, p = made("switch")(*x), made("switch").predict(*x)
    assert torch.allclose(p["output_1"].mean, y[1].float().mean(0))
    assert torch.allclose(p["output_2"].mean, y[2].float().mean(0))


def test_an_output_per_position_is_classified_per_position():
    scenario = SCENARIOS["tied"]
    ens = ensemble.perturb(
        seeded(scenario), ensemble.Gaussian(0.2), members=4, example=scenario.inputs(2), task="classification"
    )
    p = ens.predict(scenario.inputs(5))
    assert p.label.shape == (5, 3)
    assert p.mean.shape == (5, 3, 11)
    assert p.predictive_entropy.shape == (5, 3)
