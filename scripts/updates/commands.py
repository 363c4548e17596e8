"""Commands, and git above all."""

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# What names another repository or project (a git hook or alias that calls the update has some of these set),
# and what keeps uv from writing a lock.
ELSEWHERE = {
    *(
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_COMMON_DIR",
        "GIT_OBJECT_DIRECTORY",
        "GIT_NAMESPACE",
    ),
    *("UV_PROJECT", "UV_WORKING_DIR", "UV_WORKING_DIRECTORY", "UV_FROZEN", "UV_LOCKED"),
}
# Settings of a person's git that would change what is merged, or how.
PLAIN = (
    *("-c", "core.fsmonitor=false", "-c", "core.safecrlf=false"),
    *("-c", f"core.hooksPath={os.devnull}"),
    *("-c", "merge.directoryRenames=false", "-c", "rerere.enabled=false"),
)


def here(**more: str) -> dict[str, str]:
    """Return the environment of commands that mean the repository and the project of their folder."""
    return {name: value for name, value in os.environ.items() if name not in ELSEWHERE} | more


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
            env=here(**environment or {}),
            input=given.encode("utf-8", "surrogateescape"),
            stdout=None if show else subprocess.PIPE,
            check=False,
        )
    except FileNotFoundError:
        raise StoppedError(f"{command[0]} is not on the PATH.") from None
    if done.returncode:
        raise StoppedError(f"{' '.join(map(str, command))}: exit status {done.returncode}")
    return (done.stdout or b"").decode("utf-8", "surrogateescape")


def releases(git: Callable[..., str], *options: str) -> list[str]:
    """Return the tags of releases that HEAD has, the newest first; `v2.0.0-rc.1` is none."""
    form = ("--format=%(refname:strip=2)", "--sort=-version:refname", "--merged=HEAD")
    tags = git("for-each-ref", *form, *options, "refs/tags/v*").split()
    return [tag for tag in tags if re.fullmatch(r"v\d+(\.\d+)*", tag)]


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
        return [*filter(None, self.read(arguments[0], "-z", *arguments[1:]).split("\0"))]

    def complaint(self, *arguments: str | Path) -> str:
        """Return what a command says when it fails, and nothing when it ends well."""
        done = subprocess.run(
            (*self._git, *arguments),
            cwd=self.folder,
            env=here(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        said = done.stderr.decode("utf-8", "replace").strip()
        return (said or f"exit status {done.returncode}") if done.returncode else ""

    def accepts(self, *arguments: str | Path) -> bool:
        return not self.complaint(*arguments)
