"""What fitting found, through the service: the report, the calibration, and an interval."""

from __future__ import annotations

import asyncio

import torch
from torch import nn

import ensemble


def test_a_fitted_model_shows_its_report_and_answers_with_intervals(tmp_path, running):
    torch.manual_seed(0)
    model, x = nn.Linear(2, 1), torch.randn(60, 2)
    y = model(x).detach() + 0.1 * torch.randn(60, 1)
    ens = ensemble.fit(model, (x, y), task="regression", recipe="rank1", members=8, budget="1s")
    ens.save(tmp_path / "line" / "1")

    async def ask():
        async with running(models=tmp_path) as client:
            about = (await client.get("/v1/models/line")).json()
            body = {"inputs": x[:2].tolist(), "outputs": ["prediction_interval"]}
            return about, (await client.post("/predict", json=body)).json()

    about, answer = asyncio.run(ask())
    assert about["report"] == ens.report
    assert about["calibration"]["interval_scores_rows"] == 24
    assert about["calibration"]["confidence_level"] == 0.9
    expected = ens.predict(x[:2], statistics=["prediction_interval"]).prediction_interval
    torch.testing.assert_close(torch.tensor(answer["outputs"]["prediction_interval"]), expected)
