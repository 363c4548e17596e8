"""Asks an instance for its readiness, from inside its container; it imports nothing that costs time."""

import socket
import sys
from collections.abc import Mapping

TIMEOUT_S = 5


def healthcheck(env: Mapping[str, str]) -> int:
    """Ask ``/-/ready`` on the admin port; return 0 if the instance is ready, otherwise 1 and say why on stderr."""
    host = env.get("APP_ADMIN_HOST", "127.0.0.1")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    port = env.get("APP_ADMIN_PORT", "8001")
    try:
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
            connection.sendall(b"GET /-/ready HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as answer:
                status = answer.readline().split(b" ")[1]
                body = answer.read().partition(b"\r\n\r\n")[2].decode()
    except (OSError, ValueError, IndexError) as error:
        print(f"no answer from {host}:{port}: {error}", file=sys.stderr)
        return 1
    if status == b"200":
        return 0
    print(body, end="", file=sys.stderr)
    return 1
