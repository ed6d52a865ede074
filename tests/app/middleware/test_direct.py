"""The shortest way to a handler says what FastAPI's routing says."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response

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


def send(app: FastAPI, method: str, path: str, content: str = "") -> httpx.Response:
    async def asking() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, content=content)

    return asyncio.run(asking())


@pytest.fixture(params=["direct", "routed"])
def app(request):
    made = FastAPI(title="here", redirect_slashes=False)
    made.include_router(router)
    if request.param == "direct":
        made.add_middleware(Direct, routes=router.routes)
    return made


def test_path_parameters_and_the_body_reach_the_handler(app):
    assert send(app, "POST", "/models/a%20b/ask?x=1", "body").text == "a b body x=1 /models/{name}/ask"
    assert send(app, "POST", "/ask").text == "plain here"


def test_other_methods_and_paths_are_answered_as_before(app):
    assert send(app, "GET", "/ask").status_code == 405
    for path in ("/models/a/b/ask", "/models//ask", "/ask/"):
        assert send(app, "POST", path).status_code == 404


def test_errors_of_the_service_are_answers():
    app = FastAPI()
    app.add_middleware(Direct, routes=router.routes)
    answer = send(app, "POST", "/models/nobody/ask")
    assert answer.status_code == 404
    assert answer.json() == {"error": "there is no such model"}


def test_below_another_applications_path_routing_decides():
    inner, outer = FastAPI(title="inner"), FastAPI()
    inner.include_router(router)
    inner.add_middleware(Direct, routes=router.routes)
    outer.mount("/below", inner)
    assert send(outer, "POST", "/below/ask").text == "plain inner"
    assert send(outer, "POST", "/below/models/a/ask").text.startswith("a ")
