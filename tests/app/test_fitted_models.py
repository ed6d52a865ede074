"""Quantiles, intervals, sets, log-likelihoods and what else is fitted, from the real service."""

from __future__ import annotations

import asyncio
import json

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ensemble
from app.batching import Call
from app.client import BadRequest, Client, InputError
from app.commands.asking import Asking
from app.protocol import InferRequest, Question, RequestedOutput
from app.served import wrap
from ensemble.calibration import Calibration
from tests.app.client.conftest import Waiting
from tests.app.support import PATIENCE, assert_same, plain_body, serving, v2_arrays, v2_body
from tests.app.test_cli import run

MEMBERS, WIDTH = 6, 1000


class Prices(nn.Module):
    """A regression that takes an input of the name that targets have elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.layer(torch.cat([x, target], -1))


class Several(nn.Module):
    """Two numbers of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.price, self.size = nn.Linear(3, 1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"price": self.price(x).squeeze(-1), "size": self.size(x)}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The directory of sorts (a classification), prices (a regression), several, and wide, whose rows have a thousand
    numbers; and the ensembles by name."""
    root = tmp_path_factory.mktemp("fitted")
    torch.manual_seed(0)
    recipe = ensemble.Gaussian(scale=0.3)
    rising = torch.linspace(0.01, 0.98, 39, dtype=torch.float64)
    sorts = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    found = {
        "sorts": ensemble.perturb(sorts, recipe, members=MEMBERS, example=torch.randn(3, 4), task="classification"),
        "prices": ensemble.perturb(
            Prices(), recipe, members=MEMBERS, example=(torch.randn(3, 2), torch.randn(3, 2)), task="regression"
        ),
        "several": ensemble.perturb(
            Several(), recipe, members=MEMBERS, example=torch.randn(3, 3), task="regression", noise_variance=0.25
        ),
        "wide": ensemble.perturb(
            nn.Linear(1, WIDTH), recipe, members=MEMBERS, example=torch.randn(3, 1), task="regression", noise_variance=1
        ),
    }
    found["sorts"].calibration = Calibration(
        temperature=1.5,
        confidence_level=0.8,
        set_score="aps",
        set_scores=rising,
        epistemic=rising / 10,
        risk=0.1,
        abstain_above=0.9,
    )
    found["prices"].calibration = Calibration(
        noise_variances=torch.linspace(0.1, 0.6, MEMBERS, dtype=torch.float64),
        interval_score="normalised",
        interval_scores=3 * torch.stack([rising, 2 * rising], 1),
    )
    for name, made in found.items():
        made.save(root / name / "1")
    return root, {name: ensemble.load(root / name / "1") for name in found}


@pytest.fixture(scope="module")
def server(fitted, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log"
    with serving(log, "--models", fitted[0], "--default-model", "sorts", "--log-format", "json") as running:
        yield running.wait_ready()


def inputs_of(name, rows, seed=0):
    generator = np.random.default_rng([seed, rows])
    wide = {"sorts": {"input": 4}, "prices": {"x": 2, "target": 2}, "several": {"x": 3}}[name]
    return {key: generator.normal(size=(rows, width)).astype(np.float32) for key, width in wide.items()}


def targets_of(name, rows, seed=0):
    """By the name that the service gives them."""
    generator = np.random.default_rng([seed, rows, 1])
    match name:
        case "sorts":
            return {"target": generator.integers(0, 3, rows)}
        case "prices":
            return {"log_prob.target": generator.normal(size=(rows, 2)).astype(np.float32)}
    return {
        "price.target": generator.normal(size=rows).astype(np.float32),
        "size.target": generator.normal(size=(rows, 2)).astype(np.float32),
    }


def said(made, inputs, outputs, targets=None, **options):
    """What the library says."""
    about = {name.removesuffix(".target"): torch.from_numpy(array) for name, array in (targets or {}).items()}
    target = (about if len(made.outputs.heads) > 1 else next(iter(about.values()))) if about else None
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    found = made.predict(given, statistics=outputs, target=target, **options)
    return {name: tensor.numpy() for name, tensor in found.flat().items()}


def plain(server, name, inputs, outputs, targets=None, **parameters):
    body = plain_body(inputs, outputs) | {"parameters": parameters}
    if targets:
        lists = {key: array.tolist() for key, array in targets.items()}
        body["target"] = lists if name == "several" else next(iter(lists.values()))
    return server.post(f"/v1/models/{name}/predict", json=body)


def v2(server, name, inputs, outputs, targets=None, **parameters):
    body = v2_body(inputs | (targets or {}), outputs) | {"parameters": parameters}
    return server.post(f"/v2/models/{name}/infer", json=body)


LEVELS = [0.9, 0.05, 0.5]


@pytest.mark.parametrize("name", ["sorts", "prices", "several"])
def test_both_protocols_say_what_the_library_says_of_every_statistic(server, fitted, name):
    made = fitted[1][name]
    inputs, targets, outputs = inputs_of(name, 5), targets_of(name, 5), list(made.available_statistics())
    want = said(made, inputs, outputs, targets, levels=LEVELS, confidence_level=0.6)
    answer = plain(server, name, inputs, outputs, targets, levels=LEVELS, confidence_level=0.6)
    assert_same(answer.json()["outputs"], want)
    # As a client sends them that cannot send a list.
    answer = v2(server, name, inputs, outputs, targets, levels="0.9,0.05, 0.5", confidence_level=0.6).json()
    assert_same(v2_arrays(answer), want)
    stated = {o["name"]: o for o in server.get(f"/v2/models/{name}").json()["outputs"]}
    for output in answer["outputs"]:
        about = stated[output["name"]]
        assert output["datatype"] == about["datatype"]
        assert all(size in (-1, got) for got, size in zip(output["shape"], about["shape"], strict=True))
    without = [output for output in outputs if not output.endswith("log_prob")]
    assert_same(plain(server, name, inputs, without).json()["outputs"], said(made, inputs, without))


@pytest.mark.parametrize("kind", [Client, Waiting])
@pytest.mark.parametrize("binary", [True, False])
def test_the_clients_take_levels_and_targets(server, fitted, kind, binary):
    client = kind(server.url, binary=binary)
    try:
        for name, outputs in (
            ("sorts", ["prediction_set", "abstain", "ood_score", "log_prob"]),
            ("prices", ["quantiles", "prediction_interval", "credible_interval", "log_prob"]),
            ("several", ["price.quantiles", "price.log_prob", "size.log_prob"]),
        ):
            inputs, targets = inputs_of(name, 4), targets_of(name, 4)
            want = said(fitted[1][name], inputs, outputs, targets, levels=(0.2, 0.4), confidence_level=0.7)
            given = targets if name == "several" else next(iter(targets.values()))
            got = client.infer(
                inputs, outputs, model=name, levels=np.array([0.2, 0.4]), confidence_level=0.7, target=given
            )
            assert_same(got.outputs, want)
        assert got.outputs["size.log_prob"].shape == (4, 2)
        with pytest.raises(BadRequest, match=r"each of parameters\.levels must be a number between 0 and 1"):
            client.infer(inputs, ["price.quantiles"], model="several", levels=[1.5])
        with pytest.raises(InputError, match=r"takes the targets 'price\.target', 'size\.target': give a dict"):
            client.infer(inputs, ["price.log_prob"], model="several", target=np.zeros(4))
        with pytest.raises(InputError, match=r"takes the targets .* however: 'size'"):
            client.infer(inputs, ["price.log_prob"], model="several", target={"size": np.zeros(4)})
        with pytest.raises(InputError, match="'target' must be INT64, however: an array of float64"):
            client.infer(inputs_of("sorts", 2), ["log_prob"], model="sorts", target=np.zeros(2))
    finally:
        client.close()


def test_a_crowd_of_different_questions_gets_each_its_own_answer(server, fitted):
    questions = []
    for seed in range(6):
        for level in (0.5, 0.8, 0.95):
            questions.append(("sorts", seed, ["prediction_set", "mean"], False, {"confidence_level": level}))
            questions.append(("prices", seed, ["prediction_interval"], False, {"confidence_level": level}))
        for levels in ([0.1], [0.1, 0.9], [0.9, 0.1]):
            questions.append(("prices", seed, ["quantiles", "std"], False, {"levels": levels}))
            questions.append(("several", seed, ["price.quantiles"], False, {"levels": levels}))
        questions.append(("sorts", seed, ["log_prob", "mean"], True, {}))
        questions.append(("sorts", seed, ["log_prob"], True, {"members": 3}))
        questions.append(("prices", seed, ["log_prob", "quantiles"], True, {"levels": [0.3]}))
        questions.append(("several", seed, ["size.log_prob", "price.log_prob"], True, {}))

    async def one(client, name, seed, outputs, about, parameters):
        inputs, rows = inputs_of(name, 1 + seed, seed), 1 + seed
        body = v2_body(inputs | (targets_of(name, rows, seed) if about else {}), outputs) | {"parameters": parameters}
        reply = await client.post(f"/v2/models/{name}/infer", json=body)
        return reply.status_code, reply.json()

    async def crowd():
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE, limits=limits) as client:
            # A class that there is not is refused alone.
            wrong = v2_body(inputs_of("sorts", 1) | {"target": np.array([3])}, ["log_prob"])
            asked = [one(client, *question) for question in questions * 2]
            *answers, refused = await asyncio.gather(*asked, client.post("/v2/models/sorts/infer", json=wrong))
            return answers, refused

    answers, refused = asyncio.run(crowd())
    assert refused.status_code == 400
    assert refused.json()["error"] == "input 'target' cannot be used: Targets must be class indices from 0 to 2."
    for (name, seed, outputs, about, parameters), (status, answer) in zip(questions * 2, answers, strict=True):
        assert status == 200, answer
        targets = targets_of(name, 1 + seed, seed) if about else None
        want = said(fitted[1][name], inputs_of(name, 1 + seed, seed), outputs, targets, **parameters)
        assert_same(v2_arrays(answer), want)


SORTS = {"inputs": [[0, 0, 0, 0]]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"outputs": ["log_prob"]}, "output 'log_prob' must come with input 'target' of the shape [batch]"),
        ({"target": [0]}, "input 'target' must come with output 'log_prob' asked for, which it is for"),
        (
            {"outputs": ["log_prob"], "target": [0, 1]},
            "input 'target' must have 1 rows, as the inputs have, however: 2",
        ),
        (
            {"outputs": ["log_prob"], "target": [[0]]},
            "input 'target' must be lists nested 1 deep as [batch], however: d",
        ),
        ({"outputs": ["log_prob"], "target": 0}, "target must be a list of rows"),
        ({"outputs": ["log_prob"], "target": {"x": [0]}}, "target must be named among 'target', however: 'x'"),
        ({"outputs": ["log_prob"], "target": [0.5]}, "input 'target'"),
        (
            {"outputs": ["log_prob"], "target": [-1]},
            "input 'target' cannot be used: Targets must be class indices from 0",
        ),
        ({"outputs": ["quantiles"]}, "output must be one of 'label', 'mean'"),
        ({"parameters": {"confidence_level": 1}}, "parameters.confidence_level must be a number between 0 and 1"),
        ({"parameters": {"levels": "a"}}, "parameters.levels as a text must be numbers between 0 and 1 with commas"),
    ],
)
def test_what_cannot_be_answered_says_why(server, body, text):
    reply = server.post("/predict", json=SORTS | body)
    assert reply.status_code == 400
    assert reply.json()["error"].startswith(text)


def test_what_was_not_fitted_says_what_to_do(server):
    for path, body in (
        ("/v1/models/prices/predict", {"inputs": {"x": [[0, 0]], "target": [[0, 0]]}, "outputs": ["abstain"]}),
        ("/v2/models/prices/infer", v2_body(inputs_of("prices", 1), ["abstain"])),
    ):
        error = server.post(path, json=body).json()["error"]
        assert error.startswith("output 'abstain' is not there: abstain was not fitted")
        assert error.endswith("or `ensembled build --data --risk`.")
    error = server.post("/v2/models/several/infer", json=v2_body(inputs_of("several", 1), ["size.ood_score"])).json()
    assert "is not there for a model with several outputs; make an ensemble for each of them" in error["error"]
    reply = plain(server, "prices", inputs_of("prices", 1), ["quantiles"], tolerance=0.1)
    assert reply.json()["error"] == "output 'quantiles' cannot be asked for with a tolerance; ask for it with members"
    # A normalised interval and a log-likelihood are sums over members.
    reply = plain(server, "prices", inputs_of("prices", 2), ["prediction_interval"], tolerance=0.1)
    assert reply.status_code == 200


def test_a_level_that_so_few_rows_do_not_vouch_for_is_told(server):
    reply = plain(
        server, "prices", inputs_of("prices", 2), ["prediction_interval", "mean"], confidence_level=0.99
    ).json()
    assert reply["outputs"]["prediction_interval"] == [[[None, None]] * 2] * 2
    assert reply["non_finite"] == ["prediction_interval"]
    sets = plain(server, "sorts", inputs_of("sorts", 2), ["prediction_set"], confidence_level=0.99).json()
    assert sets["outputs"]["prediction_set"] == [[True] * 3] * 2


def test_the_metadata_says_what_was_fitted_and_what_a_request_may_say(server):
    about = server.get("/v1/models/sorts").json()
    outputs = {output["name"]: output for output in about["outputs"]}
    assert outputs["prediction_set"]["datatype"] == outputs["abstain"]["datatype"] == "BOOL"
    assert outputs["prediction_set"]["shape"] == [-1, 3]
    assert outputs["prediction_set"]["parameters"]["uses"] == ["confidence_level"]
    assert (
        "fitted on 39 rows, score aps; confidence_level 0.8 unless"
        in outputs["prediction_set"]["parameters"]["description"]
    )
    assert "bound 0.9, risk 0.1" in outputs["abstain"]["parameters"]["description"]
    parameters = about["parameters"]
    assert parameters["request_parameters"]["confidence_level"].endswith("0.8 if it is not given")
    assert parameters["targets"] == [{"name": "target", "datatype": "INT64", "shape": [-1], "output": "log_prob"}]
    fitted = parameters["calibration"]
    assert (fitted["set_scores_rows"], fitted["confidence_level"], fitted["risk"]) == (39, 0.8, 0.1)
    assert "not_fitted" not in parameters
    prices = server.get("/v2/models/prices").json()
    assert [s["name"] for s in prices["inputs"]] == ["x", "target"]
    assert prices["parameters"]["targets"][0]["name"] == "log_prob.target"
    assert list(prices["parameters"]["not_fitted"]) == ["ood_score", "abstain"]
    shapes = {output["name"]: output["shape"] for output in prices["outputs"]}
    assert (shapes["quantiles"], shapes["prediction_interval"]) == ([-1, 2, -1], [-1, 2, 2])
    text = server.get("/openapi.json").json()["info"]["description"]
    assert "`prediction_set` | a conformal set" in text
    assert "fitted on 39 rows" in text


def test_quantiles_cost_so_much_at_most(server, fitted):
    """A member's distribution function that is searched once counts 1: 2**18 in a row and 2**24 in a request."""
    made = fitted[1]["wide"]
    assert made.outputs.searches(["quantiles", "credible_interval", "mean"], 7) == 9 * WIDTH
    assert made.outputs.searches(None) == 0

    def asked(rows, levels, **more):
        inputs = {"input": np.ones((rows, 1), dtype=np.float32)}
        levels = [(k + 1) / (levels + 1) for k in range(levels)]
        for send, path in ((plain_body, "/v1/models/wide/predict"), (v2_body, "/v2/models/wide/infer")):
            body = send(inputs, ["quantiles"])
            reply = server.post(path, json=body | {"parameters": {"levels": levels, **more}})
        return reply.status_code, reply.json()

    status, answer = asked(1, 44)
    assert status == 400
    assert answer["error"] == (
        "44000 quantiles in each row (levels times elements) of the mixture of 6 members are too many, since quantiles "
        "times members may be 262144; ask for fewer levels or outputs, or 5 members at most"
    )
    assert asked(1, 44, members=5)[0] == 200
    # Of other members than the model's own they are counted, too.
    levels = [(k + 1) / 39 for k in range(38)]
    body = {"inputs": [[1.0]], "outputs": ["quantiles"]}
    parameters = {"levels": levels, "perturbation": {"members": 7, "scale": 0.1}}
    error = server.post("/v1/models/wide/predict", json=body | {"parameters": parameters}).json()["error"]
    assert "38000 quantiles in each row" in error
    assert "of the mixture of 7 members are too many" in error
    status, answer = asked(2797, 1)
    assert status == 400
    assert answer["error"] == (
        "a request for 1000 quantiles in each row (levels times elements) of the mixture of 6 members may have 2796 "
        "rows at most, however: 2797"
    )
    # Whoever asks for none may send as many rows as the queue takes.
    rows = {"inputs": [[1.0]] * 2797, "outputs": ["abstain"]}
    assert "abstain was not fitted" in server.post("/v1/models/wide/predict", json=rows).json()["error"]


def test_what_says_nothing_new_is_no_question_of_its_own(fitted):
    served = wrap("prices", "1", fitted[1]["prices"], 8)
    default = Question(members=MEMBERS, confidence_level=0.9, levels=(0.05, 0.5, 0.95))
    assert served.plainest(default, ["quantiles", "prediction_interval"]) == Question()
    other = Question(2, 0.5, 0.8, (0.1, 0.2))
    assert served.plainest(other, ["mean", "std"]) == Question(2, 0.5)
    assert served.plainest(other, ["mean", "quantiles"]) == Question(2, 0.5, levels=(0.1, 0.2))
    assert served.plainest(other, ["credible_interval"]) == Question(2, 0.5, confidence_level=0.8)
    sorts = wrap("sorts", "1", fitted[1]["sorts"], 8)
    assert sorts.plainest(Question(confidence_level=0.8), ["prediction_set"]) == Question()
    assert sorts.plainest(Question(confidence_level=0.9), ["prediction_set"]) == Question(confidence_level=0.9)


def test_a_call_carries_the_targets_of_its_rows(fitted):
    served = wrap("several", "1", fitted[1]["several"], 8)
    inputs, targets = inputs_of("several", 3), targets_of("several", 3)
    one = {"size.target": targets["size.target"]}
    for outputs, about in ((["size.log_prob"], one), (["size.log_prob", "price.log_prob", "size.mean"], targets)):
        outcome = served.compute(Call(served, inputs | about, outputs, 3))
        assert_same(outcome.arrays, said(served.ensemble, inputs, outputs, about))
    request = InferRequest(None, inputs, (RequestedOutput("size.log_prob"),), 3, targets=one)
    assert request.targets is one


def asked_by_command(capsys, where, name, file, *options):
    root = where[1] / name / "1"
    answers = []
    for target, more in ((root, []), (where[0].url, ["--model", name])):
        status, out, err = run(capsys, "predict", target, file, *options, "--json", *more)
        assert (status, err) == (0, "")
        answers.append(json.loads(out)["outputs"])
    assert answers[0] == answers[1]
    return answers[0]


def test_the_command_asks_about_levels_and_targets(capsys, server, fitted, tmp_path):
    where = (server, fitted[0])
    inputs, targets = inputs_of("sorts", 300), targets_of("sorts", 300)
    # More rows than are computed at once, and a table, whose whole numbers are floating point.
    table = np.column_stack([inputs["input"][:, :2], targets["target"], inputs["input"][:, 2:]])
    np.savetxt(tmp_path / "a.csv", table, delimiter=",", header="a,b,sort,c,d", comments="")
    about = ["--outputs", "log_prob,prediction_set", "--confidence-level", "0.6"]
    want = said(fitted[1]["sorts"], inputs, ["log_prob", "prediction_set"], targets, confidence_level=0.6)
    assert_same(asked_by_command(capsys, where, "sorts", tmp_path / "a.csv", *about, "--target", "sort"), want)
    assert_same(asked_by_command(capsys, where, "sorts", tmp_path / "a.csv", *about, "--target", "2"), want)
    # The default model, found by the command.
    status, out, _ = run(capsys, "predict", server.url, tmp_path / "a.csv", *about, "--target", "sort", "--json")
    assert status == 0
    assert_same(json.loads(out)["outputs"], want)

    inputs, targets = inputs_of("several", 4), targets_of("several", 4)
    np.savez(tmp_path / "b.npz", **inputs, p=targets["price.target"], s=targets["size.target"])
    names = ["price.quantiles", "price.log_prob", "size.log_prob"]
    options = ["--outputs", ",".join(names), "--levels", "0.2,0.4", "--target", "price=p, size=s"]
    want = said(fitted[1]["several"], inputs, names, targets, levels=(0.2, 0.4))
    assert_same(asked_by_command(capsys, where, "several", tmp_path / "b.npz", *options), want)

    inputs, targets = inputs_of("prices", 3), targets_of("prices", 3)
    body = plain_body(inputs) | {"target": {"y": targets["log_prob.target"].tolist()}}
    (tmp_path / "c.json").write_text(json.dumps(body))
    want = said(fitted[1]["prices"], inputs, ["log_prob"], targets)
    about = ["--outputs", "log_prob", "--target", "y"]
    assert_same(asked_by_command(capsys, where, "prices", tmp_path / "c.json", *about), want)


def test_a_table_names_the_levels_that_were_asked(capsys, fitted, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    np.savez(tmp_path / "a.npz", **inputs_of("prices", 2))
    options = ("--outputs", "quantiles,mean", "--levels", "0.25,0.75")
    status, out, _ = run(capsys, "predict", fitted[0] / "prices" / "1", tmp_path / "a.npz", *options)
    assert status == 0
    assert "quantiles 0.25 0.75" in out


def test_a_column_of_values_is_a_target_of_one_number():
    asking = Asking({"": np.ones((2, 1))}, ["log_prob"], {}, {"": np.array([0.5, 1e300])})
    assert json.loads(asking.body({"log_prob": ("target", (-1, 1))}))["target"] == {"target": [[0.5], [1e300]]}
    assert json.loads(asking.body({"log_prob": ("target", (-1,))}))["target"] == {"target": [0.5, 1e300]}


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("sorts", ["--levels", "0.1"], "--levels is of quantiles: ask for it by --outputs"),
        (
            "sorts",
            ["--confidence-level", "0.5", "--outputs", "mean"],
            "--confidence-level is of prediction_interval",
        ),
        ("sorts", ["--target", "cost"], "has no column 'cost'; its columns are a, b, c, d, e"),
        ("sorts", ["--target", "a"], "input 'target' must come with output 'log_prob' asked for"),
        ("sorts", ["--outputs", "log_prob", "--target", "x=a"], "takes the name of an array or column, since"),
        (
            "several",
            ["--outputs", "price.log_prob", "--target", "a"],
            "OUTPUT among price, size, since the",
        ),
        ("several", ["--outputs", "price.log_prob", "--target", "cost=a"], "OUTPUT among price, size"),
        ("several", ["--outputs", "price.log_prob", "--target", "price=a,size=f"], "has no column 'f'"),
        ("prices", ["--outputs", "abstain"], "abstain was not fitted"),
    ],
)
def test_what_the_command_cannot_ask_is_one_line(capsys, server, fitted, tmp_path, name, options, text):
    (tmp_path / "a.csv").write_text("a,b,c,d,e\n0,0.5,1,0,1\n1,1.5,2,0,1\n")
    for target, more in ((fitted[0] / name / "1", []), (server.url, ["--model", name])):
        status, out, err = run(capsys, "predict", target, tmp_path / "a.csv", *options, *more)
        assert (status, out, len(err.splitlines())) == (1, "", 1)
        assert text in err


@pytest.mark.parametrize("option", ["--levels", "--confidence-level"])
@pytest.mark.parametrize("value", ["0", "1", "nan", "a", "", "0.5,"])
def test_levels_that_are_none_are_refused(capsys, fitted, option, value):
    status, out, err = run(capsys, "predict", fitted[0] / "sorts" / "1", "a.csv", option, value)
    assert (status, out) == (2, "")
    assert "must be between 0 and 1, such as 0.9, however" in err
