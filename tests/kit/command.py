"""cookiecutter's command as a person runs it, without its imports, which take as long as a render.

Run as a program, this module is a process that has imported what cookiecutter needs. Each line of its stdin
is a command in JSON; a fork runs it as `python -m cookiecutter` would, and the answer is its exit status.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from kit.service import clean_environment

LIMIT_SECONDS = 180
# The arguments, the working directory and the whole environment.
Command = Callable[[tuple[str | Path, ...], Path, Mapping[str, str]], subprocess.CompletedProcess[str]]


@contextlib.contextmanager
def cookiecutter_command() -> Iterator[Command]:
    """Yield what runs cookiecutter's command: nothing on its stdin, its stdout and stderr returned."""
    with subprocess.Popen(
        (sys.executable, __file__),
        env=clean_environment(PYTHONPATH=str(Path(__file__).parents[1])),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        requests, statuses = server.stdin, server.stdout

        def run(
            arguments: tuple[str | Path, ...], cwd: Path, environment: Mapping[str, str]
        ) -> subprocess.CompletedProcess[str]:
            with tempfile.TemporaryDirectory() as folder:
                out, err = Path(folder, "out"), Path(folder, "err")
                request = {
                    "arguments": [*map(str, arguments)],
                    "cwd": str(cwd),
                    "environment": dict(environment),
                    "streams": [os.devnull, str(out), str(err)],
                }
                requests.write(json.dumps(request) + "\n")
                requests.flush()
                status = int(statuses.readline())
                said = (file.read_text(encoding="utf-8", errors="replace") for file in (out, err))
                return subprocess.CompletedProcess(arguments, status, *said)

        yield run
        requests.close()


def become(arguments: list[str], cwd: str, environment: dict[str, str], streams: list[str]) -> None:
    """Be the command, in a process that was forked for it."""
    import runpy

    signal.alarm(LIMIT_SECONDS)
    for descriptor, (path, flags) in enumerate(
        zip(streams, (os.O_RDONLY, *2 * (os.O_WRONLY | os.O_CREAT,)), strict=True)
    ):
        os.dup2(os.open(path, flags), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["cookiecutter", *arguments]
    sys.path[0] = cwd
    runpy.run_module("cookiecutter", run_name="__main__", alter_sys=True)


def main() -> None:
    """Serve commands until stdin ends."""
    import cookiecutter.cli  # type: ignore[import-untyped]  # noqa: F401

    # cookiecutter's own modules look for the home folder when they are imported.
    for name in [name for name in sys.modules if name.partition(".")[0] == "cookiecutter"]:
        del sys.modules[name]
    for line in sys.stdin:
        if not (child := os.fork()):
            become(**json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
