"""Docker, and what tests make with it: images, containers, and what is in an image's layers."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kit.project import locked
from kit.service import clean_environment, wait_for
from kit.tools import tool

ORPHAN = Path(__file__).parent.parent / "apps" / "orphan.py"


def unique_name() -> str:
    """Return a name for an image, a network or a project that no other test run has."""
    return f"deployable-test-{uuid.uuid4().hex[:12]}"


def machine() -> list[str]:
    """Return the options with which a build has this machine's network and its CA bundle."""
    bundle = os.environ.get("SSL_CERT_FILE")
    return ["--network=host", *(["--secret", f"id=ca,src={bundle}"] if bundle else [])]


class Layer:
    """What one layer adds: the files' metadata, and a hash of the contents of each."""

    def __init__(self, blob: bytes, canaries: tuple[bytes, ...]) -> None:
        self.members: dict[str, tarfile.TarInfo] = {}
        self.hashes: dict[str, str] = {}
        self.leaks = [f"{canary!r} in the raw layer" for canary in canaries if canary in blob]
        with tarfile.open(fileobj=io.BytesIO(blob)) as files:
            for member in files:
                self.members[member.name] = member
                if file := files.extractfile(member) if member.isreg() else None:
                    content = file.read()
                    self.hashes[member.name] = hashlib.sha256(content).hexdigest()
                    self.leaks += [f"{canary!r} in {member.name}" for canary in canaries if canary in content]

    def facts(self) -> dict[str, tuple[object, ...]]:
        """All that a second build must repeat; not a folder's time, which the engine sets as it copies."""
        return {
            name: (
                m.type,
                m.mode,
                m.uid,
                m.gid,
                m.linkname,
                None if m.isdir() else m.mtime,
                self.hashes.get(name),
            )
            for name, m in self.members.items()
        }


class Engine:
    """Docker, and all that a test run made with it."""

    def __init__(self) -> None:
        self.docker = tool("docker")
        # What builds with the client's own BuildKit is older than this plugin.
        tool("docker buildx")
        # What the workflows of a service call the image that they build.
        self.candidate = unique_name()
        self.images = [self.candidate]

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.call("image", "rm", "--force", *self.images, check=False)

    def call(
        self, *arguments: str | Path, check: bool = True, limit: float = 300
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            (self.docker, *arguments),
            env=clean_environment(DOCKER_BUILDKIT="1"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
        )
        if check and done.returncode:
            pytest.fail(f"docker {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}", pytrace=False)
        return done

    def do(self, *arguments: str | Path) -> str:
        return self.call(*arguments).stdout.strip()

    def build(self, folder: Path, *options: str) -> tuple[str, str]:
        """Build, with this machine's network and CA bundle, and return the image's tag and the log."""
        tag = unique_name()
        self.images.append(tag)
        fixed = ("--progress=plain", *machine(), "--tag", tag)
        done = self.call("build", *fixed, *options, folder)
        return tag, done.stdout + done.stderr

    def inspect(self, what: str) -> Any:
        return json.loads(self.do("inspect", what))[0]

    def layers(self, image: str) -> list[str]:
        layers: list[str] = self.inspect(image)["RootFS"]["Layers"]
        return layers

    def unpack(self, image: str, into: Path, *canaries: bytes) -> list[Layer]:
        """Read all layers of the image, the lowest first."""
        archive = into / f"{image}.tar"
        self.do("save", "--output", archive, image)
        with tarfile.open(archive) as saved:
            manifest = json.load(saved.extractfile("manifest.json"))  # type: ignore[arg-type]
            layers = [
                Layer(saved.extractfile(name).read(), canaries)  # type: ignore[union-attr]
                for name in manifest[0]["Layers"]
            ]
        archive.unlink()
        return layers

    @contextmanager
    def container(self, image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[str]:
        """Run a container for as long as the block lasts."""
        identity = self.do("run", "--detach", *options, image, *command)
        try:
            yield identity
        finally:
            self.do("rm", "--force", "--volumes", identity)

    @contextmanager
    def swarm(self) -> Iterator[None]:
        """Make the engine a Swarm of one node, until the last test here that needs it has ended.

        One that was a Swarm before stays it.
        """
        folder = Path(tempfile.gettempdir(), f"deployable-test-swarm-{os.getuid()}")
        folder.mkdir(exist_ok=True)
        turn, made = folder / "turn", folder / "made"
        with (folder / "users").open("w") as users:
            with locked(turn):
                fcntl.flock(users, fcntl.LOCK_SH)
                if self.do("info", "--format={{.Swarm.LocalNodeState}}") != "active":
                    made.touch()
                    self.do("swarm", "init", "--advertise-addr=127.0.0.1")
            try:
                yield
            finally:
                with locked(turn), contextlib.suppress(BlockingIOError):
                    # Of several users, the last one gets it.
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if made.exists():
                        self.do("swarm", "leave", "--force")
                        made.unlink()

    def logs(self, container: str) -> list[dict[str, Any]]:
        """The container's log, which must be JSON and nothing else, on stdout alone."""
        done = self.call("logs", container)
        assert not done.stderr, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def wait_for(self, container: str, condition: Callable[[], object], what: str, limit: float = 60) -> None:
        def come_true() -> object:
            if found := condition():
                return found
            state = self.inspect(container)["State"]
            assert state["Running"], f"ended: {state}\n{self.do('logs', container)}"
            return None

        wait_for(come_true, what, limit)

    def said(self, container: str, event: str) -> list[dict[str, Any]]:
        return [line for line in self.logs(container) if line["event"] == event]

    def ready(self, container: str) -> None:
        self.wait_for(container, lambda: self.said(container, "ready"), "ready")

    def orphan(self, container: str) -> str:
        """Say what becomes of a process whose parent has ended: "gone", or "Z" where nobody waits for it."""
        return self.do("exec", container, "/app/bin/python", "-c", ORPHAN.read_text())

    def port(self, container: str, port: int) -> int:
        return int(self.do("port", container, f"{port}/tcp").splitlines()[0].rpartition(":")[2])
