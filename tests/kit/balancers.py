"""The real load balancers, each with the configuration that comes with the template."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kit.project import ROOT, Project
from kit.service import answers, free_ports, wait_for
from kit.tools import tool

DOCS = ROOT / "docs" / "load-balancers"
# The ports that stand in the configurations: the balancer's, and those of its instances.
FRONT = "8080"
SLOTS = ("8000", "8010", "8020", "8030")
# Most balancers take every instance for ready until their first check.
FIRST_CHECK_SECONDS = 1.0


def places() -> dict[str, int]:
    """Return a free port for each that a balancer's file names: the front, the slots, their admin ports."""
    names = (FRONT, *SLOTS, *(f"1{slot}" for slot in SLOTS))
    return dict(zip(names, free_ports(len(names)), strict=True))


@dataclass(frozen=True)
class Balancer:
    """A balancer.

    Args:
        files: Its configuration; a relative path is one of a rendered project.
        quicker: What is made quicker in the files, so that tests need not wait; the instances' drain delay is
            made shorter by as much. Only an answer may take longer, on a busy machine.
        command: What runs it, given the folder that has its files.
        asks: Whether it asks for readiness, and so takes out what does not answer.
    """

    files: tuple[Path, ...]
    quicker: Mapping[str, str]
    command: Callable[[Path], tuple[str | Path, ...]]
    asks: bool = True

    @contextlib.contextmanager
    def running(
        self, project: Project, folder: Path, ports: Mapping[str, int], path: str = "/work?s=0"
    ) -> Iterator[None]:
        """Run it in *folder*, until the end of the block, which begins when *path* is answered with 200.

        Args:
            project: Where the files are that have relative paths.
            folder: An existing folder for its files and its log.
            ports: The ports to use, by those that stand in its files.
            path: What its instances answer.
        """
        texts = {file.name: (project.path / file).read_text(encoding="utf-8") for file in self.files}
        for usual in self.quicker:
            assert usual in "".join(texts.values()), f"{[*texts]} no longer have {usual!r}"
        for name, text in texts.items():
            for usual, quick in self.quicker.items():
                text = text.replace(usual, quick.replace("FOLDER", str(folder)))
            text = re.sub(rf"\b({'|'.join(ports)})\b", lambda match: str(ports[match[0]]), text)
            (folder / name).write_text(text, encoding="utf-8")
        command = self.command(folder)
        with (folder / "balancer.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def is_up() -> bool:
            assert process.poll() is None, (folder / "balancer.log").read_text()
            return answers(ports[FRONT], path)

        try:
            wait_for(is_up, f"{command[0]} to answer")
            time.sleep(FIRST_CHECK_SECONDS)
            yield
        finally:
            process.terminate()
            process.wait(60)


def haproxy(folder: Path) -> tuple[str | Path, ...]:
    return tool("haproxy"), "-db", "-f", folder / "haproxy.cfg"


def nginx(folder: Path) -> tuple[str | Path, ...]:
    program = tool("nginx")
    conf = folder / "main.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temp = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    conf.write_text(
        f"daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;"
        f"{'user root;' if os.geteuid() == 0 else ''}"
        f"events {{}} http {{ access_log off; {temp} include {folder}/nginx.conf; }}"
    )
    return program, "-p", folder, "-c", conf


def traefik(folder: Path) -> tuple[str | Path, ...]:
    return tool("traefik"), f"--configfile={folder}/traefik.yaml"


def envoy(folder: Path) -> tuple[str | Path, ...]:
    options = ("--concurrency", "2", "--use-dynamic-base-id", "--log-level", "error")
    return tool("envoy"), "-c", folder / "envoy.yaml", *options


BALANCERS: Mapping[str, Balancer] = {
    "haproxy": Balancer(
        (Path("deploy/systemd/haproxy.cfg"),),
        {"inter 1s": "inter 250ms", "timeout check 1s": "timeout check 5s"},
        haproxy,
    ),
    "nginx": Balancer(
        (DOCS / "nginx.conf",), {"keepalive_timeout 3s": "keepalive_timeout 500ms"}, nginx, asks=False
    ),
    "traefik": Balancer(
        (DOCS / "traefik.yaml", DOCS / "traefik-service.yaml"),
        {
            "/etc/traefik/": "FOLDER/traefik-",
            "interval: 1s": "interval: 250ms",
            "unhealthyInterval: 1s": "unhealthyInterval: 250ms",
        },
        traefik,
    ),
    "envoy": Balancer(
        (DOCS / "envoy.yaml",), {"interval: 1s": "interval: 0.25s", "timeout: 1s": "timeout: 5s"}, envoy
    ),
}
