"""Contract, section 6: the metrics, read by Prometheus itself and by its promtool."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from kit.service import ask, free_port, wait_for
from kit.tools import tool
from kit.world import World

pytestmark = pytest.mark.slow


def test_promtool_has_nothing_to_say_about_the_metrics(world: World) -> None:
    promtool = tool("promtool")
    service = world.start(None).ready()
    service.ask("/greetings/you")
    metrics = service.look("/metrics")
    done = subprocess.run(
        (promtool, "check", "metrics"), input=metrics, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_prometheus_scrapes_it_and_knows_the_request_rate(
    world: World, tmp_path: Path, show: Callable[[str], None]
) -> None:
    prometheus = tool("prometheus")
    service = world.start(None).ready()
    port = free_port()
    config = tmp_path / "prometheus.yml"
    target = {"targets": [f"127.0.0.1:{service.port('admin')}"]}
    scrape = {"job_name": "service", "scrape_interval": "1s", "static_configs": [target]}
    config.write_text(json.dumps({"scrape_configs": [scrape]}))
    log = (tmp_path / "prometheus.log").open("wb")
    server = subprocess.Popen(
        (
            prometheus,
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        counter = 'http_server_request_duration_seconds_count{http_route="/greetings/{name}"}'
        query = quote(f"sum(rate({counter}[15s]))")

        def rate() -> float:
            assert server.poll() is None, (tmp_path / "prometheus.log").read_text()
            service.ask("/greetings/you")
            try:
                answer = ask(port, f"/api/v1/query?query={query}")
            except OSError:
                return 0
            result = answer.json()["data"]["result"] if answer.status == 200 else []
            return float(result[0]["value"][1]) if result else 0

        rate_seen = wait_for(rate, f"a rate; {log.name} says more", 60)
        show(f"{rate_seen:.1f} requests a second, says Prometheus")
        targets = ask(port, "/api/v1/targets").json()["data"]["activeTargets"]
        assert [(one["health"], one["lastError"]) for one in targets] == [("up", "")]
    finally:
        server.terminate()
        server.wait(30)
        log.close()
