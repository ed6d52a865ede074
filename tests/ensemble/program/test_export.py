import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ensemble
from ensemble import ExportError, ModelError
from tests.reference import alone, difference
from tests.scenarios import Model


def counted(model, x):
    model.seen += 1
    return model.fc(x) + model.seen


def branching(model, x):
    return model.fc(x) if model.fc(x).sum() > 0 else -model.fc(x)


def conditional(model, x):
    return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: -x, (model.fc(x),))


@torch.library.custom_op("ensembled_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@twice.register_fake
def _(x):
    return torch.empty_like(x)


# What a model does -> what the error says of it when it is exported.
REFUSED = {
    "statistics of the batch": (lambda m, x: m.fc(x) - m.fc(x).mean(0), "rows of a batch influence each other"),
    "batch norm in training": (
        lambda m, x: F.batch_norm(m.fc(x), None, None, training=True),
        "first row of the example alone",
    ),
    "a counter": (counted, "changes its buffer 'seen' while it runs"),
    "writing into the input": (lambda m, x: x.add_(1) * m.fc(x), "changes its input while it runs"),
    "a branch": (branching, "branches on.*torch.where"),
    "control flow": (conditional, "control flow that depends on data.*torch.where"),
    "a Python number": (lambda m, x: m.fc(x) * m.fc(x).max().item(), "turns tensor values into Python numbers"),
    "dropout": (lambda m, x: F.dropout(m.fc(x), 0.5, training=True), "draws random numbers.*eval mode"),
    "noise": (lambda m, x: m.fc(x) + torch.randn_like(x), "draws random numbers"),
    "a fixed batch": (lambda m, x: m.fc(x) if x.shape[0] == 3 else -m.fc(x), "fixes the size of the first dimension"),
    "a loop over rows": (lambda m, x: torch.stack([m.fc(row) for row in x]), "fixes the size of the first dimension"),
    "a reshape to the batch": (lambda m, x: m.fc(x).reshape(3, 2, 2), "first row of the example alone"),
    "no tensor": (lambda m, x: None, "returns no tensor"),
    "an object": (lambda m, x: {"y": m.fc(x), "o": object()}, "'o' is a object"),
    "keys that are no text": (lambda m, x: {1: m.fc(x)}, "Keys of a dict of tensors must be text"),
    "names that meet": (lambda m, x: {"a": {"b": m.fc(x)}, "a.b": x}, "would have the name 'a.b'"),
    "a scalar": (lambda m, x: m.fc(x).sum(), "must have one dimension that is the batch"),
    "an output without rows": (lambda m, x: m.fc.weight, "must have one dimension that is the batch"),
    "a tensor for each row": (lambda m, x: tuple(m.fc(x)), "depends on the batch size"),
    "the number of rows": (lambda m, x: (m.fc(x), x.shape[0]), "depends on the batch size"),
    "another size": (lambda m, x: m.fc(x[:, :3]), "does not run on the example: mat1 and mat2 shapes"),
    "a custom operator": (lambda m, x: twice(m.fc(x)), "ensembled_tests.twice.default, a custom operator.*live=True"),
    "numpy": (lambda m, x: torch.from_numpy(m.fc(x).numpy()), "cannot capture this model: .numpy"),
    "the places of values": (lambda m, x: x + x[(x > 9).nonzero()[:, 0]].sum(), "whose size depends on values"),
    "a mask as an index": (lambda m, x: m.fc(x) * x[x > 9].sum(), "size of a value in this model depends on other"),
    "checks": (lambda m, x: torch.linalg.solve(m.fc.weight, m.fc(x).T).T, "checks in torch.linalg"),
    "complex numbers": (lambda m, x: torch.fft.fft(m.fc(x)), "is complex; return its torch.view_as_real"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_captured_is_said_in_a_sentence_and_the_model_is_left_as_it_was(kind, capfd):
    function, text = REFUSED[kind]
    model, example = Model(function), torch.randn(3, 4)
    before, given = copy.deepcopy(model.state_dict()), example.clone()
    with pytest.raises(ModelError, match=text) as caught:
        ensemble.perturb(model, ensemble.Gaussian(0.1), members=3, example=example)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    assert message.endswith((".", "?", ")"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(example, given)
    assert model.training
    assert capfd.readouterr().err == ""


LIVE = {
    "a counter": "changes 'seen' while it runs",
    "writing into the input": "changes 'x' while it runs",
    "dropout": "draw random numbers",
    "noise": "draw random numbers",
    "numpy": "does not run",
    "statistics of the batch": "rows of a batch influence each other",
}


@pytest.mark.parametrize("kind", LIVE)
def test_what_cannot_run_live_is_said_too(kind):
    model = Model(REFUSED[kind][0])
    example = torch.randn(3, 4)
    with pytest.raises(ModelError, match=LIVE[kind]) as caught:
        ensemble.perturb(model, ensemble.Gaussian(0.1), members=3, example=example, live=True)
    assert "\n" not in str(caught.value)
    assert not model.seen.any()


@pytest.mark.parametrize("kind", ["a loop over rows", "a custom operator", "checks", "a branch"])
def test_live_takes_some_that_export_cannot(kind):
    # A branch on the whole batch gives each of several equal rows what it gets alone.
    model, x = Model(REFUSED[kind][0]), torch.ones(3, 4) if kind == "a branch" else torch.randn(3, 4)
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=3, example=x, live=True)
    for index in range(3):
        assert difference(ens(x)[index], alone(model, ens.member(index), x)[0]) <= 1e-5


def test_memory_that_nobody_wrote_is_never_read():
    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            y = torch.empty_like(x)
            y[:, :2] = self.fc(x)[:, :2]
            z = torch.empty(x.shape[0], 1)
            z[:] = 1
            return y * torch.tensor([1.0, 1.0, 0.0]) + z + x.new_empty(3).fill_(2)

    model, x = Filled(), torch.randn(3, 3)
    ens = ensemble.perturb(model, ensemble.Gaussian(0.1), members=2, example=x)
    assert not any("empty" in str(node.target) for node in ens.program.graph.nodes)
    assert difference(ens(x)[1], alone(model, ens.member(1), x)[0]) <= 1e-5


def test_export_errors_are_model_errors():
    with pytest.raises(ExportError):
        ensemble.perturb(Model(branching), ensemble.Gaussian(0.1), members=3, example=torch.randn(3, 4))
