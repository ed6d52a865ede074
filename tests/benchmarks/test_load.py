"""Peers are checked before they are timed, what is missing says so, and the ratios are those of the figures."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import orjson
import pytest
import torch

from benchmarks.load import __main__ as command
from benchmarks.load import clients, members, services
from benchmarks.load.clients import LOADS
from benchmarks.load.questions import TOLERANCE, Bare, Questions, check, prepare
from benchmarks.load.results import Cell, Group, Results, table, whole
from benchmarks.load.services import OURS, SERVICES, FailedError, Service, running

COUNT = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("load") / "cnn" / "1"
    return path, prepare("cnn", "rank1", COUNT, path)


@pytest.mark.parametrize("way", members.WAYS)
def test_peers_have_the_members_of_the_ensemble(saved, way):
    path, questions = saved
    found = members.load(path, "cnn", way)
    rows = torch.tensor([json.loads(body)["inputs"][0] for body in questions.flat])
    np.testing.assert_allclose(found.mean(rows).numpy(), questions.mean, atol=1e-6)
    assert len(members.answer(found.mean(rows[:1]))["outputs"]["mean"]) == 1


def test_the_same_rows_are_asked_of_all(saved):
    _, questions = saved
    flat, shaped = (np.array([json.loads(body)["inputs"][0] for body in b]) for b in (questions.flat, questions.shaped))
    np.testing.assert_array_equal(flat, shaped.reshape(len(flat), -1))
    assert len(np.unique(questions.mean, axis=0)) == len(questions.mean)


def test_the_bare_call_is_timed(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    threads = torch.get_num_threads()
    try:
        found = Bare(saved[0], "cnn")
        assert 0 < found.seconds(0.01) < 10
    finally:
        torch.set_num_threads(threads)
    assert "1 rows" in found.how()


@pytest.fixture
def served():
    """A service that answers as it is told: `served(function)` gives its URL."""
    started = []

    def serve(respond):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status, answer = respond(orjson.loads(body)["inputs"][0])
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        class Listener(ThreadingHTTPServer):
            request_queue_size = 100

        server = Listener(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(server)
        return f"http://127.0.0.1:{server.server_port}/predict"

    yield serve
    for server in started:
        server.shutdown()
        server.server_close()


ROWS = 8
BODIES = [orjson.dumps({"inputs": [[float(i)]]}) for i in range(ROWS)]
QUESTIONS = Questions(BODIES, BODIES, np.arange(ROWS, dtype=np.float32)[:, None] / 10)


def says(mean):
    return 200, orjson.dumps({"outputs": {"mean": mean}})


def test_right_answers_pass(served):
    url = served(lambda row: says([[row[0] / 10 + TOLERANCE / 2]]))
    assert check(url, QUESTIONS, ours=False) == pytest.approx(TOLERANCE / 2, rel=1e-2)


@pytest.mark.parametrize(
    ("respond", "said"),
    [
        # A batch that was given back in another order, in part.
        (lambda row: says([[(row[0] if row[0] < 6 else 13 - row[0]) / 10]]), "wrong: .* by 1.0e-01"),
        (lambda row: says([[None]]), "wrong: .* by nan"),
        (lambda row: says([[0.0, 1.0]]), "shape"),
        (lambda row: (503, b"busy"), "answers 503: busy"),
    ],
)
def test_wrong_answers_are_not_timed(served, respond, said):
    with pytest.raises(FailedError, match=said):
        check(served(respond), QUESTIONS, ours=False)


def test_what_is_missing_says_so(tmp_path):
    absent = Service("Absent", ("absent",), ("no-such-package",))
    with (
        pytest.raises(FailedError, match="no-such-package not installed"),
        running(absent, tmp_path, "mlp", b"", 1, tmp_path / "log"),
    ):
        raise AssertionError("it was started")


def test_one_that_ends_says_what_it_said_last(tmp_path, monkeypatch):
    script = "import sys; sys.exit('no such weights')"
    monkeypatch.setattr(Service, "command", lambda *_: [sys.executable, "-c", script])
    with (
        pytest.raises(FailedError, match="ended with 1: no such weights"),
        running(SERVICES["fastapi-vmap"], tmp_path, "mlp", b"", 1, tmp_path / "log"),
    ):
        raise AssertionError("it was started")


def test_a_process_that_does_not_listen_is_ended(monkeypatch):
    monkeypatch.setattr(services, "_END", 0.2)
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    with process.stdout as stream:
        assert stream.readline()
        services.end(process)
    assert process.returncode == -9


def test_commands(tmp_path):
    words = SERVICES["fastapi-loop"].command(tmp_path, "mlp", 9000)[1:]
    assert words == [
        "-m", "benchmarks.load.with_fastapi", str(tmp_path / "mlp" / "1"), "mlp", "--way", "loop", "--port", "9000",
    ]  # fmt: skip
    assert str(tmp_path) in OURS.command(tmp_path, "mlp", 9000)


@pytest.fixture
def group():
    found = Group(
        "mlp", "dense", 128, bare=[5.0, 9.0, 4.0], single=[5.5, 9.9, 4.3], how="vmap", differences={"ensembled": 3e-8}
    )
    found.cells = {
        "fastapi-loop": [Cell(1, 40.0, 24.0, 30.0), Cell(32, 41.0, 800.0, 1200.0)],
        "litserve": [Cell(1, 60.0, 15.0, 20.0), Cell(32, 164.0, 200.0, 300.0, 2)],
        "ensembled": [Cell(1, 180.0, 5.5, 9.0), Cell(32, 410.0, 70.0, 90.0)],
    }
    found.reasons["ray"] = "ray not installed"
    return found


def test_ratios_are_to_the_best_peer(group):
    assert group.best_peer(32)[0] == "litserve"
    assert group.ratio(1) == 3
    assert group.ratio(32) == 2.5
    assert group.added() == pytest.approx(0.5)
    assert group.ratio(7) is None
    assert Group("mlp", "dense", 128).added() is None


def test_tables(group):
    text = table(group)
    ours = next(line for line in text.splitlines() if "ensembled" in line and line.startswith("| 32"))
    assert [cell.strip() for cell in ours.strip("|").split("|")] == ["32", "ensembled", "410.0", "70", "90", "0", "2.5"]
    assert "takes 5 ms (vmap); a single client's request takes 0.50 ms more" in text
    assert "Ray Serve, vmap, batching: ray not installed." in text
    assert "| 1,200" in text
    results = Results("a machine", "a command", "wrk", [group])
    assert "a machine" in whole(results)
    assert "(wrk)" in whole(results)
    plain = json.loads(json.dumps(results.plain()))
    assert plain["groups"][0]["ratios"] == {"1": 3.0, "32": 2.5}
    assert plain["groups"][0]["added_ms"] == pytest.approx(0.5)


needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
ways = pytest.mark.parametrize("way", [pytest.param("wrk", marks=needs_wrk), "loadtest"])


@pytest.fixture
def body(tmp_path):
    path = tmp_path / "body"
    path.write_bytes(BODIES[3])
    return path


@ways
def test_clients_count_what_is_answered(served, body, monkeypatch, way):
    monkeypatch.setattr(clients, "_WARM_UP", 0)
    asked = []

    def respond(row):
        asked.append(row[0])
        time.sleep(0.01)
        return says([[row[0]]])

    begun = time.perf_counter()
    cell = LOADS[way](served(respond), body, 2, 0.3)
    assert cell.clients == 2
    assert cell.errors == 0
    assert 10 < cell.p50 <= cell.p99
    # Two clients that wait for 10 ms each.
    assert 1 < cell.throughput < 200
    assert cell.throughput <= len(asked) / 0.3
    assert len(asked) < 200 * (time.perf_counter() - begun)
    assert set(asked) == {3.0}


@ways
def test_what_is_refused_is_no_answer(served, body, monkeypatch, way):
    monkeypatch.setattr(clients, "_WARM_UP", 0)
    cell = LOADS[way](served(lambda row: (429, b"{}")), body, 1, 0.2)
    assert cell.throughput == 0
    assert cell.errors > 0
    assert cell.p50 is None


@pytest.mark.parametrize(
    ("way", "said"),
    [
        pytest.param("wrk", "(?s)wrk ended with 1: .*no-such-file.*onnect", marks=needs_wrk),
        ("loadtest", "the load tester ended with 2: .*no-such-file"),
    ],
)
def test_a_load_that_cannot_be_made_says_why(tmp_path, way, said):
    with pytest.raises(FailedError, match=said):
        LOADS[way]("http://127.0.0.1:9/predict", tmp_path / "no-such-file", 1, 1)


def test_a_client_that_is_not_installed_is_not_taken(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert clients.available() == "loadtest"
    with pytest.raises(SystemExit):
        command.main(["--by", "wrk"])
    assert "wrk is not installed" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--members", "0"], ["--services", "triton"], ["--cases", "gpt"]])
def test_the_command_refuses_what_it_does_not_know(words):
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == 2
