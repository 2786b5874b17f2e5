"""Prometheus's and Grafana's files name metrics that a run publishes, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.tools import find_tool, output_of

from orchestration.telemetry.keys import KEYS
from orchestration.telemetry.sinks.prometheus import RUN, published

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
METRIC = re.compile(r"\bray_\w+")
GRAFANA: Any = json.loads((MONITORING / "grafana.json").read_text("utf-8"))
PANELS = [panel for panel in GRAFANA["panels"] if panel["type"] != "row"]


def fields(metric: str) -> set[str]:
    """Returns the labels that a metric has."""
    return {RUN, *re.findall(r"\{(\w+)\}", published()[metric])}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_shows_metrics_that_exist_with_their_labels(panel: Any) -> None:
    for target in panel["targets"]:
        (metric,) = METRIC.findall(target["expr"])
        assert metric in published(), f"{panel['title']}: no run publishes {metric}"
        assert target["expr"] == f'{metric}{{run=~"$run"}}'
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == fields(metric)


def test_the_dashboard_is_whole() -> None:
    assert len(PANELS) == 16 and len({panel["id"] for panel in GRAFANA["panels"]}) == len(GRAFANA["panels"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in GRAFANA["panels"]]
    assert len(set(places)) == len(places)
    variables = {variable["name"] for variable in GRAFANA["templating"]["list"]}
    assert variables == {"datasource", "run"} and all(p["datasource"]["uid"] == "${datasource}" for p in PANELS)
    for of in ("entropy", "reward", "eval", "time", "cluster"):
        assert any(f"ray_isentrope_{of}_" in target["expr"] for panel in PANELS for target in panel["targets"])


def test_alerts_are_about_metrics_that_exist() -> None:
    (group,) = yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]:
        metrics = METRIC.findall(rule["expr"])
        assert metrics and set(metrics) <= set(published()), rule["alert"]
        assert "{{ $labels.run }}" in rule["annotations"]["summary"]


def test_prometheus_reads_what_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))
    (scrape,) = config["scrape_configs"]
    (found,) = scrape["file_sd_configs"]
    assert found["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    assert [(MONITORING / name).is_file() for name in config["rule_files"]] == [True]


def test_promtool_takes_both_files() -> None:
    promtool = find_tool("promtool")
    if promtool is None:
        pytest.skip("promtool comes with Prometheus, which is not installed; the files are read above all the same")
    code, output = output_of(promtool, "check", "config", MONITORING / "prometheus.yml")
    assert code == 0 and "SUCCESS: 5 rules found" in output, output


def test_a_metric_that_does_not_exist_would_be_found() -> None:
    assert "ray_isentrope_entropy_exactly" not in published() and "entropy/exact" in KEYS
