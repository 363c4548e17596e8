"""Contract, section 3: secrets are files, print as <secret>, and change without a restart."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import signal
import threading
import urllib.parse
from pathlib import Path

import pytest
from apps.probe import Config
from kit.service import Service, wait_for
from my_service.chassis.config import load
from my_service.chassis.errors import ConfigurationError, SecretNotSetError
from my_service.chassis.secrets import MAX_FILE_BYTES, Secret, Secrets, Values, read_file, watch

from .incidents import launch
from .start import Start

FAILED = "secrets reload failed"


def revealed(process: Service) -> list[str]:
    values: list[str] = process.ask("/reveal").json()
    return values


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xef\xbb\xbf\r\n", "is empty"),
        (b"\xff\xfe", "is not UTF-8 (byte 0)"),
        ("pass".encode("utf-16"), "is not UTF-8 (byte 0)"),
        ("caf\xe9".encode("latin-1"), "is not UTF-8 (byte 3)"),
        (b"x" * (1024 * 1024 + 1), "is larger than 1048576 bytes"),
    ],
)
def test_a_bad_file_is_named_with_the_reason(
    start: Start, secrets: Path, content: bytes, reason: str
) -> None:
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


def test_a_directory_that_can_not_be_listed_is_no_crash(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = start.command("check", APP_SECRETS_DIR=str(tmp_path / "file"))
    assert done.status == 78
    assert (
        f"probe_password: the file {tmp_path}/file/probe_password can't be read: Not a directory" in done.err
    )
    done = start.command("config", APP_SECRETS_DIR=str(tmp_path / "file"))
    assert done.status == 0
    done = start.command("check", APP_SECRETS_DIR="/nowhere\udcff")
    assert "APP_SECRETS_DIR: '/nowhere\\udcff' is not accepted: it is not UTF-8" in done.err
    assert "Traceback" not in done.err


def test_one_trailing_newline_is_not_part_of_it(start: Start, secrets: Path) -> None:
    (secrets / "probe_password").write_bytes(b" pass \n\n")
    (secrets / "probe_key").write_bytes(b"key\r\n")
    assert revealed(start().ready()) == [" pass \n", "key"]


def test_a_byte_order_mark_is_not_part_of_it_and_any_script_is_welcome(start: Start, secrets: Path) -> None:
    (secrets / "probe_password").write_bytes(b"\xef\xbb\xbftok\r\n")
    (secrets / "probe_key").write_text("пароль-天気-é", encoding="utf-8")
    assert revealed(start().ready()) == ["tok", "пароль-天気-é"]


@pytest.mark.parametrize("variable", ["APP_SECRETS_DIR", "CREDENTIALS_DIRECTORY"])
def test_the_directory_may_be_given_by_us_or_by_systemd(start: Start, secrets: Path, variable: str) -> None:
    env = {"APP_SECRETS_DIR": None, variable: str(secrets)}
    assert start.command("check", **env).status == 0


@pytest.mark.parametrize("place", ["nowhere", "file", "file/below"])
def test_a_directory_that_is_none_is_warned_about(start: Start, secrets: Path, place: str) -> None:
    (secrets / "file").touch()
    meant = f"warning: APP_SECRETS_DIR: {secrets / place} is no directory: no secret is set\n"
    assert meant in start.command("check", APP_SECRETS_DIR=str(secrets / place)).err


@pytest.mark.parametrize(
    "name",
    [
        "probe-key",
        "PROBE_KEY",
        "probe_key.txt",
        "probe.key",
        "probeKey",
        "APP_PROBE_KEY",
        "probe_kye",
        "Probe-Key.pem",
    ],
)
def test_a_file_whose_name_is_nearly_right_is_warned_about(start: Start, secrets: Path, name: str) -> None:
    (secrets / name).write_text("t0psecret")
    done = start.command("check")
    assert done.status == 0
    meant = f"did you mean {secrets}/probe_key?"
    assert done.err == f"warning: {name}: is no secret of this service; {meant}\n"
    # When the right one is there, the other is somebody's own business.
    (secrets / "probe_key").write_text("right")
    assert start.command("check").err == ""


def test_a_file_that_is_another_services_is_not_warned_about(start: Start, secrets: Path) -> None:
    for name in ("..data", ".gitkeep", "db_password", "tls.key", "probe", "key", "probe_certificate"):
        (secrets / name).write_text("x")
    assert start.command("check").err == ""


def test_a_missing_secret_with_a_misnamed_file_is_told_with_both(start: Start, secrets: Path) -> None:
    (secrets / "probe_password").rename(secrets / "PROBE-PASSWORD")
    (secrets / "mail-password").write_text("x")
    process = start()
    assert process.wait() == 78
    assert [line["setting"] for line in process.lines("configuration problem")] == ["probe_password"]
    warned = {line["setting"] for line in process.lines("configuration warning")}
    assert warned == {"PROBE-PASSWORD", "mail-password"}


def test_a_secret_prints_as_secret_and_can_not_be_copied(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2")
    store = Secrets(tmp_path, required=["key"], optional=["other"])
    store.reload()
    assert list(store.changed) == ["key"]
    assert not store.problems
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


@pytest.mark.parametrize(
    "value", ["hunter2", "pa ss/wörd'\"\\", "a+b=c&d%", "line one\nline two", " padded "]
)
def test_redacted_text_holds_no_secret_in_whatever_form(tmp_path: Path, value: str) -> None:
    (tmp_path / "key").write_text(value)
    store = Secrets(tmp_path, required=["key"], optional=[])
    store.reload()
    (tmp_path / "key").write_text("the next one")
    store.reload()
    forms = [value.strip(), repr(value), repr(value.encode()), json.dumps(value), "the next one"]
    quote, quote_plus = urllib.parse.quote, urllib.parse.quote_plus
    forms += [f"amqp://app:{form}@broker" for form in (quote(value.strip()), quote(value.strip(), ""))]
    forms += [quote_plus(value.strip())]
    for form in forms:
        redacted = store.redact(f"no answer: {form}!")
        assert "<secret>" in redacted, form
        assert not set(value.strip().split()) & set(redacted.replace("<secret>", " ").split()), redacted


def test_a_secret_that_is_a_part_of_another_leaves_nothing_of_it(tmp_path: Path) -> None:
    values = {"a": "hunter", "b": "hunter22", "c": "a hunter"}
    for name, value in values.items():
        (tmp_path / name).write_text(value)
    store = Secrets(tmp_path, required=values, optional=[])
    store.reload()
    assert store.redact("a hunter, hunter22, hunter") == "<secret>, <secret>, <secret>"


def test_a_secret_says_whether_it_is_set_and_whether_a_refused_one_is_another_by_now(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("old")
    store = Secrets(tmp_path, required=["key"], optional=["other"])
    store.reload()
    key, other = Secret("key", store), Secret("other", store)
    assert (key.is_set, other.is_set) == (True, False)
    assert asyncio.run(key.refused()) is False
    (tmp_path / "key").write_text("new")
    assert asyncio.run(key.refused()) is True
    assert key.reveal() == "new"


def test_a_link_that_leads_nowhere_is_a_problem_of_an_optional_secret_too(tmp_path: Path) -> None:
    store = Secrets(tmp_path, required=[], optional=["key", "other"])
    assert store.read() == ({}, {})
    (tmp_path / "key").symlink_to(tmp_path / "gone")
    assert store.read() == ({}, {"key": f"the file {tmp_path / 'key'} does not exist; put the secret there"})


def test_the_largest_file_that_is_a_secret_has_a_size(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"x" * MAX_FILE_BYTES)
    assert len(read_file(tmp_path / "key")) == MAX_FILE_BYTES == 1024 * 1024


def test_a_value_of_three_characters_is_left_in_words(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("the")
    store = Secrets(tmp_path, required=["key"], optional=[])
    store.reload()
    assert store.redact("the other") == "the other"


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
    assert process.line("secrets reloaded")["secrets"] == ["probe_key", "probe_password"]


def test_a_reload_names_what_changed_and_what_has_gone(start: Start, secrets: Path) -> None:
    (secrets / "probe_key").write_text("old")
    process = start(APP_SECRETS_REFRESH="0").ready()
    (secrets / "probe_key").unlink()
    process.signal(signal.SIGHUP)
    assert process.line("secrets reloaded")["secrets"] == ["probe_key"]
    (secrets / "admin_token").write_text("new")
    process.signal(signal.SIGHUP)
    wait_for(lambda: len(process.lines("secrets reloaded")) == 2)
    assert process.lines("secrets reloaded")[1]["secrets"] == ["admin_token"]


def test_a_bad_new_set_keeps_the_old_one_and_says_why(start: Start, secrets: Path) -> None:
    (secrets / "probe_key").write_text("old")
    process = start(APP_SECRETS_REFRESH="0").ready()
    (secrets / "probe_key").write_text("new")
    (secrets / "probe_password").write_text("")
    process.signal(signal.SIGHUP)
    line = process.line(FAILED)
    assert line["problems"] == {"probe_password": f"the file {secrets}/probe_password is empty"}
    assert line["hint"] == "the old ones stay in use"
    assert revealed(process) == ["hunter2", "old"]
    # Whoever asks again is told again, though it is no news.
    process.signal(signal.SIGHUP)
    wait_for(lambda: len(process.lines(FAILED)) == 2)
    (secrets / "probe_password").write_text("changed")
    process.signal(signal.SIGHUP)
    process.line("secrets reloaded")
    assert revealed(process) == ["changed", "new"]
    process.signal(signal.SIGHUP)
    process.line("secrets unchanged")


def test_a_bad_set_that_stays_is_reported_once(start: Start, secrets: Path) -> None:
    process = start(APP_SECRETS_REFRESH="0.02").ready()
    (secrets / "probe_password").write_text("")
    process.line(FAILED)
    assert process.ask("/slow?s=0.2").status == 200
    (secrets / "probe_password").write_text("new")
    process.line("secrets reloaded")
    assert process.ask("/slow?s=0.2").status == 200
    assert len(process.lines(FAILED)) == 1


def test_a_set_that_changes_while_it_is_read_is_never_mixed(tmp_path: Path) -> None:
    seen: list[str] = []

    class Busy(Secrets):
        def read(self) -> tuple[Values, dict[str, str]]:
            value = seen.pop(0)
            return (Values(a=value), {}) if value else (Values(), {"a": "gone"})

    store = Busy(tmp_path, required=["a"], optional=[])
    for reads, problems in [
        ("12233", {}),
        ("456789", {"a": "the files keep changing while they are read"}),
        (["4", "", ""], {"a": "gone"}),
        ("32", {}),
    ]:
        seen[:] = reads
        store.reload()
        assert (store.problems, store.values) == (problems, {"a": "2"})


def test_a_watch_reloads_by_itself_only_if_it_is_asked_to(tmp_path: Path) -> None:
    store = Secrets(tmp_path, required=[], optional=["key"])

    async def looks(every: float) -> bool:
        task = asyncio.create_task(watch(store, every, asyncio.Event(), []))
        (tmp_path / "key").write_text(f"every {every}")
        await asyncio.sleep(0.2)
        task.cancel()
        return store.values == {"key": f"every {every}"}

    assert not asyncio.run(looks(0))
    assert asyncio.run(looks(0.01))


def test_a_secrets_value_is_in_no_problem_of_another_setting(secrets: Path) -> None:
    env = {"APP_SECRETS_DIR": str(secrets), "APP_PROBE_NAME": "x", "APP_HTTP_PORT": "hunter2"}
    with pytest.raises(ConfigurationError) as raised:
        load(Config, env)
    assert "hunter2" not in str(raised.value)
    assert "APP_HTTP_PORT: '<secret>' is not accepted" in str(raised.value)


def test_a_service_whose_own_threads_all_hang_takes_over_a_new_secret(start: Start, secrets: Path) -> None:
    (secrets / "admin_token").write_text("before")
    process = launch(start, APP_SECRETS_REFRESH="0.2").ready()
    # asyncio's own pool has 32 threads at most.
    assert {process.status("/executor") for _ in range(40)} == {200}
    (secrets / "admin_token").write_text("after")
    assert process.line("secrets reloaded")["secrets"] == ["admin_token"]
    process.kill()


def test_where_no_thread_can_start_a_reload_fails_and_the_next_one_does_not(
    start: Start, secrets: Path
) -> None:
    (secrets / "admin_token").write_text("before")
    process = launch(start, APP_SECRETS_REFRESH="0.2").ready()
    process.ask("/no_threads")
    assert "can't start new thread" in process.line(FAILED)["error"]
    (secrets / "admin_token").write_text("after")
    process.ask("/no_threads?again")
    assert process.line("secrets reloaded")["secrets"] == ["admin_token"]
    assert process.stop() == 0
