"""Services of a rendered project for a test: the programs of tests/apps, or the project's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kit.project import ROOT, Project
from kit.service import Service, clean_environment

TESTS = ROOT / "tests"
# The secrets of all that is started. They are looked for where no secret may be.
CANARIES = {"probe_password": "canary-5f1c", "probe_key": "canary-9ae2", "admin_token": "canary-c07d"}


class World:
    """Starts services of one project, each with secrets, settings and ports of its own, and ends them."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.project = project
        self._folder = folder
        self._started: list[Service] = []

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        for service in self._started:
            service.kill()

    def secrets(self) -> Path:
        """Return a new folder with the canaries as secrets."""
        folder = self._folder / f"secrets{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        for name, value in CANARIES.items():
            (folder / name).write_text(value)
        return folder

    def start(
        self,
        app: str | None = "hostile",
        *,
        prefix: Sequence[str | Path] = (),
        secrets: Path | None = None,
        ports: Mapping[str, int] | None = None,
        **env: str,
    ) -> Service:
        """Start one, without waiting for it.

        Args:
            app: The name of a program in tests/apps; None for the project's service itself.
            prefix: What runs the command.
            secrets: The folder with its secrets; by default, one with the canaries.
            ports: The ports that it has to take (http, admin), for one whose lines can't be read.
            env: What else its environment has.
        """
        folder = self._folder / f"service{len(self._started)}"
        folder.mkdir()
        wanted = {"http": 0, "admin": 0} | dict(ports or {})
        given = {
            "APP_HTTP_PORT": str(wanted["http"]),
            "APP_ADMIN_PORT": str(wanted["admin"]),
            "APP_SECRETS_DIR": str(secrets or self.secrets()),
            "APP_LOG_FORMAT": "json",
        }
        if app:
            given |= {"APP_PROBE_NAME": app, "PYTHONPATH": str(TESTS)}
        module = f"apps.{app}" if app else self.project.package
        command = (*prefix, self.project.python, "-m", module)
        service = Service(command, folder, clean_environment(**given | env), self.project.path, ports)
        self._started.append(service)
        return service
