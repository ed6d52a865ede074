"""Where the requests go: asking a running service what it serves.

These few questions come before the test and are not measured. They also find out, before any load is made,
that the service is there at all.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from app.loadtest import payload
from app.loadtest.config import Config, LoadTestError


@dataclass(frozen=True, kw_only=True)
class Target:
    """A URL to post to, what to post, and what makes a body with status 200 a good answer."""

    url: httpx.URL
    model: str | None
    bodies: list[bytes]
    is_good: Callable[[bytes], bool]


def find(config: Config) -> Target:
    """The target that `config` names.

    Raises:
        LoadTestError: if the service cannot be reached, or the model is not there or not clear.
    """
    url = _parse(config.url)
    if config.body is not None:
        body = payload.load_body(config.body)
        _knock(url)
        return Target(url=url, model=None, bodies=[body], is_good=lambda _: True)
    base = str(url).rstrip("/")
    data = payload.load_data(config.data) if config.data is not None else None
    # trust_env=False: the load goes to the service directly, so the questions do not take a proxy either.
    with httpx.Client(headers=dict(config.headers), timeout=config.timeout, trust_env=False) as client:
        model = config.model or _only_model(_ask(client, "POST", f"{base}/v2/repository/index"))
        path = f"{base}/v2/models/{quote(model, safe='')}"
        metadata = _ask(client, "GET", path)
    if not isinstance(metadata, dict):
        raise LoadTestError(f"{path} answers with something that is not the metadata of a V2 model")
    bodies = payload.bodies(metadata, rows=config.rows, outputs=config.outputs, seed=config.seed, data=data)
    return Target(url=httpx.URL(f"{path}/infer"), model=model, bodies=bodies, is_good=payload.is_answer)


def _parse(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise LoadTestError(f"url must be like http://127.0.0.1:8000, however: {text} ({error})") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise LoadTestError(f"url must be like http://127.0.0.1:8000, however: {text}")
    return url


def _ask(client: httpx.Client, method: str, url: str) -> Any:
    try:
        answer = client.request(method, url, json={} if method == "POST" else None)
    except httpx.HTTPError as error:
        raise LoadTestError(f"cannot reach {url}: {error or type(error).__name__}; is the service running?") from error
    if answer.status_code != 200:
        raise LoadTestError(f"{method} {url} answers {answer.status_code}: {answer.text[:200]}")
    try:
        return answer.json()
    except ValueError as error:
        raise LoadTestError(f"{method} {url} answers with something that is not JSON") from error


def _only_model(index: Any) -> str:
    try:
        ready = sorted({str(entry["name"]) for entry in index if entry.get("state") == "READY"})
    except (KeyError, TypeError, AttributeError) as error:
        raise LoadTestError("the service's model index is not V2; name the model with --model") from error
    if len(ready) == 1:
        return ready[0]
    if not ready:
        raise LoadTestError("no model of the service is ready")
    raise LoadTestError(f"the service has several models; choose one with --model: {', '.join(ready)}")


def _knock(url: httpx.URL) -> None:
    try:
        socket.create_connection((url.host, _port(url)), timeout=5).close()
    except OSError as error:
        raise LoadTestError(f"cannot reach {url}: {error}; is the service running?") from error


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)
