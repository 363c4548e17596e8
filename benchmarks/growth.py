"""How cost grows: with the rate, the size of bodies, and the numbers of routes, settings and time series.

CPU is what is measured, which the rest of the machine moves less than time. Where bare Starlette on stock
uvicorn has such a cost too, it is measured in turn.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.request import urlopen

from common import cpu_seconds, environment, listening, load, needed, paced, proportional_memory
from table import Bench, machine, say, url, write

KIB = 1024
# CPU is counted in hundredths of a second: this gives a figure of half a millisecond a second.
IDLE_SECONDS = 20


@dataclass
class Growth:
    """What one cost is at growing sizes: *values* by the subject's name, in *unit*."""

    name: str
    of: str
    unit: str
    sizes: list[int] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, size: int, **values: float) -> None:
        self.sizes.append(size)
        for kind, value in values.items():
            self.values.setdefault(kind, []).append(value)
        said = ", ".join(f"{kind} {value:.4g}" for kind, value in values.items())
        say(f"{self.name}, {size:,} {self.of}: {said} {self.unit}")

    def lines(self) -> list[str]:
        """Return a table, a column for each size."""
        head = [f"| {self.name}, {self.unit} | " + " | ".join(f"{size:,}" for size in self.sizes) + " |"]
        rule = ["|---" * (len(self.sizes) + 1) + "|"]
        rows = [
            f"| {kind} | {' | '.join(f'{figure(value)}' for value in row)} |"
            for kind, row in self.values.items()
        ]
        return [*head, *rule, *rows]


class Growths:
    """Measures on the projects of a Bench."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench = bench
        self._folder = folder

    def rates(self) -> list[Growth]:
        """At a share of what the service can do at most."""
        growth = Growth("CPU of a request by rate", "requests a second", "µs")
        with self._bench.serve("wired") as wired, self._bench.serve("bare") as bare:
            both = {"service": wired, "bare": bare}
            most = min(load(one.process, url(one), 5).rate for one in both.values())
            for share in (0.05, 0.1, 0.25, 0.5, 0.75):
                rate = round(most * share, -2)
                growth.add(
                    round(rate),
                    **{kind: self._request(one.process, url(one), rate) for kind, one in both.items()},
                )
        return [growth]

    def bodies(self) -> list[Growth]:
        """Bodies that are sent to the service."""
        growth = Growth("CPU of a request by body", "KiB", "µs")
        body = self._folder / "body"
        limit = str(16 * KIB * KIB)
        with self._bench.serve("wired", APP_HTTP_MAX_BODY=limit) as wired, self._bench.serve("bare") as bare:
            for size in (1, 16, 64, 256, 1024, 4096):
                body.write_bytes(bytes(size * KIB))
                post = ("-m", "POST", "-D", str(body))
                # CPU is counted in hundredths of a second.
                rate = 500 if size < 256 else 100
                growth.add(
                    size,
                    **{
                        kind: self._request(one.process, f"http://127.0.0.1:{one.port}/length", rate, *post)
                        for kind, one in (("service", wired), ("bare", bare))
                    },
                )
        return [growth]

    def routes(self) -> list[Growth]:
        """The last of many routes."""
        growth = Growth("CPU of a request by routes", "routes", "µs")
        for count in (1, 10, 100, 1000):
            with (
                self._bench.serve("wired", ROUTES=str(count)) as wired,
                self._bench.serve("bare", ROUTES=str(count)) as bare,
            ):
                growth.add(
                    count,
                    **{
                        kind: self._request(one.process, url(one), 500)
                        for kind, one in (("service", wired), ("bare", bare))
                    },
                )
        return [growth]

    def series(self) -> list[Growth]:
        """Time series of the service's own."""
        scrape = Growth("CPU of a scrape by time series", "series", "ms")
        size = Growth("Size of a scrape by time series", "series", "KiB")
        memory = Growth("Memory (PSS) by time series", "series", "MiB")
        idle = Growth("CPU of an idle instance", "series", "ms/s")
        for count in (100, 1_000, 10_000, 100_000):
            with self._bench.serve("wired", SERIES=str(count)) as one:
                before = cpu_seconds(one.process)
                time.sleep(IDLE_SECONDS)
                idle.add(count, service=(cpu_seconds(one.process) - before) / IDLE_SECONDS * 1000)
                admin = next(port for port in listening(one.process) if port != one.port)
                looks = max(3, 20_000 // count)
                before = cpu_seconds(one.process)
                for _ in range(looks):
                    with urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=60) as answer:
                        length = len(answer.read())
                scrape.add(count, service=(cpu_seconds(one.process) - before) / looks * 1000)
                size.add(count, service=length / KIB)
                memory.add(count, service=proportional_memory(one.process) / KIB / KIB)
        return [scrape, size, memory, idle]

    def settings(self) -> list[Growth]:
        """Settings of the service's own, on top of those that every service has."""
        growth = Growth("CPU of check by settings", "more settings", "ms")
        for count in (0, 10, 100, 1000):
            used = []
            for _ in range(self._bench.rounds):
                process = subprocess.Popen(
                    (self._bench.python, "wired.py", "check"),
                    cwd=self._bench.project,
                    env=environment(SETTINGS=str(count)),
                    stdout=subprocess.DEVNULL,
                )
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                assert process.returncode == 0
                used.append(usage.ru_utime + usage.ru_stime)
            growth.add(count, service=statistics.median(used) * 1000)
        return [growth]

    def _request(self, process: int, where: str, rate: float, *options: str) -> float:
        """Return the microseconds of CPU that a request takes at a rate."""
        before = cpu_seconds(process)
        count = len(paced(where, rate, self._bench.seconds, *options))
        return (cpu_seconds(process) - before) / count * 1e6


def figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description="How cost grows.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of load at each size")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures there, and the tables beside it"
    )
    options = parser.parse_args()
    for name in ("wrk", "hey", "taskset", "ss"):
        needed(name)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measures = Growths(Bench(folder / "projects", options.rounds, options.seconds), folder)
        parts: list[Callable[[], list[Growth]]] = [
            measures.rates,
            measures.bodies,
            measures.routes,
            measures.series,
            measures.settings,
        ]
        growths = [growth for measure in parts for growth in measure()]
    text = "\n\n".join([machine(), *("\n".join(growth.lines()) for growth in growths)])
    print(f"\n{text}")
    if options.json:
        figures = {"machine": machine(), "growth": [asdict(growth) for growth in growths]}
        write(options.json, figures, "How cost grows", text)


if __name__ == "__main__":
    main()
