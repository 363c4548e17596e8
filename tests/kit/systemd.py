"""A stand-in for systemd, which can only be started as the first process of a machine.

It reads a unit and does what its lines say: the environment, credentials, and what Type=notify means.
"""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kit.project import ROOT
from kit.service import Service, clean_environment

SYSTEMCTL = ROOT / "tests" / "apps" / "systemctl.py"


def read_unit(text: str) -> dict[str, list[str]]:
    """Return what each directive says, in order; enough of the format for the units here."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, flags=re.M):
        found.setdefault(name, []).append(value)
    return found


def environment(unit: Mapping[str, list[str]], instance: str) -> dict[str, str]:
    words = " ".join(unit["Environment"]).replace("%i", instance).split()
    return dict(word.split("=", 1) for word in words)


class Unit(Service):
    """An instance, with the socket that it notifies, and when it said what."""

    def __init__(self, command: tuple[str | Path, ...], folder: Path, cwd: Path, **env: str) -> None:
        self.told: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # A path of a socket has 107 characters at most, and pytest's folders are long.
        self._address = Path(tempfile.mkdtemp()) / "notify"
        self._socket.bind(str(self._address))
        super().__init__(command, folder, clean_environment(NOTIFY_SOCKET=str(self._address), **env), cwd)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._socket.recv(4096):
                self.told.append((time.monotonic(), message.decode()))

    def has_told(self, message: str) -> bool:
        return message in [each for _, each in self.told]

    def stop(self, limit: float = 30.0) -> int:
        """Stop it as systemd does, which kills what takes longer than its limit; return the exit status."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait(limit)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.wait()
        finally:
            self._socket.close()
            shutil.rmtree(self._address.parent)


@dataclass
class Manager:
    """Does what systemd would with the instances of the unit, as far as the unit says so."""

    unit: Mapping[str, list[str]]
    name: str
    command: tuple[str | Path, ...]
    folder: Path
    cwd: Path
    # The folder /etc/credstore, and the file /etc/NAME.env.
    credentials: Mapping[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    _count: int = 0

    def start(self, instance: str, **env: str) -> bool:
        """Start an instance and wait until it says that it is ready; False when it ends or takes too long."""
        self._count += 1
        folder = self.folder / f"run{self._count}"
        (folder / "credentials").mkdir(parents=True)
        for line in self.unit["LoadCredential"]:
            name, source = line.split(":")
            if source in self.credentials:
                (folder / "credentials" / name).write_text(self.credentials[source])
                (folder / "credentials" / name).chmod(0o400)
        given = {
            "CREDENTIALS_DIRECTORY": str(folder / "credentials"),
            "WATCHDOG_USEC": f"{float(self.unit['WatchdogSec'][0]) * 1e6:.0f}",
        }
        given |= environment(self.unit, instance) | self.settings | env
        unit = self.units[instance] = Unit(self.command, folder, self.cwd, **given)
        deadline = time.monotonic() + float(self.unit["TimeoutStartSec"][0])
        while unit.is_running and not unit.has_told("READY=1") and time.monotonic() < deadline:
            time.sleep(0.01)
        if unit.has_told("READY=1"):
            return True
        self.stop(instance)
        return False

    def stop(self, instance: str) -> None:
        self.ended.append(self.units.pop(instance).stop(float(self.unit["TimeoutStopSec"][0])))

    def systemctl(self, verb: str, *arguments: str) -> tuple[int, str]:
        """Obey as far as the script asks; return the status and what to print."""
        *_, what = arguments
        found = re.fullmatch(rf"{self.name}@(\d+|\*)\.service", what)
        assert found, arguments
        instance = found[1]
        match verb:
            case "list-units":
                up = [each for each, unit in self.units.items() if unit.is_running]
                return 0, "".join(
                    f"{self.name}@{each}.service loaded active running a unit\n" for each in sorted(up)
                )
            case "is-active":
                return (0 if instance in self.units else 3), ""
            case "start" | "restart":
                if instance in self.units:
                    self.stop(instance)
                return (0 if self.start(instance) else 1), ""
            case "stop":
                self.stop(instance)
                return 0, ""
        raise AssertionError(verb)

    @contextlib.contextmanager
    def on_the_path(self) -> Iterator[Path]:
        """A folder with a program `systemctl` that asks this manager."""
        address = str(Path(tempfile.mkdtemp()) / "manager")
        script = self.folder / "bin" / "systemctl"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{SYSTEMCTL}" "{address}" "$@"\n')
        script.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
            thread.start()
            yield script.parent
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(address)
            thread.join(60)
        shutil.rmtree(Path(address).parent)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            with listener.accept()[0] as connection, connection.makefile("rw") as file:
                if not (line := file.readline()):
                    return
                status, said = self.systemctl(*json.loads(line))
                print(json.dumps({"status": status, "said": said}), file=file, flush=True)
