"""What the chassis costs: one table of ratios, each of two things measured in turn in the same run.

The speed of the machine changes both sides of a ratio alike, so what counts are medians of ratios of
neighbouring rounds. Servers run on the first core, load and readers of logs on the last. What each measure
must be, and why, is in docs/performance.md.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common import (
    TEMPLATE,
    Running,
    bake,
    cores,
    environment,
    free_port,
    listening,
    load,
    needed,
    paced,
    proportional_memory,
    server,
)

HERE = Path(__file__).parent
# Requests after which a server has all the memory that it needs, and those after which it must not have more.
WARM, MANY = 100_000, 1_000_000
RENDER = (str(TEMPLATE), "--no-input", "--default-config", "--accept-hooks")
ROLES = ("AUTHOR", "COMMITTER")
BY_HAND = (
    ("git", "init", "--quiet"),
    ("git", "add", "."),
    ("git", "commit", "--quiet", "--message", "first"),
    ("uv", "lock"),
    ("git", "add", "uv.lock"),
    ("git", "commit", "--quiet", "--message", "lock"),
)
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen all
  bind 127.0.0.1:{port}
  balance roundrobin
"""


@dataclass
class Row:
    """A measure, its figures in this run, and what they are to be: at least, or at most."""

    measure: str
    against: str
    sign: str
    must: float
    aim: float
    values: list[float]
    unit: str = ""
    note: str = ""
    median: float = field(init=False)

    def __post_init__(self) -> None:
        self.median = statistics.median(self.values)

    def line(self) -> str:
        low, high = min(self.values), max(self.values)
        return (
            f"| {self.measure} | {self.against} | **{self.median:.2f}{self.unit}** ({low:.2f} to {high:.2f}) "
            f"| {self.sign} {self.must:g}{self.unit} | {self.sign} {self.aim:g}{self.unit} | {self.note} |"
        )


class Bench:
    """The projects under test, in *folder*, and how long to measure."""

    def __init__(self, folder: Path, rounds: int, seconds: int, many: int = MANY) -> None:
        self.rounds, self.seconds, self.many = rounds, seconds, many
        say("Baking the default service, and the same with FastAPI")
        self.project = bake(folder / "default")
        self.peer = bake(folder / "fastapi", "web_framework=fastapi")
        self.python = self.project / ".venv/bin/python"
        for project in (self.project, self.peer):
            shutil.copytree(HERE / "subjects", project, dirs_exist_ok=True)

    def serve(
        self, kind: str, core: int | None = None, path: str = "/hello/you", **more: str
    ) -> AbstractContextManager[Running]:
        port = free_port()
        uvicorn = (
            *("-m", "uvicorn", "--port", str(port)),
            *("--loop", "uvloop", "--http", "httptools"),
        )
        python: Path = self.python
        match kind:
            case "wired":
                command: tuple[str, ...] = ("-m", "wired")
            case "joined":
                command = ("joined.py", str(port))
            case "bare":
                command = (*uvicorn, "--no-access-log", "--log-level", "warning", "subject:app")
            case _:
                command, python = (*uvicorn, "peer:app"), self.peer / ".venv/bin/python"
        env = environment(APP_HTTP_PORT=str(port), APP_ADMIN_PORT="0", APP_LOG_FORMAT="json", **more)
        folder = self.peer if kind == "peer" else self.project
        return server((python, *command), folder, port, path, cores()[0] if core is None else core, env)

    def throughput(self) -> list[Row]:
        kinds = ("wired", "bare", "joined", "peer")
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        with ExitStack() as stack:
            servers = {kind: stack.enter_context(self.serve(kind)) for kind in kinds}
            for one in servers.values():
                load(one.process, url(one), 2)
            for number in range(self.rounds):
                for kind, one in servers.items():
                    rates[kind].append(load(one.process, url(one), self.seconds).rate)
                say(f"round {number + 1}: " + ", ".join(f"{kind} {rates[kind][-1]:.0f}/s" for kind in kinds))
            tails = self.tails(servers, min(map(statistics.median, (rates["wired"], rates["bare"]))) / 2)
        wired = rates["wired"]
        note = f"{statistics.median(wired):.0f} requests a second"
        return [
            Row("throughput", "bare Starlette", ">=", 0.80, 0.90, ratios(wired, rates["bare"]), note=note),
            Row("throughput", "joined writes alone", ">=", 0.60, 0.80, ratios(wired, rates["joined"])),
            Row("throughput", "FastAPI, access log", ">=", 2.5, 3.0, ratios(wired, rates["peer"])),
            tails,
        ]

    def tails(self, servers: Mapping[str, Running], rate: float) -> Row:
        """Hold the 99th percentiles at one fixed rate against each other."""
        found: dict[str, list[float]] = {"wired": [], "bare": []}
        for number in range(self.rounds):
            for kind, values in found.items():
                times = sorted(paced(url(servers[kind]), rate, self.seconds))
                values.append(times[int(len(times) * 0.99)])
            say(
                f"p99 {number + 1}: " + ", ".join(f"{kind} {found[kind][-1] * 1000:.2f} ms" for kind in found)
            )
        note = f"{statistics.median(found['wired']) * 1000:.1f} ms at {rate:.0f}/s"
        return Row(
            "p99 at half the rate", "bare Starlette", "<=", 1.3, 1.1, ratios(*found.values()), note=note
        )

    def starts(self) -> list[Row]:
        began: dict[str, list[float]] = {"wired": [], "bare": []}
        stops: list[float] = []
        for number in range(3 * self.rounds):
            for kind, values in began.items():
                with self.serve(kind) as one:
                    values.append(one.started_in)
                    if kind == "wired":
                        at = time.perf_counter()
                        os.kill(one.process, 15)
                        os.waitid(os.P_PID, one.process, os.WEXITED | os.WNOWAIT)
                        stops.append((time.perf_counter() - at) * 1000)
            say(f"start {number + 1}: " + ", ".join(f"{kind} {began[kind][-1]:.3f} s" for kind in began))
        note = f"{statistics.median(began['wired']) * 1000:.0f} ms"
        return [
            Row("start to first 200", "bare Starlette", "<=", 1.4, 1.2, ratios(*began.values()), note=note),
            Row("SIGTERM to exit", "", "<=", 600, 400, stops, " ms"),
        ]

    def memory(self) -> list[Row]:
        pss: dict[str, list[int]] = {}
        for kind in ("wired", "bare"):
            with self.serve(kind) as one:
                pss[kind] = [proportional_memory(one.process)]
                done = 0
                for target in (WARM, self.many):
                    while done < target:
                        done += load(one.process, url(one), self.seconds).count
                        say(f"memory of {kind}: {done} requests")
                    pss[kind].append(proportional_memory(one.process))
        wired, bare = pss["wired"], pss["bare"]
        idle, after = (f"{wired[at] / 2**20:.1f} MiB" for at in (0, 2))
        grown = f"the first {WARM // 1000} k"
        return [
            Row("memory, idle", "bare Starlette", "<=", 1.2, 1.1, [wired[0] / bare[0]], note=idle),
            Row(
                f"after {self.many / 1e6:g} M requests",
                "bare",
                "<=",
                1.2,
                1.1,
                [wired[2] / bare[2]],
                note=after,
            ),
            Row(f"after {self.many / 1e6:g} M requests", grown, "<=", 1.02, 1.0, [wired[2] / wired[1]]),
        ]

    def logs(self) -> list[Row]:
        found: dict[str, list[float]] = {"wired": [], "stdlib": []}
        target = ("--target", str(self.project / "extra"), "--python", str(self.python))
        subprocess.run((needed("uv"), "pip", "install", "--quiet", *target, "python-json-logger"), check=True)
        env = environment(PYTHONPATH=str(self.project / "extra"))
        for _ in range(self.rounds):
            for kind, values in found.items():
                command = (self.python, "lines.py", kind, "100000")
                with subprocess.Popen(("cat",), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as reader:
                    done = subprocess.run(
                        command,
                        cwd=self.project,
                        env=env,
                        check=True,
                        stdout=reader.stdin,
                        stderr=subprocess.PIPE,
                    )
                    assert reader.stdin is not None
                    reader.stdin.close()
                values.append(float(done.stderr))
        note = f"{statistics.median(found['wired']):.0f} lines a second"
        return [
            Row("log lines", "stdlib, JSON formatter", ">=", 1.5, 2.0, ratios(*found.values()), note=note)
        ]

    def commands(self) -> list[Row]:
        package = next((self.project / "src").glob("*/__main__.py")).parent.name
        commands = {
            "check": ("-m", package, "check"),
            "healthcheck": ("-m", package, "healthcheck"),
            "nothing": ("-c", "pass"),
        }
        found: dict[str, list[float]] = {name: [] for name in commands}
        with self.serve("wired") as one:
            admin = next(port for port in listening(one.process) if port != one.port)
            env = environment(APP_ADMIN_PORT=str(admin))
            for _ in range(3 * self.rounds):
                for name, arguments in commands.items():
                    process = subprocess.Popen(
                        (self.python, *arguments), cwd=self.project, env=env, stdout=subprocess.DEVNULL
                    )
                    _, status, usage = os.wait4(process.pid, 0)
                    process.returncode = os.waitstatus_to_exitcode(status)
                    if process.returncode:
                        sys.exit(f"{name} failed")
                    found[name].append(usage.ru_utime + usage.ru_stime)
        check, healthcheck = (ratios(found[name], found["nothing"]) for name in ("check", "healthcheck"))
        return [
            Row("CPU of check", "python -c pass", "<=", 40, 30, check),
            Row("CPU of healthcheck", "python -c pass", "<=", 3, 2, healthcheck),
        ]

    def render(self) -> list[Row]:
        """The command as people run it: hooks that find neither git nor uv, and all that they do otherwise.

        The first is held against the command without hooks, the second against that with the rest by hand.
        """
        person = {f"GIT_{role}_{what}": "me@localhost" for role in ROLES for what in ("NAME", "EMAIL")}
        person["PATH"] = os.pathsep.join((str(Path(needed("uv")).parent), os.environ["PATH"]))
        plain, hooked = ((sys.executable, "-m", "cookiecutter", *RENDER, answer) for answer in ("no", "yes"))
        ways: dict[str, tuple[list[tuple[str, ...]], dict[str, str]]] = {
            "plain": ([plain], environment(**person)),
            "no tools": ([hooked], environment(PATH="")),
            "hooks": ([hooked], environment(**person)),
            "by hand": ([plain, *BY_HAND], environment(**person)),
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(3 * self.rounds):
            for way, (commands, env) in ways.items():
                with tempfile.TemporaryDirectory() as folder:
                    began = time.perf_counter()
                    for command in commands:
                        into = next(Path(folder).iterdir(), folder)
                        subprocess.run(command, cwd=into, env=env, check=True, capture_output=True)
                    found[way].append(time.perf_counter() - began)
        say("render: " + ", ".join(f"{way} {statistics.median(found[way]):.2f} s" for way in found))
        measures = (
            ("render, hooks without tools", "the same without hooks", "no tools", "plain"),
            ("render with link, lock, commit", "lock and commit by hand", "hooks", "by hand"),
        )
        return [
            Row(
                measure,
                against,
                "<=",
                1.5,
                1.2,
                ratios(found[one], found[other]),
                note=f"{statistics.median(found[one]):.2f} s",
            )
            for measure, against, one, other in measures
        ]

    def suite(self) -> list[Row]:
        say("The generated suite")
        subprocess.run((needed("uv"), "sync", "--quiet"), cwd=self.project, check=True)
        (self.project / "README.md").touch()
        began = time.perf_counter()
        subprocess.run(
            (needed("uv"), "run", "--quiet", "pytest", "-q"),
            cwd=self.project,
            env=environment(),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return [Row("generated suite", "", "<=", 8, 5, [time.perf_counter() - began], " s")]

    def instances(self) -> list[Row]:
        found: dict[int, list[float]] = {1: [], 2: []}
        first, second = cores()[0], cores()[1 % len(cores())]
        with self.serve("wired", first, "/work") as a, self.serve("wired", second, "/work") as b:
            for _ in range(self.rounds):
                for count, values in found.items():
                    with haproxy([a, b][:count]) as (process, port):
                        values.append(load(process, f"http://127.0.0.1:{port}/work", self.seconds, 16).rate)
                say(f"instances: {found[1][-1]:.0f}/s with one, {found[2][-1]:.0f}/s with two")
        note = "behind HAProxy, 3 ms of computing a request"
        return [Row("two instances", "one", ">=", 1.6, 1.9, ratios(found[2], found[1]), note=note)]


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def url(one: Running) -> str:
    return f"http://127.0.0.1:{one.port}/hello/you"


@contextmanager
def haproxy(servers: list[Running]) -> Iterator[tuple[int, int]]:
    """Run HAProxy before *servers*; give its process id and port."""
    port = free_port()
    lines = "".join(f"  server s{n} 127.0.0.1:{one.port}\n" for n, one in enumerate(servers))
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(HAPROXY.format(port=port) + lines)
        file.flush()
        with server(
            (needed("haproxy"), "-f", file.name), HERE, port, "/work", cores()[0], environment()
        ) as one:
            os.sched_setaffinity(one.process, cores())
            yield one.process, port


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{len(cores())} cores of {model}, Linux {platform.release()}"


def write(path: Path, figures: object, title: str, text: str) -> None:
    """Write figures as JSON to *path*, and as text for people beside it."""
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(f"# {title}\n\n{text}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the chassis costs, as ratios.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of load in each round")
    parser.add_argument("--requests", type=int, default=MANY, help="after which memory is looked at")
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="measure that alone (may be repeated)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures there, and the table beside it"
    )
    options = parser.parse_args()
    for name in ("wrk", "hey", "haproxy", "taskset", "ss"):
        needed(name)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.rounds, options.seconds, options.requests)
        parts: dict[str, Callable[[], list[Row]]] = {
            "throughput": bench.throughput,
            "starts": bench.starts,
            "memory": bench.memory,
            "logs": bench.logs,
            "commands": bench.commands,
            "render": bench.render,
            "instances": bench.instances,
            "suite": bench.suite,
        }
        rows = [
            row for name, measure in parts.items() if name in (options.only or parts) for row in measure()
        ]
        python = subprocess.run(
            (bench.python, "-V"), check=True, capture_output=True, text=True
        ).stdout.strip()
    head = ["| measure | against | median (range) | must | aim | |", "|---|---|---|---|---|---|"]
    text = "\n".join([f"{machine()}; {python}", "", *head, *(row.line() for row in rows)])
    print(f"\n{text}")
    if options.json:
        what = {"machine": machine(), "python": python, "rows": [asdict(row) for row in rows]}
        write(options.json, what, "What the chassis costs", text)


if __name__ == "__main__":
    main()
