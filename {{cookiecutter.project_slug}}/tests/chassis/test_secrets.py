"""Contract, section 3: secrets are files, print as <secret>, and change without a restart."""

from __future__ import annotations

import copy
import json
import os
import signal
import threading
from pathlib import Path

import pytest

from {{ cookiecutter.package_name }}.chassis.secrets import Secret, SecretNotSetError, Secrets, Values

from .conftest import Start
from .process import Process, wait_for


def revealed(process: Process) -> list[str]:
    values: list[str] = process.ask("/reveal").json()
    return values


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not UTF-8 (byte 0)"),
        (b"x" * (1024 * 1024 + 1), "is larger than 1048576 bytes"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(start: Start, secrets: Path, content: bytes, reason: str) -> None:
    (secrets / "probe_password").write_bytes(content)
    done = start.command("check")
    assert done.status == 78
    assert done.err == f"probe_password: the file {secrets}/probe_password {reason}\n"


def test_what_is_no_file_is_named_with_the_reason(start: Start, secrets: Path) -> None:
    (secrets / "probe_password").unlink()
    os.mkfifo(secrets / "probe_password")
    (secrets / "probe_key").symlink_to("probe_key")
    done = start.command("check")
    assert done.status == 78
    problems = done.err.splitlines()
    assert problems[0].endswith("is not a regular file")
    assert problems[1].endswith("can't be read: Too many levels of symbolic links")


def test_one_trailing_newline_is_not_part_of_it(start: Start, secrets: Path) -> None:
    (secrets / "probe_password").write_bytes(b" pass \n\n")
    (secrets / "probe_key").write_bytes(b"key\r\n")
    assert revealed(start().ready()) == [" pass \n", "key"]


@pytest.mark.parametrize("variable", ["APP_SECRETS_DIR", "CREDENTIALS_DIRECTORY"])
def test_the_directory_may_be_given_by_us_or_by_systemd(start: Start, secrets: Path, variable: str) -> None:
    env = {"APP_SECRETS_DIR": None, variable: str(secrets)}
    assert start.command("check", **env).status == 0


def test_a_secret_prints_as_secret_and_can_not_be_copied(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2")
    store = Secrets(tmp_path, required=["key"], optional=["other"])
    assert store.reload() == (True, {})
    secret = Secret("key", store)
    assert [str(secret), repr(secret), f"{secret}", repr([secret])] == ["<secret>"] * 3 + ["[<secret>]"]
    assert f"{store.values}" == "<secrets>"
    assert secret.reveal() == "hunter2"
    with pytest.raises(TypeError, match="can't be pickled or copied"):
        copy.copy(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(SecretNotSetError, match="other is not set"):
        Secret("other", store).reveal()


def kubernetes_volume(folder: Path, version: str, values: dict[str, str]) -> None:
    """Write *values* as the kubelet does: a new directory, and one atomic swap of the link to it."""
    (folder / version).mkdir()
    for name, value in values.items():
        (folder / version / name).write_text(value)
        if not (folder / name).is_symlink():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(Path("..data") / name)
    (folder / "..new").symlink_to(version)
    (folder / "..new").rename(folder / "..data")


def test_a_new_set_is_taken_over_while_requests_run(start: Start, secrets: Path) -> None:
    kubernetes_volume(secrets, "..1", {"probe_password": "old", "probe_key": "old"})
    process = start(APP_SECRETS_REFRESH="0.05").ready()
    seen: list[list[str]] = []
    enough = threading.Event()

    def client() -> None:
        connection = process.connect()
        while not enough.is_set():
            answer = process.ask("/reveal", on=connection)
            assert answer.status == 200
            seen.append(answer.json())

    thread = threading.Thread(target=client)
    thread.start()
    wait_for(lambda: seen)
    kubernetes_volume(secrets, "..2", {"probe_password": "new", "probe_key": "new"})
    try:
        wait_for(lambda: seen[-1] == ["new", "new"])
    finally:
        enough.set()
        thread.join()
    assert {tuple(values) for values in seen} == {("old", "old"), ("new", "new")}
    assert process.line("secrets reloaded")["secrets"] == ["admin_token", "probe_key", "probe_password"]


def test_a_bad_new_set_keeps_the_old_one_and_says_why(start: Start, secrets: Path) -> None:
    (secrets / "probe_key").write_text("old")
    process = start(APP_SECRETS_REFRESH="0").ready()
    (secrets / "probe_key").write_text("new")
    (secrets / "probe_password").write_text("")
    process.signal(signal.SIGHUP)
    problems = process.line("secrets not reloaded; the old ones stay in use")["problems"]
    assert problems == {"probe_password": f"the file {secrets}/probe_password is empty"}
    assert revealed(process) == ["hunter2", "old"]
    (secrets / "probe_password").write_text("changed")
    process.signal(signal.SIGHUP)
    process.line("secrets reloaded")
    assert revealed(process) == ["changed", "new"]
    process.signal(signal.SIGHUP)
    process.line("secrets are unchanged")


def test_a_bad_set_that_stays_is_reported_once(start: Start, secrets: Path) -> None:
    process = start(APP_SECRETS_REFRESH="0.02").ready()
    (secrets / "probe_password").write_text("")
    process.line("secrets not reloaded; the old ones stay in use")
    assert process.ask("/slow?s=0.2").status == 200
    (secrets / "probe_password").write_text("new")
    process.line("secrets reloaded")
    assert process.ask("/slow?s=0.2").status == 200
    assert len(process.lines("secrets not reloaded; the old ones stay in use")) == 1


def test_a_set_that_changes_while_it_is_read_is_never_mixed(tmp_path: Path) -> None:
    seen: list[str] = []

    class Busy(Secrets):
        def read(self) -> tuple[Values, dict[str, str]]:
            value = seen.pop(0)
            return (Values(a=value), {}) if value else (Values(), {"a": "gone"})

    store = Busy(tmp_path, required=["a"], optional=[])
    for reads, outcome in [
        ("12233", (True, {})),
        ("456789", (False, {"a": "the files keep changing while they are read"})),
        (["4", "", ""], (False, {"a": "gone"})),
    ]:
        seen[:] = reads
        assert store.reload() == outcome
        assert store.values == {"a": "2"}
