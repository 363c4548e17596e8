"""Contract, section 6: the admin port under any request."""

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.hostile import SCALE, send, statuses
from kit.service import Service, rest, wait_for
from kit.tools import missing
from kit.world import CANARIES, World

pytestmark = pytest.mark.slow

TOKEN = f"Bearer {CANARIES['admin_token']}"
GUARDED = {"/-/requests", "/-/stacks", "/-/stalls"}
CHANGE = b'{"level": "error", "logger": "hostile"}'


def own_address() -> str:
    """Return an address of this machine that is not loopback; nothing is sent for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(("192.0.2.1", 9))
        address: str = sock.getsockname()[0]
        if not address.startswith("127."):
            return address
    missing("this machine has no address besides loopback")


@pytest.fixture(scope="module")
def target(world: World) -> Iterator[Service]:
    service = world.start(APP_ADMIN_HOST="0.0.0.0").ready()
    yield service
    assert service.is_running
    assert service.err.read_text() == ""
    assert not service.lines("admin request failed")


def ask(
    service: Service, method: str, path: str, headers: Mapping[str, str], body: bytes, where: str
) -> tuple[int, bytes]:
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection((where, service.port("admin")), timeout=20) as client:
        send(client, "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode("latin-1") + body)
        received = rest(client)
    return statuses(received)[0], received


def level(service: Service) -> str:
    loggers: dict[str, str] = json.loads(service.look("/-/log-level"))["loggers"]
    return loggers.get("hostile", "info")


some_headers = st.fixed_dictionaries(
    {},
    optional={
        "Host": st.sampled_from(
            [
                "localhost:1",
                "127.0.0.1",
                "[::1]:80",
                "evil.test",
                "localhost.evil.test",
                "127.0.0.1.evil.test",
                "",
                "@",
            ]
        ),
        "Origin": st.sampled_from(
            ["null", "http://evil.test", "http://localhost:1", "https://localhost:1", "http://127.0.0.1", "x"]
        ),
        "Authorization": st.sampled_from(
            [
                TOKEN,
                TOKEN[:-1],
                TOKEN + "x",
                TOKEN.lower(),
                "Bearer ",
                "Bearer",
                "Basic " + TOKEN[7:],
                "\xff",
                "",
            ]
        ),
        "Content-Type": st.sampled_from(
            ["application/json", "application/json; charset=utf-8", "text/plain", "application/jsonx", ""]
        ),
    },
)
methods = st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "POST", "OPTIONS", "PATCH", "put"])
paths = st.sampled_from(
    ["/-/log-level", "/-/log-level", *GUARDED, "/", "/-/config", "/metrics", "//-/log-level", "/-/log-level/"]
)  # fmt: skip


@pytest.mark.parametrize("inside", [True, False])
def test_no_request_gets_more_than_it_may(target: Service, inside: bool) -> None:
    where = "127.0.0.1" if inside else own_address()
    reached = set()

    @settings(max_examples=150 * SCALE, deadline=None, database=None)
    @given(methods, paths, some_headers, st.sampled_from([CHANGE, CHANGE, b"", b"{}", b"\xff" * 50]))
    def fuzz(method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        status, received = ask(target, method, path, headers, body, where)
        assert status < 500, received
        authorised = headers.get("Authorization") == TOKEN or (inside and "Authorization" not in headers)
        host = headers.get("Host")
        ours = not inside or host in {None, "localhost:1", "127.0.0.1", "[::1]:80"}
        if path in GUARDED and method in {"GET", "HEAD"}:
            assert (status == 200) == (authorised and ours), received
        changed = status == 200 and method in {"PUT", "DELETE"}
        if changed:
            # http.server takes several slashes at the beginning of a path for one.
            assert path.replace("//", "/") == "/-/log-level"
            assert authorised
            assert ours
            assert headers["Content-Type"].startswith("application/json")
            assert headers.get("Origin", f"http://{host or ''}").partition("://")[2] == (host or "")
        reached.add((changed, status))
        assert (level(target) == "error") == (changed and method == "PUT")
        if level(target) == "error":
            assert (
                ask(target, "DELETE", "/-/log-level", {"Content-Type": "application/json"}, b"", "127.0.0.1")[
                    0
                ]
                == 200
            )

    fuzz()
    assert any(changed for changed, _ in reached) or SCALE == 1
    assert {status for _, status in reached} >= {200, 403, 404, 405}


@pytest.mark.parametrize("length", range(0, 12, 3))
def test_a_token_is_compared_whole(target: Service, length: int) -> None:
    shown = TOKEN[: len("Bearer ") + length]
    for given_token in (shown, shown + "\0", TOKEN + TOKEN[:length] + "x"):
        status, _ = ask(target, "GET", "/-/stacks", {"Authorization": given_token}, b"", "127.0.0.1")
        assert status == 403


def test_any_bytes_leave_it_answering(target: Service) -> None:
    @settings(max_examples=100 * SCALE, deadline=None, database=None)
    @given(
        st.binary(max_size=200),
        st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"PUT /-/log-level HTTP/1.1\r\n"]),
    )
    def fuzz(data: bytes, start: bytes) -> None:
        with target.dial("admin") as client:
            send(client, start + data + b"\r\n\r\n")
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
            assert all(status < 500 for status in statuses(rest(client)))

    fuzz()
    wait_for(lambda: target.status("/-/healthy", "admin") == 200, "an answer")


def test_nobody_keeps_a_probe_out(target: Service) -> None:
    crowd = [target.dial("admin") for _ in range(200)]
    try:
        for client in crowd[::2]:
            send(client, b"GET / HTTP/1.1\r\nX: ")
        for _ in range(20):
            assert target.status("/-/healthy", "admin") == 200
    finally:
        for client in crowd:
            client.close()
