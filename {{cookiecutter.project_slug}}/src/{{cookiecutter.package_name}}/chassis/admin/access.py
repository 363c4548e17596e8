"""Who may ask for what on the admin port: the Host, the token and the Origin of a request."""

import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from ..http.requests import parse_address
from ..secrets import Secret


def has_token(headers: Mapping[str, str], token: Secret) -> bool:
    """Return whether a request carries the admin token."""
    # http.server decodes header fields as Latin-1.
    sent = headers.get("authorization", "").encode("latin-1", "replace")
    return token.is_set and hmac.compare_digest(sent, f"Bearer {token.reveal()}".encode())


def check_host(headers: Mapping[str, str], client: str, own_host: str) -> None:
    """Refuse a browser on this machine that came by a foreign name, which resolves to loopback (DNS rebinding)."""
    host = urlsplit(f"//{headers.get('host', 'localhost')}").hostname or ""
    if _is_loopback(client) and host not in {"localhost", own_host} and parse_address(host) is None:
        raise HTTPException(403, "This Host is not one of this port: use its address, or localhost.")


def check_access(headers: Mapping[str, str], client: str, token: Secret, is_change: bool, is_guarded: bool) -> None:
    """Raise an HTTPException if this *client* may not send a request with these *headers*."""
    # A client on this machine needs no token, but a wrong one is refused there too.
    may_lack_token = _is_loopback(client) and "authorization" not in headers
    if (is_change or is_guarded) and not may_lack_token and not has_token(headers, token):
        needs = "the header Authorization: Bearer with the secret admin_token"
        raise HTTPException(403, f"This needs {needs}{'' if token.is_set else ', which is not set'}.")
    # A foreign page can have somebody's browser send a change, but not without an Origin or with this Content-Type.
    if is_change and "origin" in headers and urlsplit(headers["origin"]).netloc != headers.get("host"):
        raise HTTPException(403, "Not from a page of another origin.")
    if is_change and headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(415, "Send Content-Type: application/json.")


def _is_loopback(client: str) -> bool:
    address = parse_address(client)
    return address is not None and address.is_loopback
