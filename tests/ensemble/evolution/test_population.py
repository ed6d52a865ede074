"""The evolution strategy, beside the same written with every member's full weights."""

import copy
import io
import itertools

import pytest
import torch
from torch import nn

import ensemble
import ensemble.evolution.drawing
import ensemble.evolution.network
from ensemble import Population
from ensemble.errors import InputError, RecipeError
from ensemble.evolution.fitness import shape_fitness


class Mixed(nn.Module):
    """Weights of every kind: a convolution, a matrix, vectors, and a matrix that is used in no product."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 3, 3), nn.Linear(12, 4)
        self.added = nn.Parameter(torch.randn(3, 4))
        self.unused = nn.Linear(2, 2)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.conv(x).relu().flatten(2) + self.added
        return self.out(hidden.flatten(1)) * self.scale


def model() -> Mixed:
    torch.manual_seed(0)
    return Mixed()


X = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
SETTINGS = {"members": 16, "sigma": 0.1, "learning_rate": 0.3, "rank": 2, "seed": 4, "example": X}


@pytest.fixture(autouse=True, scope="module")
def _captured_once():
    """Export takes a second, and Mixed is always the same."""
    capture = ensemble.evolution.network.capture
    found = capture(model(), X)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ensemble.evolution.network,
            "capture",
            lambda m, x, **how: found if type(m) is Mixed else capture(m, x, **how),
        )
        yield


@pytest.fixture
def population():
    return Population(model(), **SETTINGS)


def fitness_of(count: int = 16) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(1))


def loaded(state: dict[str, torch.Tensor]) -> nn.Module:
    module = model()
    module.load_state_dict(state)
    return module.eval()


def test_outputs_are_those_of_each_member_as_a_module(population):
    got = population(X)
    with torch.no_grad():
        want = torch.stack([loaded(population.member(index))(X) for index in range(16)])
    assert got.shape == (16, 5, 4)
    assert torch.allclose(got, want, atol=1e-5)


def test_members_come_in_pairs_around_the_reference(population):
    reference = population.weights()
    assert all(torch.equal(value, model().state_dict()[name]) for name, value in reference.items())
    one, other = population.member(6), population.member(7)
    moved = {name for name in reference if not torch.equal(one[name], reference[name])}
    assert moved == {"conv.weight", "conv.bias", "out.weight", "out.bias", "added"}
    for name in moved:
        assert torch.allclose(one[name] + other[name], 2 * reference[name], atol=1e-6)
    delta = (one["out.weight"] - reference["out.weight"]) / 0.1
    assert torch.linalg.matrix_rank(delta, tol=1e-3) == 2


@pytest.mark.parametrize("cuts", [(0, 8, 16), (0, 3, 4, 11, 16)])
def test_slices_of_members_are_the_members(population, cuts):
    parts = [population(X, members=range(start, stop)) for start, stop in itertools.pairwise(cuts)]
    assert torch.allclose(torch.cat(parts), population(X), atol=1e-6)
    score = [population.scores(lambda y: y.mean((1, 2)), X, members=range(a, b)) for a, b in itertools.pairwise(cuts)]
    assert torch.allclose(torch.cat(score), population(X).mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("shaping", ["centred_ranks", "z_scores", "raw"])
def test_the_update_is_that_of_the_dense_members(shaping):
    population = Population(model(), **SETTINGS, shaping=shaping, weight_decay=0.2)
    fitness, before = fitness_of(), population.weights()
    members = [population.member(index) for index in range(16)]
    shaped = shape_fitness(fitness, shaping)
    population.update(fitness)
    after = population.weights()
    for name in ("conv.weight", "conv.bias", "out.weight", "out.bias", "added"):
        noise = torch.stack([(own[name] - before[name]).double() / 0.1 for own in members])
        gradient = torch.einsum("n,n...->...", shaped, noise) / (16 * 0.1)
        want = before[name] + 0.3 * (gradient - 0.2 * before[name])
        # The noise was found as a difference of float32 weights.
        assert torch.allclose(after[name].double(), want, atol=2e-5 * float(gradient.abs().max() + 1)), name
    for name in ("unused.weight", "scale"):
        assert torch.equal(after[name], before[name])


def test_noise_that_is_drawn_in_pieces_is_the_same(population, monkeypatch):
    whole, gradient = population(X), population.gradient(fitness_of())
    pair = population._network.noise.nbytes
    monkeypatch.setattr(ensemble.evolution.drawing, "_DRAWN_BYTES", 3 * pair)
    monkeypatch.setattr(ensemble.evolution.drawing, "_KEPT_BYTES", 7 * pair)
    again = Population(model(), **SETTINGS)
    assert torch.allclose(again(X), whole, atol=1e-6)
    assert torch.allclose(again(X, members=range(5, 14)), whole[5:14], atol=1e-6)
    assert all(torch.allclose(again.member(9)[n], w, atol=1e-6) for n, w in population.member(9).items())
    for name, value in again.gradient(fitness_of()).items():
        assert torch.allclose(value, gradient[name], atol=1e-5)


def cosine(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    a, b = (torch.cat([part[name].flatten() for name in one]).double() for part in (one, other))
    return float(a @ b / a.norm() / b.norm())


@pytest.mark.parametrize("rank", [1, 2])
def test_the_estimate_points_along_the_gradient_of_a_network(rank):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    population = Population(
        network, members=4096, sigma=0.02, learning_rate=1, rank=rank, shaping="raw", example=x, seed=1
    )

    def score(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1).gather(-1, y.expand(len(logits), -1).unsqueeze(-1)).mean((1, 2))

    found = population.gradient(population.scores(score, x))
    nn.functional.cross_entropy(network(x), y).neg().backward()
    truth = {name: p.grad for name, p in network.named_parameters()}
    # 51 weights and 2,048 pairs: about √(2048 / (2048 + 51)) = 0.988.
    assert cosine(found, truth) > 0.96
    lengths = [torch.cat([g.flatten() for g in part.values()]).norm() for part in (found, truth)]
    assert lengths[0] / lengths[1] == pytest.approx(1, abs=0.1)


def test_it_climbs_to_the_top_of_a_quadratic():
    torch.manual_seed(0)
    network, top = nn.Linear(3, 2, bias=False), torch.randn(2, 3)
    x = torch.eye(3)
    population = Population(network, members=128, sigma=0.1, learning_rate=0.2, shaping="raw", example=x)
    for _ in range(60):
        population.update(population.scores(lambda y: -(y - top.T).square().sum((1, 2)), x))
    assert torch.allclose(population.weights()["weight"], top, atol=0.02)


def test_processes_that_share_the_members_stay_the_same():
    workers = [Population(model(), **SETTINGS, optimizer="adam") for _ in range(2)]
    for _ in range(3):
        halves = [
            worker.scores(lambda y: -y.square().mean((1, 2)), X, members=range(start, start + 8))
            for worker, start in zip(workers, (0, 8), strict=True)
        ]
        for worker in workers:
            worker.update(torch.cat(halves))
    ours, theirs = (worker.weights() for worker in workers)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not torch.equal(ours["out.weight"], model().state_dict()["out.weight"])


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been():
    def train(population: Population, steps: int) -> Population:
        for _ in range(steps):
            population.update(population.scores(lambda y: -y.square().mean((1, 2)), X))
        return population

    settings = {**SETTINGS, "optimizer": "adam", "sigma": lambda step: 0.1 * 0.9**step}
    stopped, file = train(Population(model(), **settings), 2), io.BytesIO()
    torch.save(stopped.state_dict(), file)
    file.seek(0)
    resumed = Population(model(), **settings)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.step == 2
    straight = train(Population(model(), **settings), 4).state_dict()
    again = train(resumed, 2).state_dict()
    for part in ("weights", "first", "second"):
        assert all(torch.equal(again[part][name], tensor) for name, tensor in straight[part].items())


def test_the_noise_follows_from_the_seed_and_the_step_alone(population):
    first = population(X)
    assert torch.equal(Population(model(), **SETTINGS)(X), first)
    assert not torch.allclose(Population(model(), **{**SETTINGS, "seed": 5})(X), first)
    seed = population.step_seed
    population.update(torch.zeros(16))
    # Equal scores move nothing, and yet the members are new.
    assert torch.equal(population.weights()["out.weight"], model().state_dict()["out.weight"])
    assert population.step_seed != seed
    assert not torch.allclose(population(X), first)


def test_it_leaves_the_model_as_it_was_and_gives_copies(population):
    module = model()
    before = copy.deepcopy(module.state_dict())
    own = Population(module, **SETTINGS)
    own.update(fitness_of())
    own.weights()["out.weight"].zero_()
    assert own.weights()["out.weight"].abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_small_steps_of_a_model_in_bfloat16_are_not_lost():
    torch.manual_seed(0)
    network = nn.Linear(4, 2).to(torch.bfloat16)
    x = torch.randn(3, 4).to(torch.bfloat16)
    population = Population(network, members=64, sigma=0.1, learning_rate=1e-5, example=x)
    assert population(x).dtype == torch.bfloat16
    before = population.state.weights["weight"].clone()
    population.update(fitness_of(64))
    assert population.state.weights["weight"].dtype == torch.float32
    assert 0 < float((population.state.weights["weight"] - before).abs().max()) < 1e-4
    assert population.weights()["weight"].dtype == torch.bfloat16


def test_only_what_was_chosen_is_trained():
    population = Population(model(), **SETTINGS, include="out.*", exclude="*.bias")
    assert list(population.state.weights) == ["out.weight"]
    population.update(fitness_of())
    changed = [n for n, w in population.weights().items() if not torch.equal(w, model().state_dict()[n])]
    assert changed == ["out.weight"]


class Branching(nn.Module):
    """What cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.body(x)
        return hidden if bool((self.body.bias > -99).all()) else -hidden


def test_a_module_that_cannot_be_exported_keeps_its_code():
    torch.manual_seed(0)
    x, network = torch.randn(4, 3), Branching()
    population = Population(network, **{**SETTINGS, "example": x}, live=True)
    own = Branching()
    own.load_state_dict(population.member(5))
    assert torch.allclose(population(x)[5], own(x), atol=1e-6)
    population.update(population.scores(lambda y: y.mean((1, 2)), x))
    assert not torch.equal(population.weights()["body.weight"], network.body.weight)


def test_its_words(population):
    assert repr(population) == "Population(16 members around 94 weights, step 0, seed=4)"
    assert len(population) == 16


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"members": 7}, "members must be an even number between 2 and 16777216, however: 7"),
        ({"members": True}, "members must be an even number"),
        ({"sigma": 0}, "sigma must be a finite number above 0, however: 0 at step 0"),
        ({"sigma": lambda step: float("nan")}, "sigma must be a finite number above 0"),
        ({"learning_rate": -1}, "learning_rate must be a finite number above 0"),
        ({"rank": 0}, "rank must be an integer between 1 and 256, however: 0"),
        ({"shaping": "ranks"}, "shaping must be one of centred_ranks, z_scores, raw, however: 'ranks'"),
        ({"seed": -1}, "seed must be an integer between 0"),
        ({"include": "nothing.*"}, "The pattern 'nothing.\\*' matches none"),
        ({"optimizer": "adagrad"}, "optimizer must be one of sgd, adam"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        Population(model(), **{**SETTINGS, **settings})


def test_scores_that_are_none_are_refused_and_change_nothing(population):
    before = population.state
    for wrong, said in (
        (torch.zeros(15), r"one number for each of 16 members, got \[15\]"),
        (torch.zeros(16, 1), r"got \[16, 1\]"),
        ([0.0] * 15 + [float("nan")], "The fitness of member 15 is nan; give a member that failed a low number"),
        ("many", "fitness must be 16 numbers"),
        (torch.zeros(16, dtype=torch.complex64), "fitness must be 16 real numbers, however: torch.complex64"),
    ):
        with pytest.raises(InputError, match=said):
            population.update(wrong)
    assert population.state is before
    with pytest.raises(InputError, match=r"score must give a tensor of 16 numbers, one a member, however: \[16, 5\]"):
        population.scores(lambda y: y.mean(2), X)
    for members in (range(4, 4), range(17), range(0, 8, 2), 3):
        with pytest.raises(InputError, match=r"members must be a range within range\(0, 16\)"):
            population(X, members=members)
    with pytest.raises(InputError, match="The first argument is the function that scores, however: Tensor"):
        population.scores(X, X)
    for index in (-1, 16, 1.5):
        with pytest.raises(InputError, match=f"Members are 0 .. 15, however: {index}"):
            population.member(index)
    with pytest.raises(InputError, match="must have shape"):
        population(torch.zeros(2, 1, 5, 5))


def test_a_state_of_another_population_is_refused_and_changes_nothing(population):
    before, good = population.state, population.state_dict()
    for change, said in (
        ({"seed": 5}, r"of a population with {'seed': 5}; this one has {'seed': 4}"),
        ({"weights": {}}, "'weights' of the state are not those of this model"),
        ({"weights": {**good["weights"], "out.bias": torch.zeros(3)}}, r"'out.bias' must have shape \[4\]"),
        ({"step": -1}, "step must be a number of updates, however: -1"),
        ({"seed": torch.tensor([4, 4])}, "of a population with"),
        ({"weights": {n: w * float("nan") for n, w in good["weights"].items()}}, "must hold finite floating-point"),
    ):
        with pytest.raises(InputError, match=said):
            population.load_state_dict({**good, **change})
    with pytest.raises(InputError, match="The state of a population has"):
        population.load_state_dict({"step": 1})
    assert population.state is before
