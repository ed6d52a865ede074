"""The documentation: it needs no internet, and what it shows is true."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil

import jsonschema
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ensemble
from tests.app.support import until

POSTS = ("/predict", "/v1/models/{name}/predict", "/v1/models/{name}/versions/{version}/predict",
         "/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")  # fmt: skip


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def test_every_page_and_every_file_of_it_comes_from_the_service(client):
    page = client.get("/docs").text
    links = re.findall(r"(?:src|href)=\"([^\"]+)\"|url: '([^']+)'", page)
    paths = [one or other for one, other in links]
    assert len(paths) >= 4
    for path in paths:
        assert path.startswith("/")
        assert not path.startswith("//")
        assert client.get(path).status_code == 200
    assert not re.search(r"https?://", page)


def test_the_document_lists_every_path(document):
    others = {"/v2", "/v2/health/ready", "/v2/repository/index", "/metrics", "/v2/models/stats"}
    models = {"/v2/models/{name}", "/v2/models/{name}/config", "/v2/models/{name}/versions/{version}/config"}
    assert set(document["paths"]) >= {*POSTS, *others, *models}
    names = [o["operationId"] for methods in document["paths"].values() for o in methods.values()]
    assert len(set(names)) == len(names)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            stated = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
            assert stated == set(re.findall(r"\{(\w+)\}", path))


def same(got, want) -> None:
    """Equal but for the digits that an example leaves out."""
    if isinstance(want, dict):
        assert got.keys() == want.keys()
        for key in want:
            same(got[key], want[key])
    elif isinstance(want, list):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            same(one, other)
    elif isinstance(want, float):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)
    else:
        assert got == want


@pytest.mark.parametrize("path", POSTS)
def test_every_example_gives_the_answer_that_is_shown(client, document, path):
    post = document["paths"][path]["post"]
    asked = post["requestBody"]["content"]["application/json"]["examples"]
    shown = post["responses"]["200"]["content"]["application/json"]["examples"]
    every = {"classes", "house", "pair", "weather"}
    assert set(asked) == set(shown) == ({"classes"} if path == "/predict" else every)
    for model, example in asked.items():
        version = "2" if model == "classes" else "1"
        reply = client.post(path.format(name=model, version=version), json=example["value"])
        assert reply.status_code == 200
        same(reply.json(), shown[model]["value"])


def test_the_schemas_are_schemas(document):
    for methods in document["paths"].values():
        for operation in methods.values():
            holders = [*operation["responses"].values(), operation.get("requestBody", {})]
            schemas = [content["schema"] for holder in holders for content in holder.get("content", {}).values()]
            for schema in [*schemas, *(p["schema"] for p in operation.get("parameters", []))]:
                jsonschema.Draft202012Validator.check_schema(schema)


def fits(value, schema) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize("path", POSTS)
def test_examples_and_answers_fit_their_schemas(client, document, path):
    post = document["paths"][path]["post"]
    asked, shown = post["requestBody"]["content"]["application/json"], post["responses"]["200"]["content"]
    for model, example in asked["examples"].items():
        assert fits(example["value"], asked["schema"])
        version = "2" if model == "classes" else "1"
        answer = client.post(path.format(name=model, version=version), json={**example["value"], "id": "a-1"}).json()
        assert answer["id"] == "a-1"
        assert fits(answer, shown["application/json"]["schema"])


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "parameters",
    [{"members": 0}, {"members": 1.5}, {"members": True}, {"tolerance": 0}, {"priority": 10}, {"priority": "1"},
     {"timeout": 0}, {"timeout_seconds": 0}, {"sequence_id": 7}, {"members": 2}, {"tolerance": 0.5, "priority": 9}, {},
     {"confidence_level": 1}, {"confidence_level": 0.5},
     {"levels": []}, {"levels": [0.5, 1]}, {"levels": "0.1, 0.9"}, {"levels": "0.1;0.9"}, {"levels": 0.5}],
)  # fmt: skip
def test_the_schema_of_the_parameters_is_what_is_checked(client, document, path, parameters):
    """Of those that do not depend on the model."""
    post = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    body = {**post["examples"]["classes"]["value"], "parameters": parameters}
    reply = client.post(path.format(name="classes", version="2"), json=body)
    assert reply.status_code == (200 if fits(body, post["schema"]) else 400)


@pytest.mark.parametrize("path", ["/v2/models/stats", "/v2/models/{name}/stats", "/v2/models/{name}/config"])
def test_other_answers_fit_their_schemas(client, document, path):
    schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert fits(client.get(path.format(name="pair")).json(), schema)
    assert not fits({}, schema)


def test_the_index_fits_its_schema(client, document):
    post = document["paths"]["/v2/repository/index"]["post"]
    assert fits({"ready": True}, post["requestBody"]["content"]["application/json"]["schema"])
    index = client.post("/v2/repository/index", json={"ready": True}).json()
    assert len(index) == 4
    assert fits(index, post["responses"]["200"]["content"]["application/json"]["schema"])


@pytest.mark.parametrize(
    ("method", "path", "rest"),
    [
        ("POST", "/predict", {"content": b"{"}),
        ("POST", "/predict", {"content": b"x", "headers": {"Sec-Fetch-Site": "cross-site"}}),
        ("POST", "/predict", {"content": b"x" * (2**20 + 1)}),
        ("POST", "/predict", {"content": b"x", "headers": {"Content-Encoding": "br"}}),
        ("POST", "/predict", {"json": {"inputs": [[0] * 4]}, "headers": {"X-Request-Timeout": "0.000001"}}),
        ("POST", "/v1/models/{name}/predict", {"json": {}}),
        ("POST", "/v2/models/{name}/infer", {"json": {}}),
        ("GET", "/v2/models/{name}", {}),
        ("GET", "/v2/models/{name}/config", {}),
        ("GET", "/v2/models/{name}/stats", {}),
        ("POST", "/v2/repository/index", {"content": b"["}),
        ("POST", "/v2/repository/models/{name}/load", {}),
    ],
)
def test_every_error_that_is_answered_is_described(client, document, method, path, rest):
    reply = client.request(method, path.format(name="nobody"), **rest)
    assert reply.status_code >= 400
    described = document["paths"][path][method.lower()]["responses"][str(reply.status_code)]
    assert fits(reply.json(), described["content"]["application/json"]["schema"])
    for name in described.get("headers", {}):
        assert name in reply.headers
    assert not {"422", "500"} & set(document["paths"][path][method.lower()]["responses"])


def test_a_key_is_described_where_one_is_needed(models, running):
    key = secrets.token_urlsafe(32)

    async def main():
        async with running(models=models, api_key=key, wait=False) as client:
            reply = await client.get("/openapi.json", headers={"X-API-Key": key})
            document = reply.json()
            assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
            assert document["security"] == [{"bearer": []}, {"header": []}]
            assert document["paths"]["/v2/health/live"]["get"]["security"] == []
            assert "401" in document["paths"]["/predict"]["post"]["responses"]
            assert "401" not in document["paths"]["/v2/health/live"]["get"]["responses"]

    asyncio.run(main())


def test_what_the_models_say_is_explained(document, loaded):
    text = document["info"]["description"]
    for name, made in loaded.items():
        assert f"**{name}**" in text
        for statistic in made.available_statistics():
            assert f"`{statistic}`" in text
    assert "Three kinds." in text


class Wide(nn.Module):
    """A large input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) * self.weight


class Negative(nn.Module):
    """A variance below zero, so that the standard deviation is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"mean": x * self.weight, "variance": -(x * self.weight).square() - 1}


def test_models_that_cannot_be_shown_do_not_break_the_page(models, running, tmp_path, monkeypatch):
    """A model that is broken, one whose example is too large, and one whose answer holds NaN."""
    shutil.copytree(models / "house", tmp_path / "house")
    wide = ensemble.perturb(Wide(), ensemble.Gaussian(scale=0.1), members=2, example=torch.ones(2, 20_000))
    wide.save(tmp_path / "wide" / "1")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "manifest.json").write_text("[]")
    # Positive where it was built, and not any more.
    monkeypatch.setattr(ensemble.Ensemble, "check_variances", lambda self: None)
    negative = ensemble.perturb(
        Negative(), ensemble.Gaussian(scale=0.01), members=3, example=torch.ones(2, 2), task="gaussian"
    )
    negative.save(tmp_path / "negative" / "1")

    async def main():
        async with running(models=tmp_path) as client:
            reply = await client.get("/openapi.json")
            assert reply.status_code == 200
            document = reply.json()
            post = document["paths"]["/v1/models/{name}/predict"]["post"]
            assert set(post["requestBody"]["content"]["application/json"]["examples"]) == {"house", "negative"}
            shown = post["responses"]["200"]["content"]["application/json"]["examples"]["negative"]["value"]
            assert shown["outputs"]["std"] == [[None, None]]
            assert (shown["non_finite"], shown["non_finite_rows"]) == (["std"], [0])
            for path in ("/v1/models/{name}/predict", "/v2/models/{name}/infer"):
                post = document["paths"][path]["post"]
                asked = post["requestBody"]["content"]["application/json"]["examples"]["negative"]["value"]
                told = post["responses"]["200"]["content"]["application/json"]
                answer = (await client.post(path.format(name="negative"), json=asked)).json()
                same(answer, told["examples"]["negative"]["value"])
                assert fits(answer, told["schema"])
            assert "**broken** (version 1): " in document["info"]["description"]
            assert str(tmp_path) not in reply.text
            assert "examples" not in document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]

    asyncio.run(main())


def test_a_browser_tries_the_default_model_and_sees_the_answer(service, loaded):
    """Optional: needs the package playwright, and Debian's chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{service.url}/docs")
        block = page.locator(".opblock", has=page.locator("[data-path='/predict']"))
        block.locator(".opblock-summary").click()
        block.get_by_role("button", name="Try it out").click()
        block.get_by_role("button", name="Execute").click()
        live = block.locator(".live-responses-table .response").first
        live.locator(".response-col_status", has_text="200").wait_for()
        text = live.locator(".highlight-code").first.inner_text()
        page.screenshot(path=service.log.with_name("docs.png"), full_page=True)
        browser.close()
    assert '"model": "classes"' in text
    assert '"label": [' in text
    assert all(url.startswith((service.url, "data:", "blob:")) for url in requests)
    until(lambda: "POST /predict" in service.text(), "the log tells of it")
