"""Contract, section 9: whatever bytes clients send, nobody else notices."""

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.hostile import SCALE, Behaved, calm, descriptors, memory, send, some, sound, statuses
from kit.service import Service, rest, wait_for
from kit.world import World

pytestmark = pytest.mark.slow

LIMITS = {"HEADER_TIMEOUT": 1.0, "SLOW_LIMIT": 1.0, "LINGER": 0.5, "ROUND": 0.1, "KEEP_ALIVE": 4}
GOOD = b"GET /trouble/x HTTP/1.1\r\nHost: good.test\r\n"
POST = b"POST /length HTTP/1.1\r\nHost: x\r\n"
SMUGGLED = b"GET /trouble/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def target(world: World) -> Iterator[Service]:
    """One service with little patience; all that this file does to it must leave it sound."""
    service = world.start(APP_HTTP_KEEP_ALIVE="4").ready()
    yield service
    sound(service)


@pytest.fixture
def behaved(target: Service) -> Iterator[Behaved]:
    client = Behaved(target)
    client.asks()
    yield client
    client.asks()
    client.close()


# Each would be read as one request by the one side of a proxy, and as two by the other.
AMBIGUOUS = {
    "content length and chunks": POST + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
    "chunks and content length": POST + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 45\r\n\r\n" + SMUGGLED,
    "a list of lengths": POST + b"Content-Length: 0, 45\r\n\r\n" + SMUGGLED,
    "a signed length": POST + b"Content-Length: +0\r\n\r\n" + SMUGGLED,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "a length in hexadecimal": POST + b"Content-Length: 0x0\r\n\r\n" + SMUGGLED,
    "a length too large for anything": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n" + SMUGGLED,
    "a coding nobody knows": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunked and something": POST + b"Transfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\nContent-Length: 45\r\n\r\n" + SMUGGLED,
    "a folded header": POST + b"X: a\r\n Content-Length: 45\r\n\r\n" + SMUGGLED,
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a space as first header": b"POST /length HTTP/1.1\r\n Host: x\r\n\r\n" + SMUGGLED,
    "a lone line feed": b"POST /length HTTP/1.1\nHost: x\nContent-Length: 0\n\n" + SMUGGLED,
    "a lone carriage return": POST + b"X: a\rContent-Length: 45\r\n\r\n" + SMUGGLED,
    "a NUL in a header": POST + b"X: a\0b\r\n\r\n" + SMUGGLED,
    "a NUL in a name": POST + b"Content-Length\0: 45\r\n\r\n" + SMUGGLED,
    "a chunk size that is none": POST + CHUNKED + b"\r\nzz\r\n" + SMUGGLED,
    "a negative chunk size": POST + CHUNKED + b"\r\n-1\r\n" + SMUGGLED,
    "a chunk size with a prefix": POST + CHUNKED + b"\r\n0x0\r\n\r\n" + SMUGGLED,
    "a chunk size that overflows": POST + CHUNKED + b"\r\n10000000000000000\r\n" + SMUGGLED,
    "an empty chunk size": POST + CHUNKED + b"\r\n\r\n" + SMUGGLED,
    "a chunk longer than it says": POST + CHUNKED + b"\r\n1\r\nabc\r\n0\r\n\r\n" + SMUGGLED,
    "a line feed after a chunk": POST + CHUNKED + b"\r\n1\r\na\n0\r\n\r\n" + SMUGGLED,
    "a line feed in an extension": POST + CHUNKED + b"\r\n1;x\na\r\n0\r\n\r\n" + SMUGGLED,
    "chunks in HTTP/1.0": b"POST /length HTTP/1.0\r\n" + CHUNKED + b"\r\nzz\r\n\r\n" + SMUGGLED,
    "HTTP/0.9": b"GET /trouble/smuggled\r\n\r\n",
    "HTTP/1.2": b"GET /trouble/smuggled HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "no host": b"GET /trouble/smuggled HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /trouble/smuggled HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a host that is none": b"GET /trouble/smuggled HTTP/1.1\r\nHost: a/b@c\r\n\r\n",
    "CONNECT": b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n" + SMUGGLED,
    "a space in the path": b"GET /trouble/x y HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes that are no ASCII": "GET /trouble/ä HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_two_could_read_in_two_ways_is_refused(target: Service, behaved: Behaved, name: str) -> None:
    before = len(target.lines("request"))
    with target.dial() as client:
        send(client, AMBIGUOUS[name])
        received = rest(client)
    assert [status // 100 for status in statuses(received)] in ([], [4]), received
    behaved.asks()
    wait_for(lambda: target.lines("request")[-1]["path"] == "/trouble/x", "the line of the good request")
    assert "/trouble/smuggled" not in {
        line["path"] for line in target.lines("request")[before:] if line["status"] < 400
    }


tokens = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"PATCH", b"get", b"CONNECT", b"M-SEARCH"])
paths = st.sampled_from(
    [
        b"/trouble/x",
        b"/length",
        b"/-/ready",
        b"/../..",
        b"*",
        b"http://a.test/b",
        b"//",
        b"/%00%ff%0d%0a",
        b"?",
    ]
)
junk = st.binary(max_size=40)
versions = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.1", b"HTTP/9.9", b"http/1.1", b""])
names = st.sampled_from(
    [
        *(b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade", b"Expect", b"Trailer"),
        *(b"X-Request-ID", b"traceparent", b"Forwarded", b"X-Forwarded-For", b"X-Forwarded-Host"),
        *(b"X-Forwarded-Proto", b"Cookie", b"Content-Type", b"Origin"),
    ]
)
values = st.sampled_from(
    [
        *(b"x", b"3", b"0", b"-1", b"chunked", b"close", b"upgrade", b"websocket", b"100-continue"),
        b"a" * 200,
        b'r1","event":"forged', b"a\r\nb: c", b"a\nb", b"\xf0\x9f\x92\xa9", b"\xff\xfe", b"\x1b[31m", b"%0a",
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b"for=1.2.3.4;host=x", b"1.2.3.4, \0",
    ]
)  # fmt: skip
headers = st.lists(
    st.tuples(names | junk, st.sampled_from([b": ", b":", b" : ", b""]), values | junk)
    .map(b"".join)
    .map(lambda line: line + b"\r\n"),
    max_size=5,
).map(b"".join)
bodies = st.sampled_from([b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"zz\r\n", b"0\r\nX: y\r\n\r\n"]) | junk
hosts = st.sampled_from([b"Host: x\r\n", b"Host: x\r\n", b""])
requests = st.builds(
    lambda token, path, version, host, fields, body: (
        token + b" " + path + b" " + version + b"\r\n" + host + fields + b"\r\n" + body
    ),
    tokens | junk,
    paths | junk,
    versions,
    hosts,
    headers,
    bodies,
)
attacks = st.one_of(requests, st.lists(requests, max_size=4).map(b"".join), st.binary(max_size=300))


def test_no_bytes_shake_it(target: Service) -> None:
    behaved = Behaved(target)
    left: list[socket.socket] = []
    before = descriptors(target)

    @settings(
        max_examples=250 * SCALE, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(attacks, st.integers(0, 400))
    def attack(data: bytes, cut: int) -> None:
        client = target.dial()
        left.append(client)
        send(client, data[:cut])
        send(client, data[cut:])
        received = some(client)
        assert all(100 <= status < 500 for status in statuses(received)), received
        behaved.asks()

    try:
        attack()
        # None of them may be left open for good, whatever it waits for.
        for client in left[-1000:]:
            client.settimeout(60)
            rest(client)
    finally:
        for client in left:
            client.close()
    behaved.asks()
    behaved.close()
    calm(target, before)
    sound(target)


def test_no_line_is_forged(target: Service) -> None:
    """The number of lines is the number of requests, whatever is in them."""
    odd = [
        "\x00",
        "\x1b[2J",
        "\u2028",
        "\x85",
        "\udc80",
        '"}\n{"event": "forged"}',
        "\r\n\r\n",
        "%0a",
        "\\u000a",
        "é",
    ]
    before = len(target.lines())
    sent = 0
    for text in odd:
        raw = text.encode("utf-8", "surrogateescape")
        quoted = "".join(f"%{byte:02x}" for byte in raw).encode()
        for field in (b"X-Request-ID", b"traceparent", b"User-Agent", b"X-Forwarded-For", b"Forwarded"):
            value = raw.replace(b"\0", b"").replace(b"\r", b"").replace(b"\n", b"").replace(b"\x1b", b"")
            request = b"GET /trouble/odd%b HTTP/1.1\r\nHost: x\r\n%b: %b\r\nConnection: close\r\n\r\n"
            with target.dial() as client:
                send(client, request % (quoted, field, value))
                received = rest(client)
            assert statuses(received)[0] < 500
            sent += 1

    def own() -> list[str]:
        # Requests of the tests before may still come to their end.
        return [line["path"] for line in target.lines()[before:] if "/odd" in line.get("path", "")]

    wait_for(lambda: len(own()) >= sent, "a line a request")
    assert len(own()) == sent
    assert all(path.startswith("/trouble/odd") for path in own())
    assert {line["event"] for line in target.lines()[before:]} == {"request"}
    sound(target)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"GET /" + b"x" * 8000),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X: " + b"y" * 8000 + b"\r\n"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"a:b\r\n" * 1600),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"z" * 8000),
        (POST + CHUNKED + b"\r\n1;", b"e" * 8000),
        (POST + CHUNKED + b"\r\n0\r\n", b"T: " + b"t" * 8000 + b"\r\n"),
        (POST + CHUNKED + b"\r\n", b"1f40\r\n" + b"c" * 8000 + b"\r\n"),
        (POST + b"Content-Length: 99999999999\r\n\r\n", b"c" * 8000),
        (b"", b"\r\n" * 4000),
    ],
)
def test_what_does_not_end_is_ended(target: Service, behaved: Behaved, start: bytes, piece: bytes) -> None:
    before = memory(target)
    with target.dial() as client:
        limit = time.monotonic() + 20
        with contextlib.suppress(OSError):
            client.sendall(start)
            while client.send(piece):
                assert time.monotonic() < limit, "it takes in whatever comes"
        received = b""
        with contextlib.suppress(OSError):
            received = rest(client)
    assert all(status in {400, 408, 413, 431} for status in statuses(received)), received
    assert memory(target) - before < 32 * 1024


def test_a_request_half_sent_at_any_byte_is_ended(target: Service, behaved: Behaved) -> None:
    whole = POST + b"Content-Length: 10\r\n\r\n0123456789"
    before = descriptors(target)
    clients = [target.dial() for _ in range(len(whole))]
    for cut, client in enumerate(clients):
        send(client, whole[:cut])
    for client in clients:
        assert statuses(rest(client)) in ([], [408])
        client.close()
    calm(target, before)


def test_clients_that_leave_early_leave_nothing(target: Service, behaved: Behaved) -> None:
    before = descriptors(target)
    chance = random.Random(7)
    for number in range(150):
        client = target.dial()
        send(client, [GOOD, b"GET /slow?s=1 HTTP/1.1\r\nHost: x\r\n", POST + CHUNKED][number % 3] + b"\r\n")
        if chance.random() < 0.5:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    behaved.asks()
    calm(target, before)


def test_connections_that_have_ended_are_gone(world: World) -> None:
    service = world.start().ready()
    alive = int(service.ask("/connections").text)
    for number in range(150):
        with service.dial() as client:
            send(client, b"GET /trouble/x HTTP/1.1\r\nHost: x\r\n\r\n" if number % 3 else b"nonsense\r\n\r\n")
            if number % 2:
                # A reset instead of an end, before the answer or behind it.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if number % 5:
                some(client, 0.01)
    calm(service, descriptors(service))
    wait_for(
        lambda: int(service.ask("/connections").text) < 5 * alive, "ended connections being gone", every=0.1
    )


def test_a_body_waits_with_its_client_until_it_is_read(world: World) -> None:
    size = 64 << 20
    service = world.start(APP_HTTP_MAX_BODY=str(size)).ready()
    head = "{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n"
    before = memory(service)
    with service.dial() as client:
        send(client, head.format("GET /slow?s=3", size).encode())
        wait_for(lambda: service.lines("slow begins"), "the handler that does not read")
        client.settimeout(1)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(size))
        # The rest is in the kernel's buffers.
        assert memory(service) - before < 8 * 1024
        client.settimeout(60)
        assert statuses(rest(client)) == [200]
    with service.dial() as client:
        send(client, head.format("POST /length", size).encode() + bytes(size))
        assert rest(client).endswith(str(size).encode())
    assert memory(service) - before < 8 * 1024


def test_one_that_reads_slowly_but_steadily_gets_all(target: Service) -> None:
    """The kernel asks for more in large steps; in between the client is not at fault."""
    with target.dial() as client:
        client.sendall(b"GET /stream?n=20000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        size = 0
        pace = threading.Event()
        while data := client.recv(65536 if size > 6_000_000 else 16384):
            size += len(data)
            if size < 6_000_000:
                pace.wait(0.01)
    assert size > 20_000_000


def test_more_connections_than_the_limit_are_told(world: World) -> None:
    service = world.start(APP_HTTP_MAX_CONNECTIONS="40").ready()
    behaved = Behaved(service)
    behaved.asks()
    before = descriptors(service)
    crowd = [service.dial() for _ in range(300)]
    for client in crowd:
        send(client, GOOD + b"\r\n")
    behaved.asks()
    answered = [statuses(some(client, 0.5)) for client in crowd]
    assert answered.count([503]) == 300 - 39
    assert answered.count([200]) == 39
    for client in crowd:
        client.close()
    calm(service, before)
    Behaved(service).asks()
    refused = service.series()['http_server_refusals_total{reason="connections"}']
    assert refused == 300 - 39
    wait_for(
        lambda: sum(line["count"] for line in service.lines("connections refused")) == refused,
        "lines that count all that were refused",
    )


def test_connections_above_the_limit_that_say_nothing_are_not_kept(world: World) -> None:
    service = world.start(APP_HTTP_MAX_CONNECTIONS="40").ready()
    behaved = Behaved(service)
    behaved.asks()
    before = descriptors(service)
    crowd = [service.dial() for _ in range(300)]
    behaved.asks()
    wait_for(lambda: descriptors(service) <= before + 40 + 3, "the descriptors of the limit")
    for client in crowd:
        client.close()
    calm(service, before)


@pytest.mark.parametrize("files", [256, 1024])
def test_used_up_descriptors_cost_newcomers_only(world: World, files: int) -> None:
    service = world.start(prefix=("prlimit", f"--nofile={files}", "--")).ready()
    behaved = Behaved(service)
    before = descriptors(service)
    crowd = [service.dial() for _ in range(files)]
    behaved.asks()
    assert service.status("/-/ready", "admin") == 200
    for client in crowd:
        client.close()
    calm(service, before)
    # Now the service itself takes all there are.
    assert "Too many open files" in service.ask("/leak").text
    crowd = [service.dial() for _ in range(20)]
    behaved.asks()
    leaking = behaved.asks()
    assert leaking < 20
    # Clients that the admin port can't accept cost next to no CPU; asking for them without a pause costs a
    # third of a core. They are many, since a descriptor becomes free now and then.
    probes = [service.dial("admin") for _ in range(20)]
    began = service.cpu_seconds()
    time.sleep(4)
    assert service.cpu_seconds() - began < 0.4
    for probe in probes:
        probe.close()
    with service.dial() as hopeful:
        hopeful.sendall(b"GET /leak?back=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        freed = some(hopeful, 0.5)
    if not freed:
        # Nobody new gets in, so who is in asks.
        behaved._client.sendall(b"GET /leak?back=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"given back" in behaved._client.recv(65536)
    for client in crowd:
        client.close()
    wait_for(lambda: descriptors(service) <= before + 3, "the descriptors of before")
    Behaved(service).asks()
    assert service.is_running
