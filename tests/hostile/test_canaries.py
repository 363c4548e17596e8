"""Contract, section 3: secrets that are planted, and looked for in all that a service says and holds."""

import contextlib
import json
import os
import random
import signal
import socket
import threading
from pathlib import Path

import pytest
from kit.hostile import SCALE
from kit.service import ENDPOINTS, wait_for
from kit.world import CANARIES, World

pytestmark = pytest.mark.slow


def leaks(text: str) -> list[str]:
    return [name for name, value in CANARIES.items() if value in text]


def test_no_secret_gets_out(world: World) -> None:
    service = world.start(APP_LOG_LEVEL="debug").ready()
    assert [*CANARIES.values()][:2] == list(json.loads(service.ask("/reveal").text))
    for kind in ("exception", "library", "warning", "thread", "task", "unraisable", "odd", "exit", "cancel"):
        service.ask(f"/trouble/{kind}")
    for path in ("/fail", "/group", "/die", "/silent"):
        said = service.ask(path).text
        assert not leaks(said)
    service.signal(signal.SIGHUP)
    service.line("secrets unchanged")
    for path in (*ENDPOINTS, "/-/ready/Gate", "/nothing"):
        assert not leaks(service.ask(path, port="admin").text), path
    words = "&".join(f"w={value[::-1]}" for value in CANARIES.values())
    count, found = json.loads(service.ask(f"/reach?{words}").text)
    assert count > 10_000
    assert not found, found
    # The process's own environment, and what a child of it is given.
    assert not leaks(service.ask("/child").text)
    assert not leaks(Path(f"/proc/{service.pid}/environ").read_text())
    assert not leaks(Path(f"/proc/{service.pid}/cmdline").read_text())
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert not leaks(service.out.read_text() + service.err.read_text())


def bad_files(folder: Path) -> dict[str, str]:
    """Return what may lie where a secret should, by what a log line says of it."""
    big, empty, latin, pipe, sock = (folder / name for name in ("big", "empty", "latin", "pipe", "sock"))
    big.write_bytes(b"x" * (1024 * 1024 + 1))
    empty.write_text("\n")
    latin.write_bytes(b"\xe9t\xe9")
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(sock))
    (folder / "loop").symlink_to("loop")
    (folder / "folder").mkdir()
    return {
        "big": "larger than 1048576 bytes",
        "empty": "is empty",
        "latin": "is not UTF-8",
        "pipe": "is not a regular file",
        "sock": "is not a regular file",
        "loop": "can't be read",
        "folder": "is not a regular file",
        "nowhere": "does not exist",
        "/dev/zero": "is not a regular file",
        "/proc/self/mem": "can't be read",
    }


def test_what_is_no_secret_file_is_named_and_the_old_secrets_stay(world: World, tmp_path: Path) -> None:
    folder = world.secrets()
    service = world.start(secrets=folder, APP_SECRETS_REFRESH="0").ready()
    secret = folder / "probe_password"
    for name, why in bad_files(tmp_path).items():
        secret.unlink()
        secret.symlink_to(tmp_path / name)
        before = len(service.lines("secrets reload failed"))
        service.signal(signal.SIGHUP)
        said = wait_for(
            lambda: service.lines("secrets reload failed")[before:],  # noqa: B023
            f"a line about {name}",
        )
        assert why in said[0]["problems"]["probe_password"], name
        assert service.status("/reveal") == 200
    secret.unlink()
    secret.write_text("x" * 1024 * 1024)
    secret.chmod(0o000)
    service.signal(signal.SIGHUP)
    if os.geteuid() == 0:
        wait_for(lambda: service.lines("secrets reloaded"), "the largest secret there may be")
    else:
        wait_for(lambda: "Permission denied" in str(service.lines()[-1]), "a line about the mode")
    assert service.is_running


def test_one_that_may_not_read_its_secrets_says_so(world: World) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start it as somebody else")
    folder = world.secrets()
    for name, mode in (("probe_password", 0o600), ("probe_key", 0o040), ("admin_token", 0o000)):
        (folder / name).chmod(mode)
    whose = Path("/proc/self/status").read_text()
    # Root without the capability to pass over modes is as good as anybody.
    prefix = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
    service = world.start(prefix=prefix, secrets=folder)
    os.chown(folder / "probe_password", 12345, 12345)
    assert whose
    status = service.wait()
    said = service.out.read_text()
    assert not leaks(said)
    assert status == 78, said
    assert "Permission denied" in said


def test_secrets_that_are_replaced_while_they_are_read_are_never_mixed(world: World) -> None:
    folder = world.secrets()
    generations = folder / "generations"
    generations.mkdir()

    def swap(number: int) -> None:
        new = generations / str(number)
        new.mkdir()
        for name in ("probe_password", "probe_key"):
            (new / name).write_text(f"generation {number}")
        link = folder / "new"
        link.symlink_to(new)
        link.rename(folder / "..data")

    swap(0)
    for name in ("probe_password", "probe_key"):
        (folder / name).unlink()
        (folder / name).symlink_to(f"..data/{name}")
    service = world.start(secrets=folder, APP_SECRETS_REFRESH="1").ready()
    stop = threading.Event()

    def change() -> None:
        chance = random.Random(3)
        for number in range(1, 400 * SCALE):
            swap(number)
            with contextlib.suppress(ProcessLookupError):
                service.signal(signal.SIGHUP)
            if stop.wait(chance.uniform(0, 0.01)):
                return

    writer = threading.Thread(target=change)
    writer.start()
    seen = set()
    try:
        while writer.is_alive():
            password, key = json.loads(service.ask("/reveal").text)
            assert password == key
            seen.add(password)
    finally:
        stop.set()
        writer.join()
    assert len(seen) > 3, "nothing changed while it was looked at"
    last = f"generation {400 * SCALE - 1}"
    wait_for(lambda: last in service.ask("/reveal").text, "the newest secrets")
