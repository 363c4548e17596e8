"""What `make dev` runs: a command, and again when a Python file in src/ is saved."""

import signal
import subprocess
import sys
import threading

from watchfiles import PythonFilter, watch

received: list[int] = []
ended = threading.Event()


def end(number: int, _frame: object) -> None:
    received.append(number)
    ended.set()


for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, end)
while not received:
    command = subprocess.Popen(sys.argv[1:])
    next(watch("src", watch_filter=PythonFilter(), stop_event=ended), None)
    # Ctrl-C in a terminal reaches the command as well. A second SIGINT, as watchfiles itself sends, would cut it off.
    if received in ([], [signal.SIGTERM]):
        command.send_signal(signal.SIGINT)
    status = command.wait()
sys.exit(status)
