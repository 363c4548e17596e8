"""What the pages show of a service is what a service says today: commands, log lines, the admin port."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.project import ROOT, Project
from kit.service import Answer, Asking, Service, clean_environment, wait_for
from kit.world import World

pytestmark = pytest.mark.slow

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# `$ command`, and what is shown below it.
SHOWN = re.compile(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
KEY = re.compile(r'"(\w+)": ?')


def shown(wanted: str) -> Iterator[tuple[str, str]]:
    """Yield each command of the pages that *wanted* matches, with the output that stands below it."""
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            yield from (found for found in SHOWN.findall(block) if re.search(wanted, found[0]))


def shape(text: str) -> str:
    """Return *text* without what differs from one run to the next: places, times, ids and other figures."""
    text = re.sub(r"[^\s\"]*/(?=\w+\.py:)", "…/", text)
    return re.sub(r"[0-9]+", "9", re.sub(r"[0-9a-f]{32}", "9", text))


def test_commands_say_what_is_shown(rendered: Project, tmp_path: Path) -> None:
    commands = list(shown(r"\bmy-service (check|config)|^echo"))
    assert len(commands) >= 4
    status = 0
    for command, output in commands:
        done = subprocess.run(
            ["sh", "-c", f"(exit {status}); {command}"],
            cwd=tmp_path,
            env=clean_environment(PATH=f"{rendered.python.parent}:/usr/bin:/bin"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        status = done.returncode
        assert done.stdout == output, command


@pytest.fixture
def probe(world: World) -> Service:
    """A service with a bit of everything: a failed check, slow requests, a stall, a setting from outside."""
    probe = world.start("probe", APP_LOG_LEVEL="info").ready()
    probe.ask("/gate/lamp?mode=shut")
    probe.ask("/block?s=1")
    assert probe.readiness()["checks"]["Lamp"][0]["status"] == "warn"
    probe.signal(signal.SIGHUP)
    probe.line("settings need restart")
    return probe


def test_log_lines_are_what_is_shown(world: World, probe: Service) -> None:
    service = world.start(None).ready()
    service.ask("/greetings/Ada")
    service.request_line("/greetings/Ada")
    assert service.stop() == 0
    said = {line["event"]: line for line in [*probe.lines(), *service.lines()]}
    samples = [
        json.loads(line)
        for page in PAGES
        for line in re.findall(r'^ *(\{.*"event":.*\})$', page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(samples) >= 5
    for sample in samples:
        line = said[sample["event"]]
        # A sample may leave the time out.
        assert sample.keys() == (line.keys() if "timestamp" in sample else line.keys() - {"timestamp"})
        same = {key for key in sample if type(line[key]) is str} - {"python", "version", "http", "admin"}
        assert {key: shape(sample[key]) for key in same} == {key: shape(line[key]) for key in same}


def asked(service: Service, command: str) -> Answer:
    """Ask *service* what the `curl` in *command* asks."""
    found = re.search(r"""(?:\$admin|localhost:8001)(/[^"]*)""", command)
    assert found, command
    method, headers = re.search(r"-X (\w+)", command), dict(re.findall(r"-H '(.+?): (.+?)'", command))
    body = re.search(r"-d '(.+?)'", command)
    about: dict[str, Any] = {"method": method[1] if method else "GET", "headers": headers}
    return service.ask(found[1], port="admin", body=body[1] if body else None, **about)


def lines(text: str) -> set[str]:
    """Return the lines of *text* by their shape, but for those that only say that there is more."""
    return {line.strip() for line in shape(text).splitlines()} - {"…"}


def test_the_admin_port_says_what_is_shown(world: World, probe: Service) -> None:
    default = world.start(None).ready()
    slow = [Asking(probe, "/slow?s=600") for _ in range(3)]
    wait_for(lambda: len(probe.lines("slow begins")) == 3, "three requests in flight")
    stuck = world.start("probe", APP_HEALTH_STALL_LIMIT="1").ready()
    blocked = Asking(stuck, "/block?s=600")
    wait_for(lambda: stuck.status("/-/healthy", "admin") == 503, "the failing liveness")
    commands = list(shown(r"curl .*(\$admin|localhost:8001)"))
    assert len(commands) >= 10
    for command, sample in commands:
        who = default if "localhost" in command else stuck if "healthy" in command else probe
        answer = asked(who, command)
        said = answer.text
        if said.startswith(("{", "[")):
            missing = set(KEY.findall(sample)) - set(KEY.findall(said))
            assert not missing, f"{command} says nothing of {missing}:\n{said}"
            times = [re.sub(r"\d", "9", time) for time in re.findall(r'"([\d-]+T[\d:.]+Z)"', sample + said)]
            assert len(set(times)) <= 1, f"{command}: {sample}"
        if "…" not in sample:
            assert KEY.findall(sample) == KEY.findall(said), f"{command}:\n{said}"
        if "/metrics" in command:
            sample, said = (re.sub(r"[{ ].*", "", text, flags=re.MULTILINE) for text in (sample, said))
        if not said.startswith(("{", "[")):
            assert lines(sample) <= lines(said), f"{command}:\n{said}"
    for process in (stuck, probe):
        process.kill()
    for one in (*slow, blocked):
        one.join()
