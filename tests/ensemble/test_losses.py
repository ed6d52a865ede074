"""Losses beside PyTorch's own, alone and for many members at once."""

import pytest
import torch
from torch.distributions import Normal
from torch.nn import functional as F

import ensemble
from ensemble.losses import negative_log_likelihood
from ensemble.tasks import Head, heads

HEAD = [Head("output", (0,), (), 0)]


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def test_classification_is_cross_entropy_of_every_target():
    loss = negative_log_likelihood("classification", [Head("output", (0,), (7, 5), 0)])
    logits, targets = draw(6, 7, 5), torch.arange(42).reshape(6, 7) % 5
    want = F.cross_entropy(logits.movedim(-1, 1), targets, reduction="none")
    assert torch.allclose(loss([logits], targets), want, atol=1e-6)


def test_gaussian_is_the_normal_density_whatever_the_order_of_outputs(made):
    outputs = made("gaussian").program.outputs
    assert [spec.name for spec in outputs] == ["variance", "mean"]
    loss = negative_log_likelihood("gaussian", heads("gaussian", outputs))
    mean, variance, targets = draw(9), draw(9).exp(), draw(9) + 1
    want = F.gaussian_nll_loss(mean, targets, variance, full=True, reduction="none", eps=0)
    assert torch.allclose(loss([variance, mean], targets), want, atol=1e-6)


def test_regression_has_a_noise_variance_or_the_squared_error():
    mean, targets = draw(5, 2), draw(5, 2) + 1
    want = -Normal(mean, 0.3**0.5).log_prob(targets)
    assert torch.allclose(negative_log_likelihood("regression", HEAD, 0.3)([mean], targets), want, atol=1e-5)
    squared = F.mse_loss(mean, targets, reduction="none")
    assert torch.allclose(negative_log_likelihood("regression", HEAD)([mean], targets), squared)


def test_the_batch_may_be_another_dimension():
    loss = negative_log_likelihood("regression", [Head("h", (1,), (2, 5), 1)])
    targets = draw(6, 2, 5)
    assert torch.allclose(loss([draw(1), targets.movedim(0, 1) + 2], targets), torch.full((6, 2, 5), 4.0))


def test_half_precision_is_computed_in_float32():
    loss = negative_log_likelihood("classification", HEAD)
    logits, targets = draw(8, 3).bfloat16(), torch.arange(8) % 3
    assert loss([logits], targets).dtype == torch.float32
    assert torch.equal(loss([logits], targets), loss([logits.float()], targets))


def test_a_variance_of_zero_has_a_number():
    loss = negative_log_likelihood("gaussian", [Head("output", (0, 1), (), 0)])
    assert loss([torch.ones(1), torch.zeros(1)], torch.ones(1)).isfinite().all()


@pytest.mark.parametrize("task", ["classification", "regression", "gaussian"])
def test_gradients_of_many_members_are_those_of_each(task):
    loss = negative_log_likelihood(task, [Head("output", (0, 1), (3,), 0)], noise_variance=0.5)
    first, second = draw(4, 6, 3), draw(4, 6, 3, 1).squeeze(-1).exp()
    targets = torch.arange(6) % 3 if task == "classification" else draw(6, 3)

    def mean(outputs):
        return loss(outputs, targets).mean()

    together = torch.vmap(torch.func.grad(mean))((first, second))
    for member in range(4):
        own = [first[member].clone().requires_grad_(), second[member].clone().requires_grad_()]
        mean(own).backward()
        assert torch.allclose(together[0][member], own[0].grad, atol=1e-6)
        if task == "gaussian":
            assert torch.allclose(together[1][member], own[1].grad, atol=1e-5)


def test_without_a_likelihood_it_says_to_give_a_loss(made):
    with pytest.raises(ensemble.RecipeError, match="have no likelihood: name the task, or give loss="):
        negative_log_likelihood("raw", HEAD)
    several = heads("regression", made("many_outputs").program.outputs)
    with pytest.raises(ensemble.RecipeError, match=r"makes 2 predictions \(policy, value\): give loss="):
        negative_log_likelihood("regression", several)
