"""Run a command while clients ask the service on a port of this machine: under_load.py PORT COMMAND...

The service needs the route /work, which the clients of tests/kit/load.py ask for.
"""

import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from kit.load import Load


def main(port: str, *command: str) -> int:
    """Return the command's exit status, or 1 when a request failed or hardly one was sent."""
    with Load(int(port), "under-load").running() as load:
        status = subprocess.run(command).returncode
    print(f"{len(load.outcomes)} requests, {len(load.failures)} failed")
    for outcome in load.failures[:20]:
        print(f"  {outcome.method} after {outcome.took:.2f} s: {outcome.failure}")
    if load.failures or len(load.outcomes) < 100:
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
