"""A service that is run by a configuration tool, and what it has to show of it."""

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from kit.formats import Values
from kit.project import Project
from kit.service import Service, clean_environment

FIRST = {
    "APP_LOG_LEVEL": "debug",
    "APP_HTTP_TRUSTED_PROXIES": "10.0.0.0/8,::1",
    "APP_DRAIN_TIMEOUT": "7",
    "APP_BUILD_REVISION": "a 'b' \"c\" $HOME `id` \\d # e=é 👩 %f\nsecond line",
    "APP_GREETING_EVENING": "20",
}
SECOND = FIRST | {"APP_GREETING_EVENING": "13"}
BARE = {"APP_BUILD_REVISION": "é=1;2"}
# The event of a reload that finds changed settings.
STAYS = "settings need restart"


class Instance:
    """The service as a tool runs it: its settings from an env file, its secrets from a folder."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.file, self.secrets = folder / "service.env", folder / "secrets"
        self.secrets.mkdir()
        self._project, self._folder = project, folder
        self._started: list[Service] = []

    def start(self, env: Values | None = None) -> Service:
        """Start it, from the env file or with just these variables."""
        folder = self._folder / f"run{len(self._started)}"
        folder.mkdir()
        command: tuple[str | Path, ...] = (self._project.python, "-m", self._project.package)
        fixed = {"APP_HTTP_PORT": "0", "APP_ADMIN_PORT": "0", "APP_SECRETS_DIR": str(self.secrets)}
        if env is None:
            command = ("sh", "-c", 'set -a && . "$0" && exec "$@"', self.file, *command)
        fixed |= {"APP_SECRETS_REFRESH": "0"} | dict(env or {})
        self._started.append(Service(command, folder, clean_environment(**fixed), self._project.path))
        return self._started[-1].ready()

    def end(self) -> None:
        for service in self._started:
            service.end()


def shows(service: Service, values: Values) -> None:
    """Fail unless /-/config has exactly these values, each from the environment."""
    shown = json.loads(service.look("/-/config"))
    seen = {name: (shown[name]["value"], shown[name]["source"]) for name in values}
    assert seen == {name: (value, f"environment {name}") for name, value in values.items()}


def wants(service: Service, token: str) -> None:
    """Fail unless this is the greeting's token."""
    for shown, status in ((token, 200), (f"not {token}", 401)):
        request = urllib.request.Request(f"http://127.0.0.1:{service.port()}/greetings/Ada")
        request.add_header("Authorization", f"Bearer {shown}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                seen = answer.status
        except urllib.error.HTTPError as error:
            seen = error.code
        assert seen == status, shown


def hangup(service: Service, event: str) -> None:
    """Send the signal that tools send, and wait for what is said then."""
    service.signal(signal.SIGHUP)
    service.line(event)


def follows(instance: Instance, change: Callable[[Values], None]) -> None:
    """Go the way of a changed setting and a changed secret, as docs/configuration.md tells it."""
    (instance.secrets / "greeting_token").write_text("old")
    change(FIRST)
    service = instance.start()
    shows(service, FIRST)
    wants(service, "old")
    (instance.secrets / "greeting_token").write_text("new")
    change(SECOND)
    hangup(service, "secrets reloaded")
    wants(service, "new")
    (line,) = service.lines(STAYS)
    assert set(FIRST) <= set(line["settings"])
    shows(service, FIRST)
    service.end()
    assert service.popen.returncode == 0
    service = instance.start()
    shows(service, SECOND)
    wants(service, "new")
