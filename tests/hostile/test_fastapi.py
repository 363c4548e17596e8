"""Contract, section 9: FastAPI is given input that is nearly right."""

import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from kit.hostile import SCALE, send, sound, statuses
from kit.project import Project
from kit.service import Service, rest
from kit.world import World

pytestmark = pytest.mark.slow

ODD_ATOMS = ("NaN", "Infinity", "-Infinity", "1e999", "-", "1.", "01", "9" * 4400, "nul", "'x'", "\x00", "")
ODD_TEXTS = (r'"\ud800"', r'"\udfff\ud800"', r'"\u0000"', r'"\x41"', '"\udcff"', '"\n"', '"', '"é"')
atoms = st.sampled_from(("1", "null", "true", '"x"', "{}", *ODD_ATOMS, *ODD_TEXTS))
keys = st.sampled_from(('"name"', '"price"', '"more"', r'"\ud800"', "NaN", '"name": "x", "name"', ""))


def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.builds("{}: {}".format, keys, inner)
    lists = st.lists(inner, max_size=3).map(", ".join).map("[{}]".format)
    return lists | st.lists(members, max_size=3).map(", ".join).map("{{{}}}".format)


texts = st.recursive(atoms, nested, max_leaves=6) | st.sampled_from(
    ('{"name": "x", "price": 1}', "[" * 2_000)
)
encodings = st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig", "latin-1"))
bodies = st.builds(
    lambda text, encoding, at, junk: (
        (data := text.encode(encoding, "backslashreplace"))[:at] + junk + data[at:]
    ),
    texts,
    encodings,
    st.integers(0, 40),
    st.just(b"") | st.just(b"") | st.binary(max_size=3),
)
ROUTES = ("POST /shop/orders", "PUT /part", "POST /sub/a/shop/orders", "HEAD /things", "PATCH /things")
JSON = ("application/json", "application/problem+json", "application/json; charset=latin-1")
# The route of things sends back what it gets: of bytes that are no JSON, FastAPI can't make JSON.
targets = st.tuples(st.just("POST /things"), st.sampled_from(JSON)) | st.tuples(
    st.sampled_from(ROUTES), st.sampled_from((*JSON, *JSON, "text/plain", "multipart/form-data", "x", ""))
)
requests = st.tuples(
    targets,
    st.sampled_from(("1.1", "1.1", "1.0")),
    bodies,
    st.sampled_from(("length", "chunks", "less", "more")),
    st.booleans(),
)


@pytest.fixture
def service(fastapi: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The program that has routes of FastAPI's own, with little patience for bodies."""
    with World(fastapi, tmp_path_factory.mktemp("world")) as world:
        yield world.start("incidents", BODY_TIMEOUT="0.5").ready()


def on_the_wire(route: str, content_type: str, version: str, body: bytes, framing: str) -> bytes:
    """Return the bytes of a request whose body is framed as *framing* says, which may not be true."""
    announced = {"length": len(body), "less": len(body) // 2, "more": len(body) + 5}.get(framing)
    head = f"{route} HTTP/{version}\r\nHost: x\r\nContent-Type: {content_type}\r\nConnection: close\r\n"
    if announced is not None:
        return f"{head}Content-Length: {announced}\r\n\r\n".encode() + body
    return f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"


def test_input_that_is_nearly_right_is_never_an_error_of_the_service(service: Service) -> None:
    @settings(
        max_examples=150 * SCALE,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @example((("POST /things", "application/json"), "1.1", b"NaN", "length", False))
    @given(requests)
    def attack(request: tuple[tuple[str, str], str, bytes, str, bool]) -> None:
        target, version, body, framing, half_close = request
        with service.dial() as client:
            send(client, on_the_wire(*target, version, body, framing))
            if half_close:
                client.shutdown(socket.SHUT_WR)
            received = rest(client)
        # A body that does not come whole may be answered by the end of the connection alone.
        assert all(100 <= status < 500 for status in statuses(received)), received[:500]
        assert statuses(received) or framing == "more" or half_close, received

    attack()
    assert service.ask("/items/1").status == 200
    sound(service, frozenset({"websockets unavailable", "configuration warning"}))
