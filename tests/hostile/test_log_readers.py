"""Contract, section 4: whoever reads stdout, or doesn't: the service answers, and counts what is lost."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from kit.hostile import Behaved, memory
from kit.service import Service, free_ports, wait_for
from kit.world import World

pytestmark = pytest.mark.slow

# More than waits in the queue, in the pipe, and in the file that may not get larger.
REQUESTS = 8000


def start(world: World, prefix: tuple[str, ...]) -> Service:
    """Start a service whose output goes elsewhere, so that its ports have to be known before."""
    ports = dict(zip(("http", "admin"), free_ports(2), strict=True))
    return world.start(prefix=prefix, ports=ports).answering()


def lost(service: Service) -> int:
    return int(service.series()["log_lines_lost_total"])


def test_nobody_reads_and_then_somebody_does(world: World, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    keep_open = os.open(fifo, os.O_RDWR)
    try:
        service = start(world, ("sh", "-c", f'exec "$@" > {fifo}', "-"))
        behaved, before = Behaved(service), memory(service)
        for _ in range(REQUESTS):
            assert behaved.asks() < 20
        missing = lost(service)
        assert 0 < missing < REQUESTS
        assert memory(service) - before < 16 * 1024
        assert service.status("/-/healthy", "admin") == 200
        with (tmp_path / "read").open("wb") as out:
            reader = subprocess.Popen(("cat", fifo), stdout=out)
        try:

            def lines() -> list[dict[str, object]]:
                whole = (tmp_path / "read").read_text().rpartition("\n")[0]
                return [json.loads(line) for line in whole.splitlines()]

            [told] = wait_for(
                lambda: [line for line in lines() if line["event"] == "log lines lost"],
                "a line that counts the lost ones",
            )
            # The last lines of requests were on their way to the queue when it was asked.
            assert told["lost"] == (missed := lost(service)) >= missing
            behaved.asks()
            written = [line for line in lines() if line["event"] == "request"]
            assert len(written) >= REQUESTS - missed
            service.signal(signal.SIGTERM)
            assert service.wait() == 0
            wait_for(lambda: lines()[-1]["event"] == "stopped", "the last line")
        finally:
            reader.terminate()
            reader.wait()
    finally:
        os.close(keep_open)


def test_the_reader_dies(world: World) -> None:
    service = start(world, ("bash", "-c", 'exec "$@" > >(head -n 3 > /dev/null)', "-"))
    behaved = Behaved(service)
    # It takes in many lines at once, before it has seen the third.
    wait_for(lambda: behaved.asks() and lost(service) > 0, "lost lines")
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert service.err.read_text() == ""


def test_the_disk_is_full(world: World) -> None:
    service = start(world, ("sh", "-c", 'exec "$@" > /dev/full', "-"))
    behaved = Behaved(service)
    for _ in range(50):
        behaved.asks()
    wait_for(lambda: lost(service) >= 50, "the count of the lines of all requests")
    began = time.monotonic()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert time.monotonic() - began < 20
