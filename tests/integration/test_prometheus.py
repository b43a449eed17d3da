"""A real Prometheus on a running farm: every query of the board and every alert has something to work on.

What a machine without a GPU cannot answer is provoked in `manifests/prometheus/rules.test.yaml`.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.acceptance.conftest import ROOT, Terminal, write_catalog

pytestmark = [
    pytest.mark.farm,
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="prometheus is not installed (Debian: apt-get install prometheus)",
    ),
]

MANIFESTS = ROOT / "manifests"
BOARD = json.loads((MANIFESTS / "grafana" / "clipmill.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((MANIFESTS / "base" / "alerts.yaml").read_text(encoding="utf-8"))["spec"]
PROVOKED = yaml.safe_load((MANIFESTS / "prometheus" / "rules.test.yaml").read_text(encoding="utf-8"))["tests"]
#: What Grafana would put for its variables.
VARIABLES = {"$__rate_interval": "1m", "$card_class": ".*"}
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}


def board_queries() -> list[tuple[str, str]]:
    """(panel title, query) of every target of the board."""
    found = []
    for panel in BOARD["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            assert "$" not in query, query
            found.append((panel["title"], query))
    return found


def provoked_queries() -> set[str]:
    return {test["expr"] for group in PROVOKED for test in group.get("promql_expr_test", [])}


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Up:
    """`clipmill up` on one home and fixed ports, so that Prometheus finds it again after a restart."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.port, self.metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        words = ("up", "--cards", "c8,c24", "--port", str(self.port), "--metrics-port", str(self.metrics_port))
        process = self.terminal.start(*words, RAY_metrics_report_interval_ms="1000")
        self.terminal.until(self.is_ready, process)
        return process

    def is_ready(self) -> bool:
        """Both cards have been heard, and the command has seen its farm up."""
        return self.terminal.is_up(self.url, cards=2)

    def stop(self) -> None:
        """Ctrl-C; every process of the farm is gone afterwards."""
        self.process.send_signal(signal.SIGINT)
        ended = self.terminal.finish(self.process)
        assert ended.code == 0, ended.err

    def restart(self) -> None:
        """The same farm by new processes."""
        self.stop()
        self.process = self._start()

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", timeout=10).raise_for_status().text


class Prometheus:
    """A Prometheus of its own, on a folder and a port of its own."""

    def __init__(self, folder: Path, up: Up) -> None:
        folder.mkdir()
        (folder / "rules.yaml").write_text(yaml.safe_dump(RULES), encoding="utf-8")
        jobs = [("gateway", up.port), ("ray", up.metrics_port)]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for name, port in jobs
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        port = free_port()
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=10)
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def get(self, path: str, **params: str) -> Any:
        """The `data` of an answer; None where nothing answers yet. An error Prometheus explains is raised."""
        try:
            body = self._http.get(path, params=params).json()
        except (httpx.HTTPError, ValueError):
            return None
        assert body["status"] == "success", (params, body)
        return body["data"]

    def query(self, query: str) -> list[dict[str, Any]]:
        """Instant vector of a query."""
        data = self.get("/query", query=query)
        return data["result"] if data else []

    def values(self, query: str) -> dict[frozenset[tuple[str, str]], float]:
        """Values of a query by labels, without those of the scrape."""
        extra = {"__name__", "job", "instance"}
        return {
            frozenset((k, v) for k, v in sample["metric"].items() if k not in extra): float(sample["value"][1])
            for sample in self.query(query)
        }

    def close(self) -> None:
        self._http.close()
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    terminal = Terminal(tmp_path_factory.mktemp("watched"))
    try:
        farm = Up(terminal)
        yield farm
        farm.stop()
    finally:
        terminal.close()


@pytest.fixture(scope="module")
def prometheus(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Has scraped the idle farm, then a whole catalog."""
    watching = Prometheus(tmp_path_factory.mktemp("prometheus") / "p", up)
    try:
        up.terminal.until(lambda: bool(watching.query("clipmill_cards")), watching.process)
        large = {"model": "i2vgen-xl", "prompt": "waves crashing", "resolution_class": "1024p", "frames": 16}
        tiny = {"model": "i2vgen-xl-tiny", "frames": 4, "steps": 40}
        rows = [
            {"model": "camera", "prompt": "zoom in"},
            {"model": "camera", "prompt": "pan left"},
            {"prompt": "snow falling", **tiny},
            large,
        ]
        catalog = write_catalog(up.terminal.folder / "shop", rows)
        done = up.terminal.run("submit", str(catalog), "--wait", "--json")
        assert done.code == 1, "the row that no card holds failed, the others did not: " + done.err
        assert {job["state"] for job in done.json["jobs"][:3]} == {"completed"}
        assert done.json["jobs"][3]["reason"] == "no_card_fits"
        # The last step was exported and scraped, and a rate has two samples to stand on.
        caught_up = (
            'sum(clipmill_clips_total{outcome="completed"}) == 3 and sum(clipmill_gpu_seconds_total) > 0 '
            'and sum(rate(ray_clipmill_step_seconds_count{model="i2vgen-xl-tiny"}[1m])) > 0 '
            "and count(ray_clipmill_vram_measured_bytes) > 0"
        )
        up.terminal.until(lambda: bool(watching.query(caught_up)), watching.process)
        yield watching
    finally:
        watching.close()


def test_every_query_of_the_board_returns_data_or_is_provoked(prometheus: Prometheus) -> None:
    queries, provoked = board_queries(), provoked_queries()
    assert len(queries) > 20
    empty = {query for _, query in queries if query not in provoked and not prometheus.query(query)}
    assert not empty
    assert provoked <= {query for _, query in queries}, "provoked, but not on the board"


def test_every_alert_is_healthy_and_reads_series_there_are(prometheus: Prometheus) -> None:
    groups = prometheus.get("/rules")["groups"]
    assert {rule["name"]: rule["health"] for group in groups for rule in group["rules"]} == dict.fromkeys(ALERTS, "ok")
    provoked = {
        test["alertname"] for group in PROVOKED for test in group.get("alert_rule_test", []) if test["exp_alerts"]
    }
    assert provoked == set(ALERTS)
    for rule in ALERTS.values():
        names = re.findall(r"clipmill_\w+", rule["expr"])
        assert names
        assert all(prometheus.query(name) for name in names), rule["alert"]


def test_what_prometheus_has_is_what_the_tables_hold(prometheus: Prometheus, up: Up) -> None:
    counted = up.terminal.rows(
        "SELECT j.family, j.resolution_class, a.card_class, a.outcome, count(*), sum(a.ended_at - a.started_at) "
        "FROM attempts a JOIN jobs j ON j.id = a.job_id GROUP BY 1, 2, 3, 4"
    )
    expected = {
        frozenset({("model", m), ("resolution_class", r), ("card_class", c), ("outcome", o)}): n
        for m, r, c, o, n, _ in counted
    }
    up.terminal.until(lambda: prometheus.values("clipmill_attempts_total > 0") == expected, prometheus.process)
    assert sum(prometheus.values("clipmill_gpu_seconds_total").values()) == sum(row[5] for row in counted)
    # One clip of 40 steps, the first left out; Ray's agent tells it a second later.
    steps = 'sum(ray_clipmill_step_seconds_count{model="i2vgen-xl-tiny"}) == 39'
    up.terminal.until(lambda: bool(prometheus.query(steps)), prometheus.process)
    assert prometheus.values('clipmill_admissions_total{decision="refused"}') == {
        frozenset({("decision", "refused")}): 1
    }


def test_promtool_has_nothing_to_say_about_the_page(up: Up) -> None:
    checked = subprocess.run(["promtool", "check", "metrics"], input=up.metrics(), capture_output=True, text=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_alerts_fire_when_provoked(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES), encoding="utf-8")
    shutil.copy(MANIFESTS / "prometheus" / "rules.test.yaml", tmp_path)
    checked = subprocess.run(["promtool", "check", "rules", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = subprocess.run(
        ["promtool", "test", "rules", "rules.test.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_no_two_panels_lie_on_one_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, (panel["title"], taken.get(cell))
            taken[cell] = panel["title"]
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_counters_outlive_every_process(prometheus: Prometheus, up: Up) -> None:
    """Last: it ends the farm and starts another on the same home."""
    counters = '{__name__=~"clipmill_.*_total", job="gateway"}'
    up.terminal.until(lambda: bool(prometheus.values("clipmill_attempts_total > 0")), prometheus.process)
    before = {line for line in up.metrics().splitlines() if re.match(r"clipmill_\w+_total", line)}
    assert any(float(line.rsplit(" ", 1)[1]) > 0 for line in before)
    up.restart()
    after = {line for line in up.metrics().splitlines() if re.match(r"clipmill_\w+_total", line)}
    # Nothing was handed in since. Series at 0 may go: they are shown for kinds that wait or ran.
    assert {line for line in before if not line.endswith(" 0.0")} == {x for x in after if not x.endswith(" 0.0")}
    up.terminal.until(lambda: bool(prometheus.query('up{job="gateway"} == 1')), prometheus.process)
    resets = prometheus.values(f"resets({counters}[5m])")
    assert resets
    assert set(resets.values()) == {0.0}
