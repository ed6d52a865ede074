"""Fine-tuned members as a recipe: what they start as, what is kept of them, what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ensemble
from ensemble.data import Data
from ensemble.losses import negative_log_likelihood
from ensemble.perturbation import Recipe
from ensemble.perturbation.adapted import Adapted, _near
from ensemble.structured import LEFT, RIGHT
from ensemble.tasks import heads
from ensemble.training import Schedule, train
from tests.scenarios import SCENARIOS, floats, mlp, seeded

X = floats(6)(96)
Y = (X[:, :4] + 0.5 * floats(4)(96)).argmax(-1)


def make(recipe, model=None, *, members=4, seed=3, data=(X, Y), task="classification", **options):
    model = seeded(SCENARIOS["mlp"]) if model is None else model
    return ensemble.perturb(model, recipe, members=members, seed=seed, data=data, task=task, **options)


def loss_of(ens, member):
    model = mlp().eval()
    model.load_state_dict(ens.member(member))
    with torch.no_grad():
        return float(F.cross_entropy(model(X), Y))


def same(first, second):
    return all(torch.equal(tensor, second.members.stacked[name]) for name, tensor in first.members.stacked.items())


def test_every_member_has_learned_and_learned_something_else():
    start = ensemble.Gaussian(scale=0.1)
    ens = make(Adapted(steps=60, lr=0.02, start=start))
    before = make(start)
    for member in range(4):
        assert loss_of(ens, member) < 0.9 * loss_of(before, member)
    assert float(ens.predict(X).mutual_information.mean()) > 1e-4


def test_the_loop_is_that_of_training_from_the_start_it_names():
    start = ensemble.Gaussian(scale=0.1)
    recipe = Adapted(
        steps=30, lr=0.02, start=start, batch_size=16, weight_decay=0.1, early_stopping=True, check_every=7
    )
    ens, before = make(recipe), make(start)
    program, members = before.program, before.members
    loss = negative_log_likelihood("classification", heads("classification", program.outputs))
    schedule = Schedule(30, 0.02, 16, 0.1, 7)
    want = train(program, members, Data((X,), Y), loss, schedule, seed=3, bootstrap=True, early_stopping=True)
    assert all(torch.equal(tensor, ens.members.stacked[name]) for name, tensor in want.members.stacked.items())


def test_a_member_is_the_same_in_any_number_and_another_of_another_seed():
    recipe = Adapted(steps=20, lr=0.02, start=ensemble.Gaussian(scale=0.1))
    many, few, other = make(recipe, members=7), make(recipe, members=3), make(recipe, seed=4)
    for name, tensor in few.members.stacked.items():
        assert torch.allclose(tensor, many.members.stacked[name][:3], atol=1e-6)
        assert not torch.allclose(tensor, other.members.stacked[name][:3], atol=1e-3)


def test_no_steps_are_the_start():
    start = ensemble.Gaussian(scale=0.1, exclude="*.bias")
    before, ens = make(start), make(Adapted(steps=0, start=start))
    assert same(before, ens)
    assert all(torch.equal(t, before.member(2)[name]) for name, t in ens.member(2).items())


def test_by_default_the_rows_are_gone_through_ten_times():
    recipe = Adapted(lr=0.01, batch_size=20)
    ens = make(recipe)
    assert ens.origin.recipe == Adapted(steps=40, lr=0.01, batch_size=20)
    assert same(ens, make(ens.origin.recipe))


@pytest.mark.parametrize("start", [None, ensemble.LowRank(scale=0.2)])
def test_with_a_rank_factors_are_trained_and_kept(start, tmp_path):
    model = seeded(SCENARIOS["mlp"])
    ens = make(Adapted(steps=60, lr=0.02, rank=2, start=start), model)
    trained = model.state_dict()
    assert ens.members.factored.keys() == {"0.weight", "3.weight"}
    assert ens.members.stacked["0.weight" + LEFT].shape == (4, 16, 2)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in ens.members.shared.items())
    nothing = make(Adapted(steps=0, rank=2, start=start), model)
    before = make(start, model) if start else nothing
    for member in range(4):
        difference = ens.member(member)["0.weight"] - trained["0.weight"]
        assert torch.linalg.matrix_rank(difference, atol=1e-4) == 2
        assert loss_of(ens, member) < 0.9 * loss_of(nothing, member)
        for name, tensor in nothing.member(member).items():
            want = before.member(member)[name] if start else trained[name]
            assert torch.allclose(tensor, want, atol=1e-6)
    right = nothing.members.stacked["0.weight" + RIGHT]
    assert not torch.equal(right[0], right[1])
    ens.save(tmp_path / "m")
    again = ensemble.load(tmp_path / "m")
    assert again.origin.recipe == Adapted(steps=60, lr=0.02, rank=2, start=start)
    assert torch.equal(again(X), ens(X))


def test_weights_that_are_used_in_no_product_are_trained_in_full():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.fc = nn.Parameter(torch.ones(1, 6)), nn.Linear(6, 4)

        def forward(self, x):
            return self.fc(x * self.scale)

    ens = make(Adapted(steps=5, rank=1), Table())
    assert ens.members.factored.keys() == {"fc.weight"}
    assert ens.members.stacked["scale"].shape == (4, 1, 6)


def test_only_what_is_included_is_trained():
    ens = make(Adapted(steps=5, include="3.*", start=ensemble.Gaussian(scale=0.1)))
    assert ens.members.stacked.keys() == {"3.weight", "3.bias"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_trained_in_float32(dtype):
    recipe = Adapted(steps=40, lr=1e-3)
    half = make(recipe, seeded(SCENARIOS["mlp"]).to(dtype), data=(X.to(dtype), Y))
    full = make(recipe, seeded(SCENARIOS["mlp"]).to(dtype).float(), data=(X.to(dtype).float(), Y))
    for name, tensor in full.members.stacked.items():
        assert half.members.stacked[name].dtype == dtype
        assert torch.equal(half.members.stacked[name], tensor.to(dtype))


def squared(outputs, targets):
    """A loss of a user's own."""
    return (outputs[0] - targets).square()


def test_a_loss_of_ones_own_is_remembered_by_its_name(tmp_path):
    targets = X @ torch.ones(6, 4)
    ens = make(Adapted(steps=40, lr=0.02, loss=squared), data=(X, targets), task="raw")
    usual = make(Adapted(steps=40, lr=0.02), data=(X, targets), task="regression")
    assert same(ens, usual)
    ens.save(tmp_path / "m")
    loaded = ensemble.load(tmp_path / "m").origin.recipe
    assert loaded.settings() == ens.origin.recipe.settings()
    assert loaded.loss == f"{__name__}.squared"
    with pytest.raises(ensemble.RecipeError, match=r"squared' is the name of a function .* Give loss="):
        make(loaded, data=(X, targets), task="regression")


def test_a_regression_without_noise_minimises_the_squared_error():
    model, targets = nn.Linear(6, 1), X[:, :1].sin()
    quiet, plain = (
        make(Adapted(steps=10), model, data=(X, targets), task="regression", noise_variance=variance)
        for variance in (0.0, None)
    )
    assert same(quiet, plain)


def test_data_are_fetched_row_by_row_where_there_is_no_room(monkeypatch):
    data, elsewhere = Data((X,), Y), torch.device("meta")
    assert _near(data, elsewhere).inputs[0].device == elsewhere
    monkeypatch.setattr("ensemble.perturbation.adapted.available", lambda device: 3 * data.nbytes)
    assert _near(data, elsewhere) is data


def test_a_time_budget_is_kept_as_a_number_of_steps():
    ens = make(Adapted(steps=10**6, lr=1e-3, seconds=0.5))
    kept = ens.origin.recipe
    assert kept.seconds is None
    assert 1 <= kept.steps < 10**6
    assert same(ens, make(kept))


def test_progress_reaches_the_end():
    seen = []
    make(Adapted(steps=20), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (20, 20)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_settings_come_back():
    recipe = Adapted(steps=7, start=ensemble.LowRank(scale=0.1, rank=2), rank=3, early_stopping=True, patience=2,
                     seconds=3, include=("a.*", "b"))  # fmt: skip
    assert Adapted.from_settings(recipe.settings()) == recipe
    assert Recipe.known["adapted"] is Adapted
    assert all(isinstance(Adapted(**settings), Adapted) for settings in Adapted.candidates())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"steps": -1}, "steps must be an integer of at least 0"),
        ({"lr": -1.0}, "lr must be a finite number > 0"),
        ({"bootstrap": "yes"}, "bootstrap must be True or False"),
        ({"early_stopping": 1}, "early_stopping must be True or False"),
        ({"start": 0.1}, r"start must be a recipe such as Gaussian\(scale=0.1\)"),
        ({"start": Adapted()}, "start must be a recipe"),
        ({"rank": 0}, "rank must be an integer between 1 and 256"),
        ({"patience": 3, "early_stopping": False}, "patience needs early_stopping=True"),
        ({"seconds": 0}, "seconds must be a finite number > 0"),
        ({"loss": 3}, "loss must be a function of outputs and targets"),
        ({"include": (3,)}, "include must be name patterns"),
    ],
)
def test_settings_out_of_range(settings, match):
    with pytest.raises(ensemble.RecipeError, match=match):
        Adapted(**settings)


@pytest.mark.parametrize(
    ("recipe", "options", "match"),
    [
        (Adapted(steps=2), {"data": X}, r"adapted learns from examples: give data=\(inputs, targets\)"),
        (Adapted(steps=2), {"data": None, "example": X}, "adapted learns from examples"),
        (Adapted(steps=2), {"task": "raw"}, "have no likelihood: name the task, or give loss="),
        (Adapted(steps=2, rank=1, start=ensemble.Gaussian(scale=0.1)), {}, "With rank=1 members start from"),
        (Adapted(steps=2, rank=1, start=ensemble.LowRank(scale=0.1, rank=2)), {}, "of at most that rank"),
        (Adapted(steps=2, rank=1, start=ensemble.Rank1(scale=0.1)), {}, "With rank=1 members start from"),
        (Adapted(steps=2, include="no.such"), {}, "matches none of this model's weights"),
        (Adapted(steps=99, lr=1e30), {}, "Training diverged: .* Lower lr"),
    ],
)
def test_what_cannot_be_made_is_refused(recipe, options, match):
    with pytest.raises(ensemble.RecipeError, match=match):
        make(recipe, **options)
