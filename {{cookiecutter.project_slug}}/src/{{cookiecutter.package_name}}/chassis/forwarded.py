"""What the proxies in front say of a request: who sent it, how, and to which host.

It is believed as far as those who say it are trusted: from the connection's peer backwards, to the first
address that is no proxy of ours. Whatever stands before that, the client may have made up.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .middleware import Scope

HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
SCHEMES = ("http", "https")
# https://www.rfc-editor.org/rfc/rfc7239#section-4: elements by commas, pairs by semicolons, both also in quotes
TOKEN = re.compile(r'[,;]|(?:[^",;]|"[^"]*"?)+')


@functools.lru_cache(maxsize=1024)
def is_host(value: bytes) -> bool:
    """Whether *value* is fit for a Host header; an empty one is."""
    return not value or HOST.fullmatch(value.decode("latin-1")) is not None


class Hop(NamedTuple):
    """What one proxy says of whom it took a request from."""

    address: str
    proto: str = ""
    host: str = ""


class TrustedProxies:
    """The *networks* (addresses or networks, by commas) whose forwarded headers count."""

    def __init__(self, networks: str) -> None:
        self._networks = [ipaddress.ip_network(item) for item in networks.split(",") if item]
        self._trusts = functools.lru_cache(maxsize=4096)(self._compute)

    def apply(self, scope: Scope) -> None:
        """Put the client, the scheme and the host that the trusted proxies tell into *scope*."""
        peer = scope["client"]
        if peer is None or not self._trusts(peer[0]):
            return
        told: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            if name.startswith(b"x-forwarded-") or name == b"forwarded":
                earlier = told.get(name)
                text = value.decode("latin-1")
                told[name] = text if earlier is None else f"{earlier},{text}"
        if not told:
            return
        # Most proxies add to X-Forwarded-For and let a Forwarded of the client's pass: then it must not count.
        if b"x-forwarded-for" in told or b"forwarded" not in told:
            hops = [Hop(item) for item in told.get(b"x-forwarded-for", "").split(",") if item.strip()]
            # The last value is the nearest proxy's; what was before it may be the client's.
            proto, host = (
                told.get(name, "").rpartition(",")[2].strip() for name in (b"x-forwarded-proto", b"x-forwarded-host")
            )
        else:
            hops, proto, host = list(_parse(told[b"forwarded"])), "", ""
        for hop in reversed(hops):
            proto, host = hop.proto or proto, hop.host or host
            client = _address(hop.address)
            if client is None:
                break
            scope["client"] = client
            if not self._trusts(client[0]):
                break
        if proto.lower() in SCHEMES:
            scope["scheme"] = proto.lower()
        if HOST.fullmatch(host):
            others = [header for header in scope["headers"] if header[0] != b"host"]
            scope["headers"] = [(b"host", host.encode()), *others]

    def _compute(self, address: str) -> bool:
        parsed = ipaddress.ip_address(address)
        # A listener for both families sees IPv4 peers like this.
        known = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(known in network for network in self._networks)


def _parse(forwarded: str) -> Iterator[Hop]:
    """Read the elements of ``Forwarded``; one that nobody can read tells nothing."""
    pairs: dict[str, str] = {}
    for part in (*TOKEN.findall(forwarded), ","):
        if part == ",":
            yield Hop(pairs.get("for", ""), pairs.get("proto", ""), pairs.get("host", ""))
            pairs = {}
        elif part != ";":
            name, _, value = part.partition("=")
            pairs[name.strip().lower()] = value.strip().strip('"')


def _address(text: str) -> tuple[str, int] | None:
    """Return address and port (0 when it is not told) of a hop, or None when it is no IP address."""
    text = text.strip()
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    address = getattr(address, "ipv4_mapped", None) or address
    return str(address), int(port) if port.isdecimal() and len(port) <= 5 else 0
