"""Load on a real service, which this file is when it is run as a program.

The service's models are named for what they do: `stall-50.a` blocks for a second at its 50th request, `slow-200`
takes 200 ms, `mixed` fails in four ways and succeeds in a fifth, by turns. What follows the dot only keeps apart
the counts of different tests.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from app.loadtest import Config, LoadTestError, command, run
from app.loadtest.runner import drive
from app.loadtest.samples import Recorder
from app.loadtest.target import Target

ROOT = Path(__file__).parents[3]
STALL = 1.0

# --- the service -------------------------------------------------------------------------------------------------

seen: Counter[str] = Counter()
bodies: dict[str, set[bytes]] = {}


async def index(request: Request) -> Response:
    names = os.environ["READY"].split(",")
    return JSONResponse([{"name": name, "version": "1", "state": "READY"} for name in names])


async def metadata(request: Request) -> Response:
    name = request.path_params["model"]
    if name == "unknown":
        return JSONResponse({"error": "no such model"}, 404)
    x = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    return JSONResponse({"name": name, "versions": ["1"], "platform": "p", "inputs": [x], "outputs": []})


async def told(request: Request) -> Response:
    name = request.path_params["model"]
    return JSONResponse({"count": seen[name], "bodies": [b.decode() for b in bodies.get(name, ())]})


async def infer(request: Request) -> Response:
    name = request.path_params["model"]
    seen[name] += 1
    turn = seen[name]  # before others come while this one's body is read
    bodies.setdefault(name, set()).add(await request.body())
    act, _, number = name.partition(".")[0].partition("-")
    if act == "mixed":
        act = ("429", "500", "text", "drop", "fast")[turn % 5]
    if act == "slow":
        await asyncio.sleep(int(number) / 1000)
    if act == "stall" and turn == int(number):
        time.sleep(STALL)  # the whole service stands still
    if act in ("429", "500"):
        return JSONResponse({"error": f"this is a {act}"}, int(act))
    if act == "text":
        return Response("all is well")
    if act == "drop":
        # Less than was announced: uvicorn closes the connection in the middle of the answer.
        return StreamingResponse(iter([b"{"]), headers={"content-length": "100"})
    if act == "key" and request.headers.get("authorization") != "Bearer k":
        return JSONResponse({"error": "no key"}, 401)
    return JSONResponse({"model_name": name, "outputs": [{"name": "mean", "shape": [1], "data": [0.5]}]})


def serve() -> None:
    routes = [
        Route("/v2/repository/index", index, methods=["POST"]),
        Route("/v2/models/{model}", metadata),
        Route("/v2/models/{model}/infer", infer, methods=["POST"]),
        Route("/told/{model}", told),
    ]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(Starlette(routes=routes), log_level="critical", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])


@contextlib.contextmanager
def service(ready):
    program = [sys.executable, __file__]
    with subprocess.Popen(program, env=os.environ | {"READY": ready}, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            for _ in range(200):
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"{url}/told/x")
                    break
                time.sleep(0.02)
            yield url
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url():
    with service("fast") as address:
        yield address


def told_by(url, model):
    return httpx.get(f"{url}/told/{model}").json()


def loadtest(*arguments):
    parser = argparse.ArgumentParser("ensembled loadtest")
    command.configure(parser)
    return command.main(parser.parse_args([str(a) for a in arguments]))


# --- the loops ---------------------------------------------------------------------------------------------------


def test_an_open_loop_shows_a_stall_that_a_closed_loop_hides(url):
    rate, duration, first = 200, 2.0, 50
    opened = run(Config(url=url, model=f"stall-{first}.open", rate=rate, duration=duration, warmup=0))
    closed = run(Config(url=url, model=f"stall-{first}.closed", concurrency=1, duration=duration, warmup=0))
    # By the schedule alone: a request that fell due t seconds into the stall waits for the rest of it.
    due = np.arange(rate * duration) / rate
    stalled = (due >= due[first - 1]) & (due < due[first - 1] + STALL)
    waits = np.where(stalled, 1000 * (due[first - 1] + STALL - due), 0)
    assert opened.count == opened.ok == rate * duration
    for name, percent in (("p90", 90), ("p95", 95), ("p99", 99)):
        expected = np.percentile(waits, percent)
        assert expected - 20 <= opened.latency_ms[name] <= expected + 400
    # The closed loop saw the same stall, once.
    assert closed.latency_ms["max"] >= 1000 * STALL
    assert closed.count > 200
    assert closed.latency_ms["p99"] < 0.5 * opened.latency_ms["p90"]


def test_what_is_offered_is_rate_times_duration_and_all_of_it_is_sent(url):
    report = run(Config(url=url, model="fast.offered", rate=150, duration=0.6, warmup=0.2))
    assert report.offered == 150
    assert report.count == report.ok == 90
    assert report.unfinished == 0
    assert told_by(url, "fast.offered")["count"] == 90 + 30
    assert report.error_rate == 0
    assert report.throughput == pytest.approx(150, rel=0.2)


def test_a_closed_loop_keeps_as_many_requests_in_flight_as_it_has_clients(url):
    report = run(Config(url=url, model="slow-50", concurrency=8, duration=0.6, warmup=0))
    assert report.latency_ms["p50"] >= 50
    # By Little's law, less what a busy machine adds to the 50 ms.
    assert 40 <= report.throughput <= 8 / 0.05
    assert report.count == told_by(url, "slow-50")["count"]


@pytest.mark.parametrize("load", [{"rate": 100, "duration": 0.5}, {"concurrency": 5, "duration": 0.3}])
def test_errors_are_counted_by_kind(url, load):
    model = f"mixed.{'open' if 'rate' in load else 'closed'}"
    report = run(Config(url=url, model=model, warmup=0, **load))
    turns = Counter(turn % 5 for turn in range(1, told_by(url, model)["count"] + 1))
    assert report.errors == {"429": turns[0], "500": turns[1], "bad_answer": turns[2], "disconnect": turns[3]}
    assert report.ok == turns[4]
    assert "this is a 429" in report.error_examples["429"]
    assert report.error_examples["bad_answer"] == "all is well"


def test_an_answer_that_takes_too_long_is_a_timeout(url):
    report = run(Config(url=url, model="slow-2000", rate=20, duration=0.3, warmup=0, timeout=0.2))
    assert report.errors == {"timeout": 6}
    assert report.latency_ms["p99"] is None


def test_what_the_bound_kept_from_being_sent_is_an_error(url):
    report = run(Config(url=url, model="slow-700", rate=100, duration=0.3, warmup=0, max_in_flight=5))
    assert report.errors == {"not_sent": 25}
    assert report.ok == told_by(url, "slow-700")["count"] == 5
    assert report.count == 30


@pytest.mark.parametrize("load", [{"rate": 20}, {"concurrency": 2}])
def test_a_service_that_is_gone_is_a_connect_error_and_is_not_stormed(load):
    with socket.socket() as taken:  # bound, not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        config = Config(url=address, duration=0.3, warmup=0, **load)
        target = Target(url=httpx.URL(address), model=None, bodies=[b"{}"], is_good=lambda _: True)
        recorder = Recorder()
        drive(config, target, recorder)
    assert recorder.ok == 0
    assert 2 <= recorder.errors <= 8
    assert recorder.samples().kinds == ("ok", "connect")


def test_the_rows_of_a_file_are_what_the_service_gets(url, tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.arange(12, dtype=np.float32).reshape(3, 4))
    config = Config(
        url=url,
        model="fast.data",
        data=tmp_path / "rows.npz",
        outputs=("mean", "label"),
        rate=50,
        duration=0.2,
        warmup=0,
    )
    assert run(config).ok == 10
    got = [json.loads(body) for body in told_by(url, "fast.data")["bodies"]]
    assert {tuple(body["inputs"][0]["data"]) for body in got} == {(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)}
    assert all(body["outputs"] == [{"name": "mean"}, {"name": "label"}] for body in got)


def test_the_model_is_found_if_there_is_one_and_asked_for_if_there_are_several(url):
    assert run(Config(url=url + "/", rate=20, duration=0.1, warmup=0)).model == "fast"
    with service("b,a") as other, pytest.raises(LoadTestError, match="--model: a, b"):
        run(Config(url=other, rate=1))


# --- the command -------------------------------------------------------------------------------------------------


def test_writes_table_json_and_plot_and_passes(url, tmp_path, capsys):
    status = loadtest(
        url,
        *("--model", "fast.cli", "--rate", 100, "--duration", 0.5, "--warmup", 0, "--arrivals", "poisson"),
        *("--json", tmp_path / "r.json", "--plot", tmp_path / "r.png", "--max-error-rate", 0, "--max-p99", 60_000),
    )
    assert status == 0
    out = capsys.readouterr().out
    assert "p99.9" in out
    assert "throughput" in out
    found = json.loads((tmp_path / "r.json").read_bytes())
    assert found["model"] == "fast.cli"
    assert found["requests"]["ok"] == found["requests"]["count"] == told_by(url, "fast.cli")["count"]
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_exits_with_1_when_a_limit_is_missed_and_prints_nothing_but_json(url, capsys):
    limits = ("--max-p99", 0.001, "--max-error-rate", 0.5, "--min-throughput", 1e6)
    load = ("--rate", 50, "--duration", 0.2, "--warmup", 0)
    assert loadtest(url, "--model", "fast.limits", *load, *limits, "--json", "-") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["requests"]["count"] == 10
    assert "of --max-p99" in captured.err
    assert "of --min-throughput" in captured.err
    assert "--max-error-rate" not in captured.err


def test_posts_any_body_to_any_url(url, tmp_path, capsys):
    (tmp_path / "body.json").write_text('{"anything": 1}')
    load = ("--body", tmp_path / "body.json", "--concurrency", 1, "--duration", 0.1, "--warmup", 0)
    assert loadtest(f"{url}/v2/models/text/infer", *load, "--max-error-rate", 0) == 0
    assert told_by(url, "text")["bodies"] == ['{"anything": 1}']


def test_sends_headers(url):
    load = ("--model", "key", "--concurrency", 1, "--duration", 0.1, "--warmup", 0, "--max-error-rate", 0)
    assert loadtest(url, *load) == 1
    assert loadtest(url, *load, "--header", "Authorization: Bearer k") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["http://127.0.0.1:9", "--rate", 1], "cannot reach"),
        (["ftp://host", "--rate", 1], "must be like http://"),
        (["URL", "--rate", 0], "rate=0"),
        (["URL", "--rate", 1, "--model", "unknown"], "answers 404: "),
        (["URL", "--rate", 1, "--plot", "load.gif"], ".png or .svg"),
        (["URL", "--rate", 1, "--header", "nonsense"], "NAME: VALUE"),
        (["URL", "--rate", 1, "--body", "missing.json"], "cannot be read"),
        (["URL", "--rate", 1, "--json", "no/such/folder/r.json"], "no folder"),
    ],
)
def test_exits_with_2_and_one_line_when_it_cannot_run(url, arguments, message, capsys):
    assert loadtest(*(url if a == "URL" else a for a in arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


def test_a_load_must_be_chosen(url, capsys):
    with pytest.raises(SystemExit) as stopped:
        loadtest(url)
    assert stopped.value.code == 2
    assert "--rate --concurrency" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is not handled on Windows")
@pytest.mark.parametrize(("load", "takes"), [("--rate=50", 30), ("--concurrency=3", 200)])
def test_ctrl_c_stops_early_and_still_reports(url, load, takes):
    program = (
        "import argparse, sys; from app.loadtest import command; parser = argparse.ArgumentParser(); "
        "command.configure(parser); sys.exit(command.main(parser.parse_args()))"
    )
    model = f"slow-{takes}.{load[2:6]}"
    arguments = [url, "--model", model, load, "--duration", "60", "--warmup", "0", "--json", "-"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + 10
        while told_by(url, model)["count"] < 10 and time.monotonic() < deadline:
            time.sleep(0.02)
        # What is cut off before a busy service has read it is counted by the client alone.
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    found = json.loads(out)
    assert found["interrupted"] is True
    assert 0 < found["duration_s"] < 20
    assert found["requests"]["ok"] == found["requests"]["count"] >= 5
    assert found["requests"]["ok"] + found["requests"]["unfinished"] == told_by(url, model)["count"]
    assert b"Traceback" not in err


if __name__ == "__main__":
    serve()
