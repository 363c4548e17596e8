"""Commands, and git above all."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Settings of a person's git that would change what is merged, or how.
PLAIN = (
    *("-c", "core.fsmonitor=false", "-c", "core.safecrlf=false"),
    *("-c", "merge.directoryRenames=false", "-c", "rerere.enabled=false"),
)


class StoppedError(Exception):
    """The update can't go on. The text says what was done until then, and what to do next."""


def run(
    *command: str | Path,
    cwd: Path,
    show: bool = False,
    given: str = "",
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command and return its output; with *show*, the person sees the output instead.

    Raises:
        StoppedError: The command failed, or there is no such program.
    """
    if show:
        print("+", *command, flush=True)
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | (environment or {}),
            input=given.encode("utf-8", "surrogateescape"),
            stdout=None if show else subprocess.PIPE,
            check=False,
        )
    except FileNotFoundError:
        raise StoppedError(f"{command[0]} is not on the PATH.") from None
    if done.returncode:
        raise StoppedError(f"{' '.join(map(str, command))}: exit status {done.returncode}")
    return (done.stdout or b"").decode("utf-8", "surrogateescape")


class Git:
    """git in a folder of a work tree, or in a bare repository."""

    def __init__(self, folder: Path, is_bare: bool = False) -> None:
        self.folder = folder
        self._git = ("git", *PLAIN, *(("--git-dir", folder) if is_bare else ()))

    def read(self, *arguments: str | Path, **extra: Any) -> str:
        """Return all that a command prints, which may have to be kept to the letter."""
        return run(*self._git, *arguments, **{"cwd": self.folder} | extra)

    def __call__(self, *arguments: str | Path, **extra: Any) -> str:
        return self.read(*arguments, **extra).strip()

    def names(self, *arguments: str) -> list[str]:
        """Return the entries that a command lists with -z."""
        return [*filter(None, self.read(*arguments, "-z").split("\0"))]

    def complaint(self, *arguments: str | Path) -> str:
        """Return what a command says when it fails, and nothing when it ends well."""
        done = subprocess.run(
            (*self._git, *arguments),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        said = done.stderr.decode("utf-8", "replace").strip()
        return (said or f"exit status {done.returncode}") if done.returncode else ""

    def accepts(self, *arguments: str | Path) -> bool:
        return not self.complaint(*arguments)
