"""The back ends of confd, as servers of this machine."""

import base64
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kazoo.client import KazooClient  # type: ignore[import-untyped]

from kit.readers import run, running
from kit.service import free_port, free_ports
from kit.tools import tool

Store = Callable[[str, str], object]
Stored = Callable[[str], dict[str, str]]


@contextmanager
def etcd(folder: Path) -> Iterator[tuple[Store, Stored]]:
    program, control, (port, peer) = tool("etcd"), tool("etcdctl"), free_ports(2)
    url, peers = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    env = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": url}
    options: dict[str, str] = {
        "--data-dir": str(folder / "etcd"),
        "--listen-client-urls": url,
        "--advertise-client-urls": url,
        "--listen-peer-urls": peers,
        "--initial-advertise-peer-urls": peers,
        "--initial-cluster": f"default={peers}",
    }
    command: list[str | Path] = [program, *(word for option in options.items() for word in option)]

    def stored(prefix: str) -> dict[str, str]:
        answer = json.loads(run(control, "get", "--prefix", prefix, "-w", "json", env=env))
        pairs = [
            [base64.b64decode(pair[part]).decode() for part in ("key", "value")] for pair in answer["kvs"]
        ]
        return dict(pairs)

    def ready() -> None:
        subprocess.run([control, "endpoint", "health"], env=env, check=True, capture_output=True)

    with running(*command, log=folder / "etcd.log", ready=ready, env={}):
        yield lambda key, value: run(control, "put", key, input=value.encode(), env=env), stored


@contextmanager
def redis(folder: Path) -> Iterator[tuple[Store, Stored]]:
    program, port = tool("redis-server"), free_port()
    client = (tool("redis-cli"), "-h", "127.0.0.1", "-p", str(port))
    command = (program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder)

    def stored(prefix: str) -> dict[str, str]:
        keys = run(*client, "--scan", "--pattern", f"{prefix}/*", env={}).split()
        return {key: run(*client, "--raw", "get", key, env={}).removesuffix("\n") for key in keys}

    def ready() -> None:
        subprocess.run([*client, "ping"], check=True, capture_output=True)

    with running(*command, log=folder / "redis.log", ready=ready, env={}):
        yield lambda key, value: run(*client, "-x", "set", key, input=value.encode(), env={}), stored


@contextmanager
def zookeeper(folder: Path) -> Iterator[tuple[Store, Stored]]:
    jar, port = tool("zookeeper"), free_port()
    lines = {"dataDir": folder / "zookeeper", "clientPort": port, "clientPortAddress": "127.0.0.1"}
    lines |= {"admin.enableServer": "false", "tickTime": 2000}
    (folder / "zoo.cfg").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
    command: tuple[str | Path, ...] = (
        tool("java"),
        "-Xmx128m",
        "-cp",
        f"/etc/zookeeper/conf:{jar}",
        main,
        folder / "zoo.cfg",
    )

    def ready() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"srvr")
            if b"Mode: standalone" not in connection.recv(65536, socket.MSG_WAITALL):
                raise ConnectionError

    with running(*command, log=folder / "zookeeper.log", ready=ready, env={}):
        client = KazooClient(hosts=f"127.0.0.1:{port}", timeout=30)
        client.start(timeout=60)

        def store(key: str, value: str) -> None:
            client.ensure_path(key)
            client.set(key, value.encode())

        def stored(path: str) -> dict[str, str]:
            children = client.get_children(path)
            if not children:
                return {path: client.get(path)[0].decode()}
            found = [stored(f"{path}/{child}") for child in children]
            return {key: value for part in found for key, value in part.items()}

        try:
            yield store, stored
        finally:
            client.stop()
            client.close()


@contextmanager
def environment(folder: Path) -> Iterator[tuple[Store, Stored]]:
    """confd's back end of that name: variables called like the keys, with `_` for `/`, and back again."""
    env: dict[str, str] = {}

    def stored(prefix: str) -> dict[str, str]:
        printed = run("env", "-0", env=env).split("\0")
        pairs = (pair.partition("=") for pair in printed)
        keys = {"/" + name.lower().replace("_", "/"): value for name, _, value in pairs}
        return {key: value for key, value in keys.items() if key.startswith(prefix)}

    yield lambda key, value: env.update({key[1:].replace("/", "_").upper(): value}), stored
