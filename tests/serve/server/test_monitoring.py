"""deploy/monitoring: promtool checks the rules, the metrics exist, and a real Prometheus uses all of it."""

import json
import math
import re
import shutil
import subprocess
from contextlib import contextmanager

import pytest
import requests
import yaml

from tests.polling import PATIENCE, answers, wait
from tests.serve.conftest import free_port
from train.paths import ROOT

FOLDER = ROOT / "deploy" / "monitoring"
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
PANELS = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="Debian's package prometheus is not installed"
)


@needs_prometheus
@pytest.mark.parametrize(
    "arguments", ["check config prometheus.yml", "check rules alerts.yaml", "test rules alerts_test.yaml"]
)
def test_promtool_finds_nothing_wrong(arguments):
    done = subprocess.run(
        ["promtool", *arguments.split()], cwd=FOLDER, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_to_fire_and_to_be_silent():
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    tested = {(case["alertname"], bool(case["exp_alerts"])) for case in cases}
    assert tested == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_has_its_severity_and_its_section_in_the_runbook(rule):
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    path, anchor = rule["annotations"]["runbook"].split("#")
    headings = re.findall(r"^## (.+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert anchor in [heading.lower() for heading in headings]


def test_every_metric_asked_for_exists(service, images):
    assert service.predict(images[:1]).ok
    exist = {name for name, _ in service.metrics()}
    for query in [rule["expr"] for rule in RULES] + QUERIES:
        asked = set(re.findall(r"digits_\w+", query))
        assert asked, query
        assert asked <= exist


def test_grafana_finds_the_dashboard_that_compose_mounts():
    grafana = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["grafana"]
    (provider,) = yaml.safe_load((FOLDER / "grafana/dashboards/digits.yaml").read_text())["providers"]
    (dashboard,) = [volume.split(":")[1] for volume in grafana["volumes"] if "dashboard.json" in volume]
    assert dashboard.startswith(f"{provider['options']['path']}/")
    assert dashboard == grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]


@contextmanager
def prometheus(folder, target):
    """Run a Prometheus with our rules that scrapes `target` every second; yield a function for queries."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FOLDER / file) for file in config["rule_files"]]
    (scraped,) = config["scrape_configs"]
    del scraped["dns_sd_configs"]  # finds targets by Docker's DNS, which is not used here
    scraped["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address, log = f"127.0.0.1:{free_port()}", folder / "prometheus.log"
    with log.open("wb") as file:
        command = ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address={address}"]
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file)  # writes to `folder`

    def ask(path, **parameters):
        answer = requests.get(f"http://{address}/api/v1/{path}", parameters, timeout=PATIENCE)
        assert answer.ok, answer.text
        return answer.json()["data"]

    try:
        wait(lambda: answers(f"http://{address}", "/-/ready"), PATIENCE, log.read_text)
        yield ask
    finally:
        process.kill()
        process.wait()


@needs_prometheus
@pytest.mark.slow
def test_a_real_prometheus_answers_the_dashboard_and_fires(start, images, tmp_path):
    service = start(WEB_CONCURRENCY=2)
    target = f"127.0.0.1:{service.port}"
    with prometheus(tmp_path, target) as ask:

        def has_data(query):
            # Send 1,000 images: of the first 100, 2 % are 8s, the limit below which DigitsFarFromUniform fires.
            assert service.predict(images[:1_000]).ok
            found = ask("query", query=query.replace("$__rate_interval", "1m"))["result"]
            return found and all(math.isfinite(float(series["value"][1])) for series in found)

        def states():
            return {(alert["labels"]["alertname"], alert["state"]) for alert in ask("alerts")["alerts"]}

        for query in QUERIES:
            service.wait(lambda query=query: has_data(query))
        assert states() == set()
        for _ in range(3):
            service.kill_worker()
        service.wait(lambda: states() == {("DigitsWorkerRestarts", "firing")})
        (alert,) = ask("alerts")["alerts"]
        assert alert["labels"]["instance"] == target
        service.stop()
        service.wait(lambda: ("DigitsNoReadyWorker", "pending") in states())  # the alert would fire a minute later
