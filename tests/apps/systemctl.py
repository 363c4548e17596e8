"""What `systemctl` is for a script under test: it hands its arguments to a stand-in for systemd.

The first argument is the address of the stand-in's socket (tests/kit/systemd.py).
"""

import json
import socket
import sys


def main(address: str, *arguments: str) -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address)
        with sock.makefile("rw") as file:
            print(json.dumps(arguments), file=file, flush=True)
            answer = json.loads(file.readline())
    print(answer["said"], end="")
    status: int = answer["status"]
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
