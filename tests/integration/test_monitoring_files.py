"""The monitoring files hold: boards are what their code makes and Grafana understands, and rules fire."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from app.cli import app
from app.config import Settings

DOCKER = Path(__file__).parents[2] / "docker"
PROMETHEUS = DOCKER / "prometheus"
BOARD_FILES = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))
RULE_TESTS = ("tests/alerts.yml", "tests/slo.yml")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: apt install prometheus)"
)


def board(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in board(path)["panels"] if panel["type"] != "row"]


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_committed_boards_are_what_their_code_makes() -> None:
    command = [sys.executable, str(DOCKER / "grafana" / "boards"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr


# The SDK models the core of the schema; these belong to the Prometheus data source.
OUTSIDE_THE_CORE_SCHEMA = re.compile(
    r"/annotations/list\[\d+\]/(titleFormat|useValueForTime|step)|/templating/list\[\d+\]/definition"
)


@pytest.mark.parametrize("path", BOARD_FILES, ids=lambda path: path.stem)
def test_grafanas_own_schema_knows_every_key_of_a_board(path: Path) -> None:
    reason = "grafana-foundation-sdk is not installed (it is in the dev extra)"
    dashboards = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=reason)
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    pytest.importorskip("grafana_foundation_sdk.cog.plugins").register_default_plugins()
    ours = board(path)
    theirs = json.loads(encoder.JSONEncoder().encode(dashboards.Dashboard.from_json(ours)))
    lost = [key for key in missing(ours, theirs) if not OUTSIDE_THE_CORE_SCHEMA.fullmatch(key)]
    assert lost == []


def missing(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Paths of what is in `ours` and differs or is absent in `theirs`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from missing(value, theirs.get(key), f"{path}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, value in enumerate(ours):
            yield from missing(value, theirs[index], f"{path}[{index}]")
    elif ours != theirs:
        yield path


@pytest.mark.parametrize("path", BOARD_FILES, ids=lambda path: path.stem)
def test_every_panel_is_explained_has_its_own_id_and_keeps_its_place(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in board(path)["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels(path):
        assert panel["description"] or panel["type"] == "text", panel["title"]
        assert panel["type"] == "text" or panel["targets"], panel["title"]
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24, panel["title"]
        columns, rows = range(grid["x"], grid["x"] + grid["w"]), range(grid["y"], grid["y"] + grid["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_boards_link_to_each_other_and_share_no_uid() -> None:
    boards = [board(path) for path in BOARD_FILES]
    assert len({item["uid"] for item in boards}) == len(boards) == 3
    for item in boards:
        tag = item["links"][0]["tags"]
        assert all(set(tag) <= set(other["tags"]) for other in boards)
        assert item["links"][0]["keepTime"]


@pytest.mark.parametrize("path", BOARD_FILES, ids=lambda path: path.stem)
def test_the_variables_filter_every_panel_that_shows_their_labels(path: Path) -> None:
    names = {variable["name"] for variable in board(path)["templating"]["list"]}
    assert {"instance", "host", "gpu", "model", "window"} <= names
    for panel in panels(path):
        for expr in (target["expr"] for target in panel.get("targets", ())):
            selectors = re.findall(r"(framefit[_:][\w:]+)\{(.*?)\}", expr)
            assert selectors or "ALERTS" in expr or "framefit:slo" in expr, panel["title"]
            for metric, matchers in selectors:
                assert "$instance" in matchers, (panel["title"], metric)
                labels = set(LABELS_OF_METRIC[re.sub("_(bucket|count|sum)$", "", metric)])
                unused = {name for name in labels & {"host", "gpu", "model"} if f"${name}" not in matchers}
                assert not unused, (panel["title"], metric, unused)


def labels_of_metrics() -> dict[str, list[str]]:
    """The labels of each metric, from the recorded public interface; and of what it leaves out."""
    lines = (Path(__file__).parents[1] / "contract/snapshot/metrics.txt").read_text().splitlines()
    found = {}
    for line in lines:
        name, _, labels = line.split(" ", 2)
        found[name] = labels.strip("{}").split(",")
    card = found["framefit_gpu_memory_free_bytes"]
    more = {"framefit_model_available": ["model"], "framefit:data_free:ratio": []}
    return found | more | {"framefit:gpu_memory_free:ratio": card}


LABELS_OF_METRIC = labels_of_metrics()


def test_provisioning_points_at_what_compose_mounts() -> None:
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/framefit.yaml").read_text())[
        "providers"
    ][0]
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ][0]
    compose = (DOCKER / "compose.yaml").read_text()
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in compose
    assert "./grafana/provisioning:/etc/grafana/provisioning:ro" in compose
    assert source["url"] == "http://prometheus:9090"
    scrape = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape


def test_compose_leaves_monitoring_open_unless_it_is_told_otherwise() -> None:
    passed_on = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["framefit"]["environment"]
    jobs = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    (job,) = (job for job in jobs if job["job_name"] == "framefit")
    # The default is open, and Prometheus sends no key; docker/check.sh names the one without the other.
    assert passed_on["FRAMEFIT_OPEN_MONITORING"] is None
    assert "authorization" not in job


def alert_rules() -> list[dict[str, Any]]:
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    groups = [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_what_it_means_and_what_to_do_first(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert all(rule["annotations"].get(name) for name in ("summary", "description", "runbook"))
    section = re.sub(r"(?<!^)(?=[A-Z])", "-", rule["alert"]).lower()
    page = "{{ $externalLabels.service }}/docs/operating"
    assert rule["annotations"]["runbook_url"] == f"{page}#{section}"


@pytest.mark.parametrize("rule", alert_rules(), ids=lambda rule: rule["alert"])
def test_every_alert_has_a_case_where_it_fires_and_one_where_it_does_not(rule: dict[str, Any]) -> None:
    cases = [case for name in RULE_TESTS for case in yaml.safe_load((PROMETHEUS / name).read_text())["tests"]]
    quiet = cases[0]["promql_expr_test"][0]
    assert (quiet["expr"], quiet["exp_samples"]) == ("count by (alertname) (ALERTS)", [])
    expected = [
        sample["labels"]
        for case in cases
        for test in case.get("promql_expr_test", ())
        for sample in test["exp_samples"]
    ]
    assert any(f'alertname="{rule["alert"]}"' in labels for labels in expected)


def test_runbooks_name_only_settings_and_commands_that_exist() -> None:
    texts = [text for rule in alert_rules() for text in rule["annotations"].values()]
    settings = {name for text in texts for name in re.findall(r"FRAMEFIT_[A-Z_]+", text)}
    commands = {name for text in texts for name in re.findall(r"`framefit (\w+)", text)}
    assert settings
    assert commands
    assert settings <= {f"FRAMEFIT_{name.upper()}" for name in Settings.model_fields}
    assert commands <= set(typer.main.get_group(app).commands)


@needs_promtool
@pytest.mark.parametrize("cases", RULE_TESTS)
def test_rules_fire_when_they_should_and_only_then(cases: str) -> None:
    promtool("test", "rules", cases)


def test_alertmanager_reads_what_prometheus_sends_and_has_an_example_of_each_way_to_tell_people() -> None:
    config = yaml.safe_load((DOCKER / "alertmanager/alertmanager.yml").read_text())
    receivers = {one["name"]: one for one in config["receivers"]}
    named = {config["route"]["receiver"], *(route["receiver"] for route in config["route"]["routes"])}
    assert named <= receivers.keys()
    assert any("webhook_configs" in one for one in receivers.values())
    text = (DOCKER / "alertmanager/alertmanager.yml").read_text()
    assert "email_configs" in text
    assert config["inhibit_rules"][0]["source_matchers"] == ["alertname = FramefitDown"]
    service = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["alertmanager"]
    assert service["profiles"] == ["alertmanager"]
    (sent_to,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["alerting"]["alertmanagers"]
    assert sent_to["dns_sd_configs"][0]["names"] == ["alertmanager"]


@needs_promtool
def test_prometheus_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
