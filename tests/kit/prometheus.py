"""A Prometheus that scrapes services of this machine once a second, and may evaluate rules."""

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kit.service import LOOPBACK, ask, free_port, wait_for
from kit.tools import tool

# A window needs some scrapes in it.
SHORTEST_WINDOW_S = 5
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Prometheus:
    """A running one, on *port*; who is scraped stands in a file that it watches, as orchestrators do it."""

    def __init__(self, port: int, targets: Path, log: Path) -> None:
        self.port, self._targets, self._log = port, targets, log

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def scrape(self, jobs: Mapping[str, Sequence[int]]) -> None:
        """Scrape these admin ports from now on, by the names of their jobs."""
        groups = [
            {"targets": [f"{LOOPBACK}:{port}" for port in ports], "labels": {"job": job}}
            for job, ports in jobs.items()
        ]
        # Renamed into its place, so that it is never seen half-written.
        new = self._targets.with_suffix(".new")
        new.write_text(json.dumps(groups), encoding="utf-8")
        new.rename(self._targets)

    def api(self, path: str) -> Any:
        answer = ask(self.port, f"/api/v1/{path}")
        assert answer.status == 200, f"{path}: {answer.text}"
        return answer.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression has now."""
        found: list[dict[str, Any]] = self.api(f"query?query={quote(expression)}")["result"]
        return found

    def is_up(self) -> bool:
        with contextlib.suppress(OSError):
            return ask(self.port, "/-/ready").status == 200
        return False


@contextlib.contextmanager
def running(
    folder: Path, jobs: Mapping[str, Sequence[int]], rules: Path | None = None
) -> Iterator[Prometheus]:
    """Start one that keeps its data in *folder*, scrapes *jobs* and evaluates *rules*; end it afterwards."""
    program, port = tool("prometheus"), free_port()
    prometheus = Prometheus(port, folder / "targets.json", folder / "prometheus.log")
    prometheus.scrape(jobs)
    config = folder / "prometheus.yml"
    scrape = {"job_name": "services", "file_sd_configs": [{"files": [f"{folder}/targets.json"]}]}
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    named = {"rule_files": [str(rules)]} if rules else {}
    config.write_text(json.dumps({"global": every, "scrape_configs": [scrape], **named}), encoding="utf-8")
    with (folder / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(
            (
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={LOOPBACK}:{port}",
            ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:

            def answers() -> bool:
                assert server.poll() is None, (folder / "prometheus.log").read_text()
                return prometheus.is_up()

            wait_for(answers, f"Prometheus; {log.name} says more", 60, every=0.1)
            yield prometheus
        finally:
            server.terminate()
            server.wait(30)


def sixty_times_faster(rules: str) -> str:
    """Return *rules* in which a minute is a second, so that a test need not wait for hours."""

    def seconds(text: str) -> float:
        return sum(int(number) * UNITS_S[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))

    def window(match: re.Match[str]) -> str:
        length = max(SHORTEST_WINDOW_S, seconds(match["window"]) / 60)
        return f"[{length:.0f}s{':1s' if match['step'] else ''}]"

    faster = re.sub(r"\[(?P<window>\w+)(?P<step>:\w+)?\]", window, rules)
    return re.sub(r"(?<= for: )\w+", lambda match: f"{max(1, seconds(match[0]) / 60):.0f}s", faster)
