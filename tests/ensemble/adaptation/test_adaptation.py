"""``ensemble.adapt`` against the loop of a textbook: plain autograd, one task and one member after the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import ensemble
from ensemble import InputError, ModelError, RecipeError
from ensemble.adaptation import members
from ensemble.members import Members
from tests.reference import call, tensors
from tests.scenarios import SCENARIOS

CPU = torch.device("cpu")
TASKS, SHOTS, ROWS = 3, 5, 4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).double()


X, Q = draw(TASKS, SHOTS, 2), draw(TASKS, ROWS, 2, seed=1)
Y, T = draw(TASKS, SHOTS, 3, seed=2), draw(TASKS, ROWS, 3, seed=3)


def unrolled(model, weights, x, y, loss, steps, lr, first_order=False, names=None):
    """Algorithm 1 of arXiv 1703.03400 for one task, by ``torch.autograd.grad``."""
    weights = dict(weights)
    for _ in range(steps):
        names = list(names or weights)
        value = loss(functional_call(model, weights, (x,)), y)
        gradients = torch.autograd.grad(value, [weights[n] for n in names], create_graph=not first_order)
        for name, gradient in zip(names, gradients, strict=True):
            rate = lr[name] if isinstance(lr, dict) else lr
            weights[name] = weights[name] - rate * gradient
    return weights


def meta_gradients(model, lr, first_order, loss):
    """Of the loss on the queries, in the first weights and the step sizes, by the textbook's loop."""
    parameters = dict(model.named_parameters())
    total = 0.0
    for task in range(TASKS):
        own = unrolled(model, parameters, X[task], Y[task], loss, 3, lr, first_order)
        total = total + loss(functional_call(model, own, (Q[task],)), T[task]) / TASKS
    wanted = [*parameters.values(), *(lr.values() if isinstance(lr, dict) else [])]
    return total, torch.autograd.grad(total, wanted)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_a_module_adapts_as_the_unrolled_loop_and_so_do_the_gradients_of_its_gradients(net, learned, first_order):
    # Step sizes of each parameter's own shape, one of them a number (Meta-SGD).
    sizes = {n: (0.05 + 0.1 * draw(*p.shape, seed=7).abs()).requires_grad_() for n, p in net.named_parameters()}
    sizes["2.bias"] = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    lr = sizes if learned else 0.1
    want, expected = meta_gradients(net, lr, first_order, F.mse_loss)
    adapted = ensemble.adapt(net, (X, Y), "mse", 3, lr, create_graph=True, first_order=first_order)
    loss = F.mse_loss(adapted(Q), T)
    got = torch.autograd.grad(loss, [*net.parameters(), *(sizes.values() if learned else [])])
    assert loss.item() == pytest.approx(want.item(), abs=1e-12)
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-6
        assert theirs.abs().max() > 1e-4
    for task in range(TASKS):
        own = unrolled(net, dict(net.named_parameters()), X[task], Y[task], F.mse_loss, 3, lr)
        for name, weight in own.items():
            assert (adapted.weights[name][task] - weight).abs().max() < 1e-12
        assert adapted.losses[task, 0].item() == pytest.approx(F.mse_loss(net(X[task]), Y[task]).item())
    assert adapted.losses.shape == (TASKS, 4)


def test_first_order_differs_from_second_order(net):
    gradients = []
    for first_order in (False, True):
        adapted = ensemble.adapt(net, (X, Y), "mse", 3, 0.1, create_graph=True, first_order=first_order)
        gradients.append(torch.autograd.grad(F.mse_loss(adapted(Q), T), net[0].weight)[0])
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3


def test_gradients_of_gradients_are_those_of_finite_differences(net):
    start = [p.detach().clone().requires_grad_() for p in net.parameters()]
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def meta_loss(lr, *weights):
        for p, w in zip(net.parameters(), weights, strict=True):
            assert p.shape == w.shape
        inner = Holder(net, weights)
        return F.mse_loss(ensemble.adapt(inner, (X, Y), "mse", 2, lr, create_graph=True)(Q), T)

    assert torch.autograd.gradcheck(meta_loss, (rate, *start))


class Holder(nn.Module):
    """The same net whose parameters are others' tensors, so that gradients are taken in those."""

    def __init__(self, net, weights):
        super().__init__()
        self.net = net
        self.given = dict(zip(dict(net.named_parameters()), weights, strict=True))

    def named_parameters(self, *args, **kwargs):
        return ((f"net.{name}", weight) for name, weight in self.given.items())

    def forward(self, x):
        return self.net(x)


def test_without_a_graph_nothing_is_kept_even_where_gradients_are_off(net):
    adapted = ensemble.adapt(net, (X, Y), "mse", 2, 0.1)
    assert not any(weight.requires_grad for weight in adapted.weights.values())
    with torch.no_grad():
        again = ensemble.adapt(net, (X, Y), "mse", 2, 0.1)
        graph = ensemble.adapt(net, (X, Y), "mse", 2, 0.1, create_graph=True)
    assert graph.weights["0.weight"].requires_grad
    for name, weight in adapted.weights.items():
        assert torch.equal(weight, again.weights[name])
        assert torch.allclose(weight, graph.weights[name])
    assert [p.grad for p in net.parameters()] == [None] * 4


def test_tasks_at_once_are_tasks_one_after_the_other(net):
    whole = ensemble.adapt(net, (X, Y), "mse", 3, 0.1)
    loop = ensemble.adapt(net, (X, Y), "mse", 3, 0.1, vectorised=False)
    alone = [ensemble.adapt(net, (X[t : t + 1], Y[t : t + 1]), "mse", 3, 0.1) for t in range(TASKS)]
    for name, weight in whole.weights.items():
        assert torch.allclose(weight, loop.weights[name], rtol=0, atol=1e-12)
        assert torch.allclose(weight, torch.cat([a.weights[name] for a in alone]), rtol=0, atol=1e-12)
    assert torch.allclose(whole(Q), loop(Q), rtol=0, atol=1e-12)
    assert torch.allclose(whole.losses, loop.losses)


def test_only_some_weights_of_a_module_adapt(net):
    adapted = ensemble.adapt(net, (X, Y), "mse", 2, 0.1, weights="2.*")
    assert set(adapted.weights) == {"2.weight", "2.bias"}
    own = unrolled(net, dict(net.named_parameters()), X[1], Y[1], F.mse_loss, 2, 0.1, names=["2.weight", "2.bias"])
    assert torch.allclose(adapted(Q)[1], functional_call(net, own, (Q[1],)))


class Named(nn.Module):
    """Two named inputs, mean and variance out; a weight is tied, dropout and a frozen buffer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.ones(2))

    def forward(self, a, b):
        hidden = self.second(self.first(a).tanh() + b + self.shift)
        return {"mean": hidden, "variance": F.softplus(hidden)}


def test_a_module_with_several_inputs_tied_weights_and_a_variance():
    torch.manual_seed(0)
    model = Named().double()
    a, b, y = draw(TASKS, SHOTS, 2), draw(TASKS, SHOTS, 2, seed=5), draw(TASKS, SHOTS, 2, seed=6)
    adapted = ensemble.adapt(model, ({"a": a, "b": b}, y), "gaussian_nll", 2, 0.05)
    assert "second.weight" not in adapted.weights

    def objective(weights):
        found = functional_call(model, weights, (a[0], b[0]))
        return F.gaussian_nll_loss(found["mean"], y[0], found["variance"], full=True)

    own = dict(model.named_parameters())
    for _ in range(2):
        gradients = torch.autograd.grad(objective(own), list(own.values()))
        own = {n: w - 0.05 * g for (n, w), g in zip(own.items(), gradients, strict=True)}
    for name, weight in own.items():
        assert torch.allclose(adapted.weights[name][0], weight, rtol=0, atol=1e-9)
    assert adapted(a, b)["mean"].shape == (TASKS, SHOTS, 2)
    assert adapted.losses[0, 2].item() == pytest.approx(objective(own).item())


# Ensembles.


def members_of(recipe, task="regression", width=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, width)).double()
    made = ensemble.perturb(model, recipe, members=4, example=draw(2, 2), task=task)
    return model, made


@pytest.mark.parametrize("recipe", [ensemble.Gaussian(0.2), ensemble.LowRank(0.2, rank=2), ensemble.Rank1(0.2)])
def test_each_member_of_an_ensemble_adapts_as_it_would_alone(recipe):
    model, made = members_of(recipe)
    adapted = ensemble.adapt(made, (X, Y), steps=3, lr=0.1)
    outputs = adapted(Q)
    assert outputs.shape == (TASKS, 4, ROWS, 3)
    for task in range(TASKS):
        for index in range(4):
            start = {n: w.clone().requires_grad_() for n, w in made.member(index).items()}
            own = unrolled(model, start, X[task], Y[task], F.mse_loss, 3, 0.1)
            assert torch.allclose(outputs[task, index], functional_call(model, own, (Q[task],)), rtol=0, atol=1e-6)
            for name, weight in own.items():
                assert torch.allclose(adapted.weights[name][task, index], weight, rtol=0, atol=1e-6)
    prediction = adapted.predict(Q, statistics=["mean", "std", "members"])
    assert torch.allclose(prediction.mean, outputs.mean(1).float(), atol=1e-6)
    assert torch.allclose(prediction.std, outputs.std(1, correction=0).float(), atol=1e-6)
    assert torch.allclose(prediction.members, outputs.transpose(1, 2).float(), atol=1e-6)
    loop = ensemble.adapt(made, (X, Y), steps=3, lr=0.1, vectorised=False)
    assert torch.allclose(loop(Q), outputs, rtol=0, atol=1e-9)
    assert torch.allclose(loop.losses, adapted.losses)


def test_factors_adapt_by_themselves_and_the_shared_weight_stays():
    _, made = members_of(ensemble.LowRank(0.2, rank=2))
    adapted = ensemble.adapt(made, (X, Y), steps=2, lr=0.1, factors=True)
    assert set(adapted.weights) == {"0.weight.left", "0.weight.right", "0.bias", "2.weight.left", "2.weight.right",
                                    "2.bias"}  # fmt: skip
    for task in range(TASKS):
        own = {n: t.clone().requires_grad_() for n, t in made.members.one(2).items() if n in adapted.weights}
        for _ in range(2):
            loss = F.mse_loss(by_factors(made, own, X[task]), Y[task])
            gradients = torch.autograd.grad(loss, list(own.values()))
            own = {n: w - 0.1 * g for (n, w), g in zip(own.items(), gradients, strict=True)}
        for name, weight in own.items():
            assert torch.allclose(adapted.weights[name][task, 2], weight, rtol=0, atol=1e-9)
        assert torch.allclose(adapted(Q)[task, 2], by_factors(made, own, Q[task]), rtol=0, atol=1e-9)


def by_factors(made, own, x):
    """The net of :func:`members_of` with W + L Rᵀ."""

    def weight(name):
        return made.members.shared[name] + own[f"{name}.left"] @ own[f"{name}.right"].T

    hidden = (x @ weight("0.weight").T + own["0.bias"]).tanh()
    return hidden @ weight("2.weight").T + own["2.bias"]


def test_what_does_not_adapt_keeps_its_factors():
    model, made = members_of(ensemble.LowRank(0.2, rank=2))
    adapted = ensemble.adapt(made, (X, Y), steps=2, lr=0.1, weights=["2.*"])
    assert set(adapted.weights) == {"2.weight", "2.bias"}
    assert "0.weight.left" in adapted.adaptable.fixed
    start = {n: w.clone().requires_grad_() for n, w in made.member(3).items()}
    own = unrolled(model, start, X[0], Y[0], F.mse_loss, 2, 0.1, names=["2.weight", "2.bias"])
    assert torch.allclose(adapted(Q)[0, 3], functional_call(model, own, (Q[0],)), rtol=0, atol=1e-6)


def test_gradients_flow_to_the_weights_of_members_and_to_step_sizes():
    model, made = members_of(ensemble.Gaussian(0.2))
    for tensor in made.members.stacked.values():
        tensor.requires_grad_()
    lr = {n: torch.full(w.shape[1:], 0.1, dtype=w.dtype, requires_grad=True) for n, w in made.members.stacked.items()}
    adapted = ensemble.adapt(made, (X, Y), steps=2, lr=lr, create_graph=True)
    loss = (adapted(Q) - T.unsqueeze(1)).square().mean()
    got = torch.autograd.grad(loss, [*made.members.stacked.values(), *lr.values()])
    total = 0.0
    for task in range(TASKS):
        for index in range(4):
            own = unrolled(model, {n: w[index] for n, w in made.members.stacked.items()}, X[task], Y[task], F.mse_loss,
                           2, lr)  # fmt: skip
            total = total + F.mse_loss(functional_call(model, own, (Q[task],)), T[task]) / (4 * TASKS)
    want = torch.autograd.grad(total, [*made.members.stacked.values(), *lr.values()])
    for ours, theirs in zip(got, want, strict=True):
        assert (ours - theirs).abs().max() < 1e-6


def test_classes_have_the_cross_entropy():
    model, made = members_of(ensemble.Gaussian(0.2), "classification")
    y = torch.randint(3, (TASKS, SHOTS), generator=torch.Generator().manual_seed(0))
    adapted = ensemble.adapt(made, (X, y), steps=2, lr=0.5)
    start = {n: w.clone().requires_grad_() for n, w in made.member(1).items()}
    own = unrolled(model, start, X[2], y[2], F.cross_entropy, 2, 0.5)
    assert torch.allclose(adapted(Q)[2, 1], functional_call(model, own, (Q[2],)), rtol=0, atol=1e-6)
    assert (adapted.losses[..., 2] < adapted.losses[..., 0]).all()
    assert adapted.predict(Q).label.shape == (TASKS, ROWS)


class Two(nn.Module):
    """Two predictions of one hidden layer."""

    def __init__(self):
        super().__init__()
        self.first, self.policy, self.value = nn.Linear(2, 5), nn.Linear(5, 3), nn.Linear(5, 1)

    def forward(self, x):
        hidden = self.first(x).tanh()
        return {"policy": self.policy(hidden), "value": self.value(hidden)}


def test_several_predictions_are_made_right_at_once_or_some_of_them():
    torch.manual_seed(0)
    model = Two().double()
    made = ensemble.perturb(model, ensemble.Gaussian(0.2), members=2, example=draw(2, 2), task="regression")
    value = draw(TASKS, SHOTS, 1, seed=8)

    def both(found, y):
        return F.mse_loss(found["policy"], y[0]) + F.mse_loss(found["value"], y[1])

    def one(found, y):
        return F.mse_loss(found["value"], y)

    for targets, loss, wanted in (({"policy": Y, "value": value}, both, (Y[1], value[1])),
                                  ({"value": value[..., 0]}, one, value[1])):  # fmt: skip
        adapted = ensemble.adapt(made, (X, targets), steps=2, lr=0.1)
        start = {n: w.clone().requires_grad_() for n, w in made.member(1).items()}
        names = [n for n in start if "policy" in targets or not n.startswith("policy")]
        own = unrolled(model, start, X[1], wanted, loss, 2, 0.1, names=names)
        for name, weight in own.items():
            assert torch.allclose(adapted.weights[name][1, 1], weight, rtol=0, atol=1e-9)
    assert adapted.predict(Q).flat()["policy.mean"].shape == (TASKS, ROWS, 3)
    for problem, wrong in {"give targets by name, of policy, value": Y, "however: reward": {"reward": Y},
                           "Targets must have shape": {"value": Y}}.items():  # fmt: skip
        with pytest.raises(InputError, match=problem):
            ensemble.adapt(made, (X, wrong))


# The recurrent ones are refused by vmap, and run one after the other.
@pytest.mark.parametrize("name", ["cnn", "gru", "encoder", "many_inputs", "tied", "norms"])
def test_models_of_every_kind_adapt(made, name):
    made = made(name)
    flat = call(lambda *args, **kwargs: made.program.bind(args, kwargs, CPU), SCENARIOS[name].inputs(4))
    support = {spec.name: t.reshape(2, 2, *t.shape[1:]) for spec, t in zip(made.program.inputs, flat, strict=True)}

    def squares(outputs, _):
        return sum(t.square().mean() for t in tensors(outputs) if t.is_floating_point())

    target = torch.zeros(2, 2)
    whole = ensemble.adapt(made, ((support,), target), squares, 2, 0.01)
    loop = ensemble.adapt(made, ((support,), target), squares, 2, 0.01, vectorised=False)
    for weight in whole.weights:
        assert torch.allclose(whole.weights[weight], loop.weights[weight], rtol=0, atol=1e-5)
    assert (whole.losses[..., -1] < whole.losses[..., 0]).all()


def test_what_cannot_be_is_refused(net, monkeypatch):
    _, made = members_of(ensemble.Gaussian(0.2))
    for problem, wrong in {
        "support must be": lambda: ensemble.adapt(net, X, "mse"),
        "give loss=": lambda: ensemble.adapt(net, (X, Y)),
        "loss must be one of": lambda: ensemble.adapt(net, (X, Y), "hinge"),
        "steps must be": lambda: ensemble.adapt(net, (X, Y), "mse", -1),
        "lr must be a number": lambda: ensemble.adapt(net, (X, Y), "mse", 1, 0.0),
        "no other": lambda: ensemble.adapt(net, (X, Y), "mse", 1, {"0.weight": 0.1}),
        "broadcasts to": lambda: ensemble.adapt(net, (X, Y), "mse", 1, torch.ones(7, dtype=torch.float64)),
        "must begin with": lambda: ensemble.adapt(net, (X[:2], Y), "mse"),
        "output's shape": lambda: ensemble.adapt(net, (X, Y[..., 0]), "mse"),
        "for ensembles": lambda: ensemble.adapt(net, (X, Y), "mse", factors=True),
        "no factors": lambda: ensemble.adapt(made, (X, Y), factors=True),
        "of the task 'regression' must be mse": lambda: ensemble.adapt(made, (X, Y), "cross_entropy"),
        "with rows of": lambda: ensemble.adapt(made, (X[0], Y)),
        "targets must begin": lambda: ensemble.adapt(made, (X, Y[:, :2])),
        "Targets must have shape": lambda: ensemble.adapt(made, (X, Y[..., :2])),
        "finite": lambda: ensemble.adapt(made, (X, Y / 0)),
        "queries for 2": lambda: ensemble.adapt(made, (X, Y))(Q[:2]),
        "of 3 tasks": lambda: ensemble.adapt(net, (X, Y), "mse")(Q[:2]),
    }.items():
        with pytest.raises(InputError, match=problem):
            wrong()
    with pytest.raises(RecipeError, match="matches none"):
        ensemble.adapt(made, (X, Y), weights="9.*")
    with pytest.raises(ModelError, match="members must be an Ensemble or"):
        ensemble.adapt(Members(1, {}, {}), (X, Y))
    with pytest.raises(ModelError, match="changes its own buffers"):
        ensemble.adapt(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double(), (X, Y), "mse")
    monkeypatch.setattr(members, "available", lambda _: 2000)
    with pytest.raises(ensemble.MemoryLimitError, match="What would fit: 0 tasks at a time, fewer members"):
        ensemble.adapt(made, (X, Y))


@pytest.mark.parametrize("bad", [[11, 1], [1, 11], [-1, 1], [1, -1]])
def test_no_task_reads_another_tasks_table(bad):
    """Under vmap they lie one behind the other."""
    made = ensemble.perturb(
        nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3)),
        ensemble.Gaussian(0.1),
        members=2,
        example=torch.randint(10, (3, 2)),
        task="classification",
    )
    tokens = torch.tensor(bad)[:, None, None].expand(2, 4, 2)
    labels = torch.zeros(2, 4, dtype=torch.int64)
    adapted = ensemble.adapt(made, (tokens.clamp(0, 9), labels), steps=2)
    for wrong in (
        lambda: ensemble.adapt(made, (tokens, labels)),
        lambda: adapted(tokens),
        lambda: adapted.predict(tokens),
    ):
        with pytest.raises(IndexError):
            wrong()


def test_the_loop_can_be_ended_from_outside(net):
    begun = []

    def before(number):
        begun.append(number)
        if number == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        ensemble.adapt(net, (X, Y), "mse", 5, before=before)
    assert begun == [0, 1, 2]


def test_a_task_that_diverges_leaves_the_others_alone(net):
    y = Y.clone()
    y[1] *= 1e200
    whole = ensemble.adapt(net, (X, y), "mse", 3, 0.1)
    assert whole.losses.isfinite().all(1).tolist() == [True, False, True]
    good = ensemble.adapt(net, (X[[0, 2]], Y[[0, 2]]), "mse", 3, 0.1)
    assert torch.equal(whole(Q)[[0, 2]], good(Q[[0, 2]]))
