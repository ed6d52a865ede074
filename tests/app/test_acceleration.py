import asyncio
import logging
import threading
from types import SimpleNamespace

import pytest
import torch

from app.acceleration import Accelerator
from app.engine import Engine
from app.planning import PLAIN, Planning
from ensemble import MemoryLimitError, ModelError
from ensemble.planning.optimize import Step


class Ensemble:
    """What the accelerator asks of one: each step compiles to itself, unless there is an error for its backend."""

    def __init__(self, **errors):
        self.errors = errors
        self.device, self.members = torch.device("cpu"), SimpleNamespace(nbytes=1)
        self.compiled, self.failures, self.remembered = [], {}, []
        self.plan = SimpleNamespace(ways=[SimpleNamespace(rows=rows) for rows in (1, 2, 4)], way="rows: {}".format)

    def missing_backends(self):
        return {"inductor": "there is no C++ compiler; install g++"}

    def steps(self, rows, precision):
        return [Step(kind, size, 8, "float32") for kind in ("openvino", "inductor", "cudagraph") for size in rows]

    def compile(self, step, workshop):
        self.compiled.append((step.kind, step.rows))
        if step.kind in self.errors:
            raise self.errors[step.kind]
        return step

    def adopt(self, compiled):
        return True

    def note_failures(self, failures):
        self.failures = dict(failures)

    def remember(self, sizes, workshop, precision):
        self.remembered.append((sizes, precision))


class Workshop:
    closed = 0

    def close(self):
        self.closed += 1


def accelerated(made, *, wanted=lambda: True, complete=False, planning=None):
    workshop = Workshop()
    planning = planning or Planning(workshop)
    model = SimpleNamespace(name="m", version="1", ensemble=made, plan_sizes=(1, 2, 4), plan_complete=complete)

    async def work():
        engine = Engine(1)
        try:
            await Accelerator(engine, planning).accelerate(model, wanted)
        finally:
            engine.close()

    asyncio.run(work())
    return workshop


def test_what_is_tried_on_the_engine_and_does_not_come_back_is_noticed():
    made, overdue = Ensemble(), threading.Event()
    made.adopt = lambda compiled: overdue.wait(20)

    async def work():
        engine = Engine(1)
        engine.on_overdue = overdue.set
        model = SimpleNamespace(name="m", version="1", ensemble=made, plan_sizes=(1,), plan_complete=False)
        try:
            await Accelerator(engine, Planning(Workshop()), bound=0.05).accelerate(model, lambda: not overdue.is_set())
        finally:
            engine.close()

    asyncio.run(work())
    assert overdue.is_set()


def test_every_step_is_compiled_and_the_plan_kept_and_the_process_ended():
    made = Ensemble()
    workshop = accelerated(made)
    assert made.compiled == [("openvino", 1), ("openvino", 4), ("openvino", 2), ("cudagraph", 1), ("cudagraph", 4)]
    assert made.failures == {"inductor": "there is no C++ compiler; install g++"}
    assert made.remembered == [((1, 2, 4), "float32")]
    assert workshop.closed == 1


def test_a_backend_that_fails_is_left_and_the_others_go_on(caplog):
    made = Ensemble(openvino=ModelError("no such operation"))
    with caplog.at_level(logging.WARNING, "app.acceleration"):
        accelerated(made)
    assert made.compiled == [("openvino", 1), ("cudagraph", 1), ("cudagraph", 4)]
    assert made.failures["openvino"] == "no such operation"
    assert "openvino compiles nothing more: no such operation" in caplog.text
    assert made.remembered


def test_a_plan_that_lacked_memory_is_not_kept():
    made = Ensemble(openvino=MemoryLimitError("no room"))
    accelerated(made)
    assert made.remembered == []


def test_an_error_of_another_kind_ends_it_and_is_logged_and_the_process_is_ended(caplog):
    made = Ensemble(openvino=RuntimeError("a bug"))
    with caplog.at_level(logging.ERROR, "app.acceleration"):
        workshop = accelerated(made)
    assert "calls are run as they are: RuntimeError" in caplog.text
    assert workshop.closed == 1


def test_a_model_that_is_served_no_more_is_left():
    made, asked = Ensemble(), []

    def wanted():
        asked.append(1)
        return len(asked) < 2

    accelerated(made, wanted=wanted)
    assert made.compiled == [("openvino", 1)]
    assert made.remembered == []


@pytest.mark.parametrize("given", [{"complete": True}, {"planning": PLAIN}], ids=["complete", "not to be compiled"])
def test_nothing_is_done_where_nothing_is_left_to_do(given):
    made = Ensemble()
    accelerated(made, **given)
    assert made.compiled == []
