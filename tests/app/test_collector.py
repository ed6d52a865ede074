"""What is a state is on the page of metrics as it is when that is asked for."""

from __future__ import annotations

from app.collector import DeviceMemory, ModelState
from app.metrics import Metrics
from tests.app.support import metric


def test_states_are_looked_up_when_they_are_asked_for():
    drawn = {"kept": 3, "kept_bytes": 900, "reused": 5, "drawn": 4}
    states = [ModelState("a", "1", True, 128, 4096, 32, compiling=True, **drawn), ModelState("b", "2", ready=False)]
    devices = [DeviceMemory("cuda:0", 100, 50, 25)]
    ready = [False]
    metrics = Metrics(
        lambda: states,
        ready=lambda: ready[0],
        live=lambda: ready[0],
        devices=lambda: devices,
        build={"version": "1.2", "device": "cuda"},
    )
    page = metrics.text().decode()
    assert metric(page, "ensembled_ready") == metric(page, "ensembled_live") == 0
    assert metric(page, "ensembled_model_ready", model="a", version="1") == 1
    assert 'ensembled_model_ready{model="b",version="2"} 0.0' in page
    assert metric(page, "ensembled_model_members", model="a") == 128
    assert metric(page, "ensembled_model_weight_bytes", model="a") == 4096
    assert metric(page, "ensembled_model_max_batch_rows", model="a") == 32
    assert metric(page, "ensembled_model_compiling", model="a") == 1
    assert metric(page, "ensembled_kept_perturbations", model="a") == 3
    assert metric(page, "ensembled_kept_perturbation_bytes", model="a") == 900
    assert metric(page, "ensembled_perturbations_total", model="a", found="kept") == 5
    assert metric(page, "ensembled_perturbations_total", model="a", found="drawn") == 4
    assert 'ensembled_model_members{model="b"' not in page
    assert metric(page, "ensembled_device_memory_total_bytes", device="cuda:0") == 100
    assert metric(page, "ensembled_device_memory_reserved_bytes", device="cuda:0") == 50
    assert metric(page, "ensembled_device_memory_allocated_bytes", device="cuda:0") == 25
    assert metric(page, "ensembled_build_info", version="1.2", device="cuda") == 1
    states[:], devices[:], ready[0] = [ModelState("b", "2", True)], [], True
    page = metrics.text().decode()
    assert metric(page, "ensembled_ready") == metric(page, "ensembled_live") == 1
    assert metric(page, "ensembled_model_ready", model="b", version="2") == 1
    assert 'model="a"' not in page
    assert "ensembled_device" not in page
