import torch
from torch import nn

import ensemble
from ensemble import Gaussian, LowRank
from tests.ensemble.test_vectorised import Masked


class Added(nn.Module):
    """A matrix that is used in a product and added as well, a vector, and a part that nothing perturbs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.both = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.head(self.body(x) @ self.both + self.both.sum(0))


def rows(recipe):
    ens = ensemble.perturb(Added(), recipe, members=6, example=torch.randn(3, 4))
    return ens, {row.name: row for row in ensemble.compatibility(ens)}


def test_each_weight_is_told_how_it_runs_and_why():
    ens, found = rows(LowRank(0.1, rank=2, exclude="body.*"))
    assert {name: row.how for name, row in found.items()} == {
        "body.weight": "shared",
        "body.bias": "shared",
        "both": "dense fallback",
        "head.weight": "factored",
        "head.bias": "stacked",
    }
    assert "used by sum" in found["both"].why
    assert "exclude it" in found["both"].why
    assert found["both"].nbytes == 6 * 16 * 4
    # The trained weight once, and for each member two columns of 3 and of 4.
    assert found["head.weight"].nbytes == 4 * (12 + 6 * 2 * (3 + 4))
    assert sum(row.nbytes for row in found.values()) == ens.members.nbytes


def test_dense_recipes_are_told_what_would_need_less():
    _, found = rows(Gaussian(0.1))
    assert {row.how for row in found.values()} == {"stacked"}
    assert "low_rank or rank1" in found["head.weight"].why


def test_separately_trained_models():
    models = [Added(), Added()]
    with torch.no_grad():
        models[1].body.weight.copy_(models[0].body.weight)
    ens = ensemble.stack(models, example=torch.randn(3, 4))
    found = {row.name: (row.how, row.why) for row in ensemble.compatibility(ens)}
    assert found["body.weight"] == ("shared", "equal in all models")
    assert found["both"] == ("stacked", "differs between the models")


def told(ens):
    return {row.name: (row.how, row.why) for row in ensemble.compatibility(ens)}


def test_members_that_run_one_after_the_other_are_told_so_before_any_call():
    ens = ensemble.perturb(Masked(), LowRank(0.1), members=4, example=torch.randn(3, 3))
    found = told(ens)
    assert {name: how for name, (how, _) in found.items() if name.startswith("layer")} == {
        "layer.weight": "loop",
        "layer.bias": "loop",
    }
    why = found["layer.weight"][1]
    # How it is held, why it is not vectorised, and what would change that.
    assert "the shared weight and the factors" in why
    assert "one after the other, since vmap refuses the model: The size of a value in this model depends on" in why
    assert "use torch.where" in why
    assert ens.looped_because.removesuffix(".") in why
    # What all members share is no member's.
    assert {how for how, _ in found.values()} == {"loop", "shared"}


def test_a_report_is_the_same_before_and_after_calls_and_measuring():
    for model in (Masked(), nn.Linear(3, 2)):
        x = torch.randn(3, 3)
        ens = ensemble.perturb(model, LowRank(0.1), members=4, example=x)
        before = ensemble.compatibility(ens)
        ens(x)
        ens.measure((1, 2), seconds=0.1)
        assert ensemble.compatibility(ens) == before


def test_weights_of_a_live_module_are_told_what_would_put_them_on_factors():
    x = torch.randn(3, 4)
    live = ensemble.perturb(nn.Linear(4, 3), LowRank(0.1), members=4, example=x, live=True)
    assert told(live)["weight"] == (
        "dense fallback",
        "used by the module's own code, which cannot be rewritten; make the ensemble without live=True",
    )
    exported = ensemble.perturb(nn.Linear(4, 3), LowRank(0.1), members=4, example=x)
    assert told(exported)["weight"][0] == "factored"
