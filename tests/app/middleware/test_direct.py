"""The shortest way to a handler says what FastAPI's routing says."""

from __future__ import annotations

import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.testclient import TestClient

from app.errors import NotFound
from app.middleware import Direct

router = APIRouter()


@router.post("/models/{name}/ask")
async def ask(request: Request, name: str) -> Response:
    if name == "nobody":
        raise NotFound("there is no such model")
    return Response(f"{name} {(await request.body()).decode()} {request.query_params} {request.scope['route'].path}")


@router.post("/ask")
async def plain(request: Request) -> Response:
    return Response("plain " + request.app.title)


@pytest.fixture(params=["direct", "routed"])
def client(request):
    app = FastAPI(title="here")
    app.include_router(router)
    if request.param == "direct":
        app.add_middleware(Direct, routes=router.routes)
    with TestClient(app) as client:
        yield client


def test_path_parameters_and_the_body_reach_the_handler(client):
    assert client.post("/models/a%20b/ask?x=1", content="body").text == "a b body x=1 /models/{name}/ask"
    assert client.post("/ask").text == "plain here"


def test_other_methods_and_paths_are_answered_as_before(client):
    assert client.get("/ask").status_code == 405
    assert client.post("/models/a/b/ask").status_code == 404
    assert client.post("/models//ask").status_code == 404


def test_errors_of_the_service_are_answers():
    app = FastAPI()
    app.add_middleware(Direct, routes=router.routes)
    with TestClient(app) as client:
        answer = client.post("/models/nobody/ask")
    assert answer.status_code == 404
    assert answer.json() == {"error": "there is no such model"}


def test_below_another_applications_path_routing_decides():
    inner, outer = FastAPI(title="inner"), FastAPI()
    inner.include_router(router)
    inner.add_middleware(Direct, routes=router.routes)
    outer.mount("/below", inner)
    with TestClient(outer) as client:
        assert client.post("/below/ask").text == "plain inner"
        assert client.post("/below/models/a/ask").text.startswith("a ")
