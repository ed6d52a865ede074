"""Members trained together beside a plain loop that trains one after the other with torch.optim."""

import copy
import dataclasses

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

import ensemble
from ensemble.data import Data
from ensemble.losses import negative_log_likelihood
from ensemble.members import Members
from ensemble.program.capture import capture
from ensemble.structured import LEFT, RIGHT
from ensemble.tasks import heads
from ensemble.training import Rows, Schedule, steps_within, train
from tests.reference import alone, call
from tests.scenarios import SCENARIOS, floats, seeded

ROWS = 40
SCHEDULE = Schedule(steps=20, lr=0.02, batch_size=8, weight_decay=0.1)


def examples(name, rows=ROWS):
    """Inputs of a scenario, and targets that its first output has the shape of."""
    given = SCENARIOS[name].inputs(rows)
    inputs = given if isinstance(given, tuple) else (given,)
    random = torch.Generator().manual_seed(1)
    if name == "gaussian":
        return inputs, torch.randn(rows, generator=random), "gaussian"
    return inputs, torch.randint(2, (rows,), generator=random), "classification"


def plain(name, outputs, targets):
    """The loss, written once more."""
    if name == "gaussian":
        return F.gaussian_nll_loss(outputs["mean"], targets, outputs["variance"], full=True)
    return F.cross_entropy(outputs, targets)


def one_by_one(name, ens, inputs, targets, schedule, *, bootstrap):
    """Every member as a module of its own, trained with an optimiser of its own: its states after every fifth step."""
    rows = Rows.draw(5, range(ens.members.count), len(targets), bootstrap=bootstrap, hold_back=False)
    batches, states = rows.batches(schedule.batch_size), []
    orders = [next(batches) for _ in range(schedule.steps)]
    for member in range(ens.members.count):
        model = copy.deepcopy(seeded(SCENARIOS[name])).eval()
        model.load_state_dict(ens.member(member))
        optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps)
        states.append({})
        for step, order in enumerate(orders, 1):
            optimizer.zero_grad()
            outputs = call(model, tuple(t[order[member]] for t in inputs))
            plain(name, outputs, targets[order[member]]).backward()
            optimizer.step()
            rate.step()
            if step % 5 == 0:
                states[-1][step] = copy.deepcopy(model.state_dict())
    return states


def likelihood(ens, task):
    return negative_log_likelihood(task, heads(task, ens.program.outputs))


@pytest.mark.parametrize("name", ["mlp", "cnn", "encoder", "gaussian"])
def test_members_are_what_a_loop_over_modules_makes_of_them(made, name):
    ens = made(name)
    inputs, targets, task = examples(name)
    before = {name: tensor.clone() for name, tensor in ens.members.stacked.items()}
    got = train(
        ens.program, ens.members, Data(inputs, targets), likelihood(ens, task), SCHEDULE, seed=5, bootstrap=True
    )
    want = one_by_one(name, ens, inputs, targets, SCHEDULE, bootstrap=True)
    for member, states in enumerate(want):
        own = got.members.whole(member)
        for key in own.keys() & states[20].keys():
            # What shifts all keys of an attention alike changes nothing: rounding, which Adam magnifies.
            if not key.endswith("in_proj_bias"):
                assert torch.allclose(own[key], states[20][key], atol=2e-4, rtol=1e-3), (member, key)
        with torch.no_grad():
            outputs = ens.program(own, [*inputs])
        alone_outputs = alone(seeded(SCENARIOS[name]), states[20], inputs)
        assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(outputs, alone_outputs, strict=True))
    assert all(torch.equal(tensor, ens.members.stacked[name]) for name, tensor in before.items())
    assert not any(torch.equal(tensor, got.members.stacked[name]) for name, tensor in before.items())
    assert got.steps == 20
    assert got.gradients == 5 * 20 * 8
    assert got.before is None


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_member_is_the_same_in_any_chunk_and_number(made, chunk):
    ens = made("mlp")
    inputs, targets, task = examples("mlp")
    data, loss = Data(inputs, targets), likelihood(ens, task)

    def trained(members, **settings):
        return train(ens.program, members, data, loss, SCHEDULE, seed=5, bootstrap=True, **settings).members.stacked

    first = dataclasses.replace(ens.members, count=3, stacked=ens.members.slice(0, 3))
    whole = trained(ens.members, chunk=5)
    for got, count in ((trained(ens.members, chunk=chunk), 5), (trained(first), 3)):
        assert all(torch.allclose(tensor, whole[name][:count], atol=1e-5) for name, tensor in got.items())


def test_factors_are_trained_as_factors_of_the_shared_weight():
    (x,), targets, _ = examples("mlp")
    model = seeded(SCENARIOS["mlp"])
    ens = ensemble.perturb(model, ensemble.LowRank(scale=0.3, rank=2), members=3, example=x, task="classification")
    got = train(ens.program, ens.members, Data((x,), targets), likelihood(ens, "classification"), SCHEDULE, seed=5)
    rows = Rows.draw(5, range(3), ROWS, bootstrap=False, hold_back=False)
    batches = rows.batches(SCHEDULE.batch_size)
    orders = [next(batches) for _ in range(SCHEDULE.steps)]
    for member in range(3):
        own = {name: t[member].clone().requires_grad_() for name, t in ens.members.stacked.items()}
        optimizer = torch.optim.AdamW(own.values(), lr=SCHEDULE.lr, weight_decay=SCHEDULE.weight_decay)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SCHEDULE.steps)

        def whole(own=own):
            return {
                name: weight + own[name + LEFT] @ own[name + RIGHT].T if name + LEFT in own else own[name]
                for name, weight in model.state_dict().items()
            }

        for order in orders:
            optimizer.zero_grad()
            F.cross_entropy(functional_call(model.eval(), whole(), x[order[member]]), targets[order[member]]).backward()
            optimizer.step()
            rate.step()
        for name, tensor in own.items():
            assert torch.allclose(got.members.stacked[name][member], tensor, atol=1e-4), name
    assert got.members.factored == ens.members.factored
    assert all(torch.equal(t, ens.members.shared[name]) for name, t in got.members.shared.items())


def test_only_the_named_weights_are_trained(made):
    ens = made("cnn")
    inputs, targets, task = examples("cnn")
    got = train(
        ens.program, ens.members, Data(inputs, targets), likelihood(ens, task), SCHEDULE, names=["head.weight"]
    ).members.stacked
    changed = {name for name, tensor in ens.members.stacked.items() if not torch.equal(tensor, got[name])}
    assert changed == {"head.weight"}
    with pytest.raises(ensemble.RecipeError, match=r"nothing of their own to train for .*running_mean"):
        train(ens.program, ens.members, Data(inputs, targets), likelihood(ens, task), SCHEDULE,
              names=["features.1.running_mean"])  # fmt: skip


def judged(state, x, targets):
    model = seeded(SCENARIOS["mlp"]).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        return float(F.cross_entropy(model(x), targets))


def test_the_weights_that_did_best_on_the_rows_left_out_are_kept(made):
    ens = made("mlp")
    (x,), targets, task = examples("mlp")
    # There is no relation to be learned: what is left out gets worse sooner or later.
    schedule = Schedule(steps=60, lr=0.03, batch_size=8, check_every=5)
    got = train(ens.program, ens.members, Data((x,), targets), likelihood(ens, task), schedule, seed=5,
                bootstrap=True, early_stopping=True)  # fmt: skip
    rows = Rows.draw(5, range(5), ROWS, bootstrap=True, hold_back=True)
    for member, states in enumerate(one_by_one("mlp", ens, (x,), targets, schedule, bootstrap=True)):
        left = rows.held[member, : rows.counts[member]]
        losses = {step: judged(state, x[left], targets[left]) for step, state in states.items()}
        best = min(losses, key=losses.get)
        assert int(got.kept[member]) == best
        assert float(got.after[member]) == pytest.approx(losses[best], abs=1e-3)
        assert torch.allclose(got.members.whole(member)["0.weight"], states[best]["0.weight"], atol=2e-3)
        assert float(got.before[member]) == pytest.approx(judged(ens.member(member), x[left], targets[left]), abs=1e-5)
    assert min(got.kept) < 60


def test_with_patience_a_member_stops_at_its_first_best(made):
    ens = made("mlp")
    (x,), targets, task = examples("mlp")
    schedule = Schedule(steps=60, lr=0.03, batch_size=8, check_every=5, patience=1)
    seen = []
    got = train(
        ens.program,
        ens.members,
        Data((x,), targets),
        likelihood(ens, task),
        schedule,
        seed=5,
        bootstrap=True,
        early_stopping=True,
        progress=lambda done, total: seen.append((done, total)),
    )
    rows = Rows.draw(5, range(5), ROWS, bootstrap=True, hold_back=True)
    for member, states in enumerate(one_by_one("mlp", ens, (x,), targets, schedule, bootstrap=True)):
        left = rows.held[member, : rows.counts[member]]
        losses = [judged(state, x[left], targets[left]) for state in states.values()]
        worse = next((i for i in range(1, len(losses)) if losses[i] >= losses[i - 1]), len(losses))
        assert int(got.kept[member]) == 5 * worse
    assert seen[-1] == (60, 60)
    assert len(seen) < 13


def test_rows_that_are_new_to_the_start_are_judged_with_it(made):
    ens = made("mlp")
    (x,), targets, task = examples("mlp")
    new = Data((floats(6)(17),), torch.arange(17) % 4)
    loss = likelihood(ens, task)
    wild = Schedule(steps=20, lr=10.0)
    got = train(ens.program, ens.members, Data((x,), targets), loss, wild, held=new)
    # Nothing that such steps lead to is better than the start.
    assert got.kept.tolist() == [0] * 5
    assert all(torch.equal(tensor, ens.members.stacked[name]) for name, tensor in got.members.stacked.items())
    assert torch.equal(got.before, got.after)
    assert float(got.after[2]) == pytest.approx(judged(ens.member(2), new.inputs[0], new.targets), abs=1e-5)


def test_a_member_that_diverges_is_told_of_or_keeps_what_was_finite(made):
    ens = made("mlp")
    inputs, targets, task = examples("mlp")
    arguments = ens.program, ens.members, Data(inputs, targets), likelihood(ens, task)
    with pytest.raises(ensemble.RecipeError, match=r"Training diverged: after \d+ steps .* members 0, 1.* Lower lr"):
        train(*arguments, Schedule(steps=20, lr=1e30))
    with pytest.raises(ensemble.RecipeError, match="after 1 step loss or weights"):
        train(*arguments, Schedule(steps=1, lr=1e30))
    got = train(*arguments, Schedule(steps=20, lr=1e30), held=Data(inputs, targets))
    assert got.diverged == (0, 1, 2, 3, 4)
    assert got.kept.tolist() == [0] * 5
    assert all(tensor.isfinite().all() for tensor in got.members.stacked.values())


def test_inputs_that_are_no_numbers_are_told_of(made):
    ens = made("mlp")
    (x,), targets, task = examples("mlp")
    bad = x.clone()
    bad[3, 2] = float("nan")
    with pytest.raises(ensemble.RecipeError, match=r"members 0, 1, 2, 3, 4 .*look for NaN"):
        train(ens.program, ens.members, Data((bad,), targets), likelihood(ens, task), Schedule(steps=20, lr=0.01))
    with pytest.raises(ensemble.RecipeError, match="not finite before the first step: look for NaN"):
        train(ens.program, ens.members, Data((x,), targets), likelihood(ens, task), Schedule(steps=20, lr=0.01),
              held=Data((bad,), targets))  # fmt: skip


def test_any_loss_of_outputs_and_targets(made):
    ens = made("many_outputs")
    x = floats(4)(ROWS)
    targets = torch.stack([torch.arange(ROWS) % 3, torch.arange(ROWS) % 2], 1)

    def loss(outputs, targets):
        policy, value = outputs
        return F.cross_entropy(policy, targets[:, 0], reduction="none") + (value - targets[:, 1]).square()

    def reached(members):
        outputs = ens.program(members.whole(1), [x])
        return float(loss(outputs, targets).mean())

    got = train(ens.program, ens.members, Data((x,), targets), loss, Schedule(steps=100, lr=0.02), seed=1)
    assert reached(got.members) < 0.8 * reached(ens.members)


@pytest.mark.parametrize(
    ("loss", "match"),
    [
        (lambda outputs, y: F.cross_entropy(outputs[0], y), r"number for each of the 32 rows .*however: shape \[\]"),
        (lambda outputs, y: 3.0, "however: a float"),
        (lambda outputs, y: (outputs[0] - y).square(), r"fails on outputs of shape \[\[32, 4\]\] and targets of shape"),
        (lambda outputs, y: outputs["logits"], "The loss fails on outputs of shape"),
        (lambda outputs, y: outputs[0].argmax(-1), "real floating-point numbers, however: torch.int64"),
        (lambda outputs, y: outputs[0].sum(-1) * 1j, "however: torch.complex64"),
        (lambda outputs, y: outputs[0].argmax(-1).float(), "no.* depend on the weights .* argmax"),
        (lambda outputs, y: F.cross_entropy(outputs[0].detach(), y, reduction="none"), "nothing would be learned"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 5])
def test_a_loss_that_is_none_is_told_of(made, loss, match, chunk):
    ens = made("mlp")
    inputs, targets, _ = examples("mlp")
    with pytest.raises(ensemble.InputError, match=match):
        train(ens.program, ens.members, Data(inputs, targets), loss, Schedule(steps=5, lr=0.1), chunk=chunk)


def test_a_model_that_vmap_refuses_is_trained_one_member_after_the_other():
    class Branch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x) if self.fc.weight.sum() > -1e9 else x[:, :3]

    ens = ensemble.perturb(Branch(), ensemble.Gaussian(scale=0.1), members=3, example=torch.randn(4, 4), live=True,
                           task="classification")  # fmt: skip
    x, targets = torch.randn(ROWS, 4), torch.arange(ROWS) % 3
    got = train(ens.program, ens.members, Data((x,), targets), likelihood(ens, "classification"), SCHEDULE, seed=5)
    linear = capture(torch.nn.Linear(4, 3), x)
    renamed = {name.removeprefix("fc."): tensor for name, tensor in ens.members.stacked.items()}
    want = train(linear.program, Members(3, {}, renamed), Data((x,), targets), likelihood(ens, "classification"),
                 SCHEDULE, seed=5)  # fmt: skip
    for name, tensor in want.members.stacked.items():
        assert torch.allclose(got.members.stacked[f"fc.{name}"], tensor, atol=1e-5)


class Assigning(torch.nn.Module):
    """A model that changes a part of a tensor in place, and one that computes the same without."""

    def __init__(self, in_place):
        super().__init__()
        self.hidden, self.out, self.in_place = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3), in_place

    def forward(self, x):
        h = self.hidden(x)
        if self.in_place:
            h[:, :3] = h[:, 3:4]
        else:
            h = torch.cat([h[:, 3:4].expand(-1, 3), h[:, 3:]], 1)
        return self.out(h.relu())


def test_a_model_that_assigns_to_a_part_of_a_tensor_is_trained():
    x, targets = torch.randn(ROWS, 4), torch.arange(ROWS) % 3
    assigning, same = Assigning(True), Assigning(False)
    same.load_state_dict(assigning.state_dict())
    recipe = ensemble.Adapted(steps=10, start=ensemble.Gaussian(scale=0.1))
    got, want = (
        ensemble.perturb(model, recipe, members=2, data=(x, targets), task="classification")
        for model in (assigning, same)
    )
    for name, tensor in want.members.stacked.items():
        torch.testing.assert_close(got.members.stacked[name], tensor, atol=1e-5, rtol=1e-4)


def test_a_model_without_derivative_is_told_of():
    class Stepping(torch.nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return torch.heaviside(y, y)

    x = torch.randn(ROWS, 4)
    ens = ensemble.perturb(Stepping(4, 3), ensemble.Gaussian(scale=0.1), members=2, example=x, live=True)
    data = Data((x,), torch.arange(ROWS) % 3)
    with pytest.raises(ensemble.ModelError, match="cannot be trained: derivative for aten::heaviside"):
        train(ens.program, ens.members, data, likelihood(ens, "classification"), SCHEDULE)


def test_a_time_budget_is_a_number_of_steps(made):
    ens = made("mlp")
    inputs, targets, task = examples("mlp")
    arguments = ens.program, ens.members, Data(inputs, targets), likelihood(ens, task)
    endless = Schedule(steps=2**30, lr=0.01, batch_size=8)
    assert 1 <= steps_within(1.0, *arguments, endless, chunk=3, early_stopping=True) < 2**30
    with pytest.raises(ensemble.RecipeError, match="too short: one step of 5 members takes"):
        steps_within(1e-6, *arguments, endless)
    assert steps_within(1000.0, *arguments, SCHEDULE) == SCHEDULE.steps
    assert steps_within(1000.0, *arguments, dataclasses.replace(SCHEDULE, steps=0)) == 0
    with pytest.raises(ensemble.RecipeError, match="seconds must be"):
        steps_within(-1, *arguments, SCHEDULE)


def test_what_cannot_be_trained_is_refused(made):
    ens = made("mlp")
    inputs, targets, task = examples("mlp")
    loss = likelihood(ens, task)
    with pytest.raises(ensemble.InputError, match="Training needs targets"):
        train(ens.program, ens.members, Data(inputs), loss, SCHEDULE)
    with pytest.raises(ensemble.InputError, match="held back need targets"):
        train(ens.program, ens.members, Data(inputs, targets), loss, SCHEDULE, held=Data(inputs))
    with pytest.raises(ensemble.InputError, match="chunk must be a number of members"):
        train(ens.program, ens.members, Data(inputs, targets), loss, SCHEDULE, chunk=0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"steps": -1}, "steps must be an integer of at least 0"),
        ({"steps": 1.5}, "steps must be"),
        ({"lr": 0}, "lr must be a finite number > 0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"check_every": 0}, "check_every must be"),
        ({"patience": 0}, "patience must be"),
    ],
)
def test_a_schedule_out_of_range(settings, match):
    with pytest.raises(ensemble.RecipeError, match=match):
        Schedule(**{"steps": 5, "lr": 0.1, **settings})
