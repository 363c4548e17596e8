"""Contract, section 6: the metrics, read by Prometheus itself and by its promtool."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.prometheus import running
from kit.service import wait_for
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
    service = world.start(None).ready()
    with running(tmp_path, {"service": [service.port("admin")]}) as prometheus:
        counter = 'http_server_request_duration_seconds_count{http_route="/greetings/{name}"}'

        def rate() -> float:
            service.ask("/greetings/you")
            result = prometheus.query(f"sum(rate({counter}[15s]))")
            return float(result[0]["value"][1]) if result else 0

        rate_seen = wait_for(rate, "a rate", 60)
        show(f"{rate_seen:.1f} requests a second, says Prometheus")
        targets = prometheus.api("targets")["activeTargets"]
        assert [(one["health"], one["lastError"]) for one in targets] == [("up", "")]
