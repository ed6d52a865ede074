"""What docs/observability and docker-compose.yml ask for is what the service gives."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.collector import DeviceMemory
from app.metrics import REASONS, Metrics
from app.settings import PREFIX, Settings
from tests.app.support import ROOT, plain_body, rows_of

yaml = pytest.importorskip("yaml")

FOLDER = ROOT / "docs" / "observability"
OPERATIONS = ROOT / "docs" / "operations.md"
DASHBOARD = json.loads((FOLDER / "grafana" / "dashboards" / "ensembled.json").read_text())
# Functions and words of PromQL that stand where a metric could.
_WORDS = {"sum", "by", "rate", "min", "histogram_quantile", "deriv", "vector", "or", "le"}


def read(path: Path):
    return yaml.safe_load(path.read_text())


RULES = [rule for group in read(FOLDER / "alerts.yml")["groups"] for rule in group["rules"]]
COMPOSE = read(ROOT / "docker-compose.yml")["services"]


def expressions() -> dict[str, str]:
    """Every expression, by where it stands."""
    shown = {f"{p['title']} {t['refId']}": t["expr"] for p in DASHBOARD["panels"] for t in p["targets"]}
    return shown | {rule["alert"]: rule["expr"] for rule in RULES}


@pytest.fixture(scope="module")
def exported(service) -> dict[str, set[str]]:
    """Every series of a running service: its labels by its name."""
    assert service.post("/v1/models/house/predict", json=plain_body(rows_of("house", 2))).status_code == 200
    # A GPU is not there everywhere.
    gpu = Metrics(list, devices=lambda: [DeviceMemory("cuda:0", 1, 1, 1)]).text().decode()
    found: dict[str, set[str]] = {"up": set()}
    for page in (service.get("/metrics").text, gpu):
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def metrics_of(expression: str) -> set[str]:
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)", " ", expression)
    return set(re.findall(r"[a-z_]{2,}", bare)) - _WORDS


@pytest.mark.parametrize("place", expressions())
def test_every_metric_and_label_that_is_asked_for_is_exported(exported, place):
    expression = expressions()[place]
    named = metrics_of(expression)
    assert named, expression
    assert named <= exported.keys()
    for name, matchers in re.findall(r"([a-z_]+)\{([^}]*)\}", expression):
        asked = set(re.findall(r"(\w+)(?:=~|!~|=|!=)\"", matchers))
        assert asked <= exported[name] | {"job", "instance"}, name
    labels = set().union(*(exported[name] for name in named)) | {"job", "instance"}
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert set(group.split(", ")) <= labels
    # Counters are looked at as rates, and only they.
    for function, name in re.findall(r"(?:(rate)\()?\b((?:ensembled|process)_[a-z_]+)", expression):
        assert bool(function) == name.endswith(("_total", "_sum", "_count", "_bucket")), name


def test_reasons_and_routes_that_are_asked_for_exist(exported, service):
    page = service.get("/metrics").text
    reasons = set(re.findall(r'reason="(\w+)"', page))
    routes = set(re.findall(r'route="([^"]+)"', page))
    for place, expression in expressions().items():
        for wanted in re.findall(r'reason=~?"([^"]+)"', expression):
            assert set(wanted.split("|")) <= reasons, place
        for pattern in re.findall(r'route=~"([^"]+)"', expression):
            assert any(re.fullmatch(pattern, route) for route in routes), place


def test_the_alarm_at_any_500_sees_the_first_one():
    """rate() needs a value from before it, so the series has to be there from the start."""
    (rule,) = [rule for rule in RULES if rule["alert"] == "EnsembledInternalErrors"]
    series = re.search(r"rate\((.*)\[\w+\]\) > 0", rule["expr"])[1]
    assert f"\n{series} 0.0\n" in Metrics().text().decode()


def test_every_panel_has_a_unit_a_text_and_a_place_of_its_own():
    taken = set()
    for panel in DASHBOARD["panels"]:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "prometheus"}
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    (variable,) = DASHBOARD["templating"]["list"]
    assert all(
        name in ("model", "__rate_interval") for name in re.findall(r"\$(\w+)", " ".join(expressions().values()))
    )
    assert variable["name"] == "model"


def test_grafana_is_given_the_data_source_and_the_dashboard_that_belong_together():
    provisioning = FOLDER / "grafana" / "provisioning"
    (source,) = read(provisioning / "datasources" / "prometheus.yml")["datasources"]
    assert source["uid"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    scrape = read(FOLDER / "prometheus.yml")
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    (provider,) = read(provisioning / "dashboards" / "ensembled.yml")["providers"]
    mounts = [volume.split(":") for volume in COMPOSE["grafana"]["volumes"]]
    assert [source for source, target, *_ in mounts if target == provider["options"]["path"]] == [
        "./docs/observability/grafana/dashboards"
    ]


def test_compose_starts_them_on_demand_beside_a_service_that_they_reach():
    for name in ("prometheus", "grafana"):
        about = COMPOSE[name]
        assert about["profiles"] == ["observability"]
        # A tag that moves would be another program tomorrow.
        assert re.search(r":v?\d+\.\d+\.\d+$", about["image"])
        assert all(port.startswith("127.0.0.1:") for port in about["ports"])
        assert about["cap_drop"] == ["ALL"]
        for volume in about["volumes"]:
            source, _, *mode = volume.split(":")
            if source.startswith("./"):
                assert (ROOT / source).exists()
                assert mode == ["ro"]
    (job,) = read(FOLDER / "prometheus.yml")["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in COMPOSE
    assert host in COMPOSE["cuda"]["networks"]["default"]["aliases"]
    assert int(port) == Settings.model_fields["port"].default
    assert job["job_name"] == "ensembled"
    # The key that Prometheus reads is the one that it was given.
    assert job["authorization"]["credentials_file"] in COMPOSE["prometheus"]["command"][0]
    assert "ENSEMBLED_API_KEY" in COMPOSE["prometheus"]["environment"]


def test_compose_names_settings_that_exist():
    for service in ("ensembled", "cuda"):
        for name in COMPOSE[service]["environment"]:
            assert name.removeprefix(PREFIX).lower() in Settings.model_fields, name


def test_every_alarm_says_whom_it_concerns_and_the_operators_page_explains_it():
    page = OPERATIONS.read_text()
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert "$labels" in rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in page
    named = set(re.findall(r"`(Ensembled\w+)`", page))
    assert named == {rule["alert"] for rule in RULES}


def test_the_operators_page_names_metrics_and_settings_that_exist(exported):
    page = OPERATIONS.read_text()
    for name in re.findall(r"`(ensembled_[a-z_]+|process_[a-z_]+)`", page):
        assert name in exported or any(series.startswith(f"{name}_") for series in exported), name
    for flag in re.findall(r"`--([a-z-]+)", page):
        assert flag.removeprefix("no-").replace("-", "_") in Settings.model_fields, flag


def test_the_operators_page_lists_every_reason_for_which_a_request_is_refused():
    listed = OPERATIONS.read_text().split("\nReasons: ")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", listed)) == REASONS.keys()
