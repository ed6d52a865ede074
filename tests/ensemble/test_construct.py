import pytest
import torch
from torch import nn

import ensemble
from ensemble import ModelError, RecipeError
from tests.scenarios import SCENARIOS, mlp, seeded

X = torch.zeros(2, 6)


@pytest.mark.parametrize("members", [0, -1, 1.0, True, "3", 2**20 + 1, None])
def test_a_number_of_members_that_is_none_is_refused(members):
    with pytest.raises(RecipeError, match="members must be an integer between 1 and 1048576"):
        ensemble.perturb(mlp(), ensemble.Gaussian(0.1), members=members, example=X)


@pytest.mark.parametrize("seed", [-1, 2**63, 0.5, True, None])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(RecipeError, match="seed must be an integer between 0"):
        ensemble.perturb(mlp(), ensemble.Gaussian(0.1), members=2, seed=seed, example=X)


def test_one_member_and_the_largest_seed_are_fine():
    ens = ensemble.perturb(mlp(), ensemble.Gaussian(0.1), members=1, seed=2**63 - 1, example=X)
    assert ens(X).shape == (1, 2, 4)
    assert ens.predict(X).std.eq(0).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"task": "regress"}, "task must be one of classification, regression, gaussian, raw, however: 'regress'"),
        ({"task": "gaussian"}, r"returns \(mean, variance\)"),
        ({"task": "classification", "noise_variance": 1.0}, "noise_variance is for regression"),
        ({"task": "regression", "noise_variance": -1.0}, "must be ≥ 0, however: -1.0"),
        ({"task": "regression", "noise_variance": float("nan")}, "must be ≥ 0"),
        ({"task": "regression", "noise_variance": float("inf")}, "must be ≥ 0"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(options, text):
    with pytest.raises(ModelError, match=text):
        ensemble.perturb(mlp(), ensemble.Gaussian(0.1), members=2, example=X, **options)
    with pytest.raises(ModelError, match=text):
        ensemble.stack([mlp(), mlp()], example=X, **options)


def test_progress_counts_members_up_to_all():
    seen = []
    ensemble.perturb(mlp(), ensemble.Gaussian(0.1), members=9, example=X, progress=lambda *at: seen.append(at))
    assert seen[-1] == (9, 9)
    assert seen == sorted(seen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_dtype_is_that_of_the_drawn_weights_cast(dtype):
    model = seeded(SCENARIOS["mlp"])
    full = ensemble.perturb(model, ensemble.Gaussian(0.1), members=3, example=X)
    cast = ensemble.perturb(model, ensemble.Gaussian(0.1), members=3, example=X, dtype=dtype)
    assert cast.dtype == dtype
    for name, tensor in full.members.stacked.items():
        assert torch.equal(cast.members.stacked[name], tensor.to(dtype))
    assert cast(X).dtype == dtype


class Scaled(nn.Module):
    def __init__(self, factor, width=3):
        super().__init__()
        self.fc, self.factor = nn.Linear(6, width), factor

    def forward(self, x):
        return self.fc(x) * self.factor


class Rescaled(Scaled):
    pass


def test_models_that_cannot_be_stacked_are_refused_with_the_difference():
    same = mlp()
    for models, text in [
        ([mlp()], "at least two models, however: 1"),
        ([same, same], "have the same weights"),
        ([mlp(), nn.Sequential(nn.Linear(6, 4))], "differ in 3.bias, 3.weight"),
        ([Scaled(1), Scaled(1, 4)], r"'fc.weight' has shape \[4, 6\].*in model 1 and \[3, 6\]"),
        ([Scaled(1), Scaled(1).double()], r"float64\) in model 1"),
        ([Scaled(1), Rescaled(1)], "Model 1 is a Rescaled, model 0 a Scaled"),
    ]:
        with pytest.raises(ModelError, match=text):
            ensemble.stack(models, example=X)


@pytest.mark.parametrize("live", [False, True])
def test_models_that_differ_in_something_that_is_no_weight_are_refused(live):
    with pytest.raises(ModelError, match=r"Model 2 gives another 'output' than model 0.*not in the state dict"):
        ensemble.stack([Scaled(2.0), Scaled(2.0), Scaled(3.0)], example=torch.ones(2, 6), live=live)


def test_stacked_models_may_run_live():
    models = [seeded(SCENARIOS["mlp"], seed) for seed in range(3)]
    x = torch.randn(4, 6)
    live, exported = (ensemble.stack(models, example=x, live=live) for live in (True, False))
    assert torch.allclose(live(x), exported(x), atol=1e-6)


def test_an_ensemble_with_a_live_module_that_fails_later_is_refused_early():
    class Numpy(nn.Linear):
        def forward(self, x):
            return torch.from_numpy(super().forward(x).numpy())

    models = [Numpy(6, 2), Numpy(6, 2)]
    with pytest.raises(ModelError, match="does not run with float32 weights on the cpu"):
        ensemble.stack(models, example=X, live=True)
