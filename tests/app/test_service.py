"""Settings, models, batcher and metrics in one place."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.engine import DeviceError
from app.errors import BadRequest, DeadlineExceeded, TooManyRequests, Unavailable
from app.protocol import InferRequest, Options, Question, RequestedOutput
from app.repository import RepositoryError
from app.service import Service
from app.settings import Settings
from tests.app.support import assert_same, expected, metric, rows_of


def asked(rows: int, seed: int = 0, *outputs: str) -> InferRequest:
    inputs = rows_of("house", rows, seed)
    return InferRequest(None, inputs, tuple(map(RequestedOutput, outputs or ("mean", "std"))), rows)


def run(models, work, **settings):
    async def main():
        service = Service(Settings(compile=False, models=models, **settings))
        service.start()
        await service._loading
        try:
            return await work(service, service.repository.ready_model("house"))
        finally:
            await service.stop()

    return asyncio.run(main())


def test_requests_at_once_are_answered_each_its_own(models, loaded):
    async def work(service, model):
        answers = await asyncio.gather(*(service.answer(model, asked(n % 3 + 1, n)) for n in range(64)))
        return answers, service.metrics.text().decode()

    answers, page = run(models, work)
    for number, answer in enumerate(answers):
        assert_same(answer.arrays, expected(loaded["house"], rows_of("house", number % 3 + 1, number)))
    rows = sum(n % 3 + 1 for n in range(64))
    assert metric(page, "ensembled_batch_rows_sum", model="house") == rows
    # 64 requests that come at once are two calls or three, not 64.
    assert metric(page, "ensembled_batch_rows_count", model="house") <= 4


def test_more_rows_than_the_queue_ever_takes_are_the_clients_fault(models):
    async def work(service, model):
        with pytest.raises(BadRequest, match=r"a request may have 5 rows at most, however: 6"):
            await service.answer(model, asked(6))
        return await service.answer(model, asked(5))

    assert len(run(models, work, max_queue=5).arrays["mean"]) == 5


def test_a_full_queue_is_counted(models):
    async def work(service, model):
        answers = await asyncio.gather(*(service.answer(model, asked(2, n)) for n in range(10)), return_exceptions=True)
        return answers, service.metrics.text().decode()

    answers, page = run(models, work, max_queue=4, max_batch=2)
    refused = [a for a in answers if isinstance(a, TooManyRequests)]
    assert len(refused) == 8
    assert metric(page, "ensembled_rejected_total", reason="queue_full") == 8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (Options(Question(members=0)), "members must be between 1 and 6, however: 0"),
        (Options(Question(members=7)), "members must be between 1 and 6, however: 7"),
        (Options(Question(tolerance=0.0)), "tolerance must be a number above 0, however: 0"),
        (Options(Question(tolerance=float("nan"))), "tolerance must be a number above 0, however: nan"),
    ],
)
def test_options_that_the_model_cannot_meet_are_the_clients_fault(models, options, text):
    async def work(service, model):
        with pytest.raises(BadRequest, match=text):
            await service.answer(model, replace(asked(1), options=options))
        ragged = replace(asked(1, 0, "mean", "members"), options=Options(Question(tolerance=0.1)))
        with pytest.raises(BadRequest, match=r"output 'members' cannot be asked for with a tolerance"):
            await service.answer(model, ragged)

    run(models, work)


def test_requests_for_all_members_share_calls_with_those_that_do_not_say(models, loaded):
    async def work(service, model):
        options = [
            Options(),
            Options(Question(members=6)),
            Options(Question(members=2)),
            Options(Question(tolerance=1e-9)),
        ]
        answers = await asyncio.gather(
            *(service.answer(model, replace(asked(1, n), options=o)) for n, o in enumerate(options))
        )
        return answers, service.metrics.text().decode()

    (default, everything, few, exact), page = run(models, work)
    assert [default.members, everything.members, few.members, exact.members] == [None, None, 2, 6]
    assert metric(page, "ensembled_batch_rows_count", model="house") == 3
    for number, answer in ((0, default), (1, everything), (3, exact)):
        assert_same(answer.arrays, expected(loaded["house"], rows_of("house", 1, number)))


def test_a_deadline_counts_from_when_the_request_came(models):
    async def work(service, model):
        came = time.perf_counter() - 5
        with pytest.raises(DeadlineExceeded):
            await service.answer(model, replace(asked(1), options=Options(timeout=4.0)), arrived=came)
        # The service's own deadline is for those that name none.
        with pytest.raises(DeadlineExceeded):
            await service.answer(model, asked(1), arrived=came)
        return await service.answer(model, replace(asked(1), options=Options(timeout=60.0)), arrived=came)

    assert len(run(models, work, default_timeout=3.0).arrays["mean"]) == 1


def test_a_service_whose_engine_hangs_is_not_alive_and_refuses_what_is_new(models):
    async def work(service, model):
        end = threading.Event()
        hangs = asyncio.create_task(service.engine.run(end.wait, 30, bound=0.01))
        while service.alive:
            await asyncio.sleep(0.005)
        with pytest.raises(Unavailable, match=r"does not answer"):
            await service.answer(model, asked(1))
        end.set()
        await hangs
        assert service.alive
        return await service.answer(model, asked(1))

    assert len(run(models, work).arrays["mean"]) == 1


def test_memory_that_runs_out_makes_calls_of_that_model_smaller(models, loaded, monkeypatch):
    predict = type(loaded["house"]).predict

    def small(self, inputs, **rest):
        if len(inputs["input"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, inputs, **rest)

    async def work(service, model):
        monkeypatch.setattr(type(loaded["house"]), "predict", small)
        answer = await service.answer(model, asked(10))
        return answer, model.max_batch, service.repository.ready_model("pair").max_batch

    answer, house, pair = run(models, work, max_batch=8)
    monkeypatch.undo()
    assert_same(answer.arrays, expected(loaded["house"], rows_of("house", 10)))
    assert (house, pair) == (2, 8)


def test_rows_that_are_no_numbers_are_named(models):
    request = asked(3)
    request.inputs["input"][1] = np.inf

    async def work(service, model):
        return await asyncio.gather(service.answer(model, request), service.answer(model, asked(2)))

    bad, good = run(models, work)
    assert bad.non_finite_rows == (1,)
    assert good.non_finite_rows == ()


def test_a_stop_finishes_what_was_accepted_and_refuses_what_is_new(models, loaded):
    async def main():
        service = Service(Settings(compile=False, models=models))
        service.start()
        await service._loading
        model = service.repository.ready_model("house")
        waiting = [asyncio.create_task(service.answer(model, asked(1, n))) for n in range(20)]
        await asyncio.sleep(0)
        await service.stop()
        with pytest.raises(Unavailable):
            await service.answer(model, asked(1))
        return await asyncio.gather(*waiting)

    for number, answer in enumerate(asyncio.run(main())):
        assert_same(answer.arrays, expected(loaded["house"], rows_of("house", 1, number)))


def test_a_stop_while_loading_does_not_wait_for_the_rest(models):
    async def main():
        service = Service(Settings(compile=False, models=models))
        service.start()
        await asyncio.sleep(0)
        await service.stop()
        return service

    service = asyncio.run(main())
    assert not service.repository.ready


def test_readiness_is_measured(models):
    async def work(service, model):
        return service.metrics.text().decode()

    assert metric(run(models, work), "ensembled_ready") == 1
    service = Service(Settings(compile=False, models=models))
    assert metric(service.metrics.text().decode(), "ensembled_ready") == 0
    service.engine.close()


def test_what_cannot_be_served_is_known_before_it_starts(models, tmp_path):
    with pytest.raises(RepositoryError):
        Service(Settings(models=tmp_path))
    with pytest.raises(DeviceError):
        Service(Settings(compile=False, models=models, device="cuda:99"))


def test_one_request_that_fails_harms_none_of_those_beside_it(models, loaded):
    async def main():
        service = Service(Settings(compile=False, models=models))
        service.start()
        await service._loading
        model = service.repository.ready_model("pair")
        wrong = rows_of("pair", 1)
        wrong["tokens"] = np.array([[0, 11]])
        every = [rows_of("pair", 1, n) for n in range(6)] + [wrong]
        requests = [InferRequest(None, inputs, (RequestedOutput("value.mean"),), 1) for inputs in every]
        answers = await asyncio.gather(*(service.answer(model, r) for r in requests), return_exceptions=True)
        await service.stop()
        return answers

    *good, bad = asyncio.run(main())
    assert isinstance(bad, BadRequest)
    for number, answer in enumerate(good):
        assert_same(answer.arrays, expected(loaded["pair"], rows_of("pair", 1, number), ["value.mean"]))
