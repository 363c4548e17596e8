"""After the render: remove what the answers exclude; in a person's first render also commit it and lock.

cruft renders into temporary folders and compares them, so under cruft nothing but the removal may happen.
"""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote

# question -> answer -> the paths that are there only for this answer
ONLY_FOR: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "deploy_to": {
        "kubernetes": ("deploy/kubernetes",),
        "swarm": ("deploy/swarm",),
        "systemd": ("deploy/systemd",),
    },
}

GIT_SECONDS = 60
LOCK_SECONDS = 120

FIRST_MESSAGE = "Render the service from its template"
COMMIT = f"git commit -m '{FIRST_MESSAGE}'"

# A person's global git settings that could change, refuse or hang a commit nobody looks at.
PLAIN_GIT = (
    "-c", "core.hooksPath=.git/hooks",
    "-c", "core.excludesFile=",
    "-c", "core.fsmonitor=false",
    "-c", "commit.gpgSign=false",
    "-c", "gc.auto=0",
    "-c", "maintenance.auto=false",
)  # fmt: skip


class SkippedError(Exception):
    """A step that could not be done: why, and what does it later if that is not the usual command."""

    def __init__(self, why: str, later: str = "") -> None:
        super().__init__(why)
        self.later = later


def prune(project: Path, answers: Mapping[str, str]) -> None:
    for question, choices in ONLY_FOR.items():
        for choice, paths in choices.items():
            if choice == answers[question]:
                continue
            for path in (project / name for name in paths):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def run(project: Path, *command: str, seconds: int) -> None:
    # GIT_DIR and its like are set when cookiecutter is called from a git hook; they mean another repository.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_")
        or name.startswith(("GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_CONFIG", "GIT_SSL_"))
    }
    try:
        subprocess.run(
            command,
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=seconds,
            check=True,
        )
    except FileNotFoundError as error:
        raise SkippedError(f"{command[0]} is not on the PATH") from error
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"{command[0]} took longer than {seconds} s") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit status {error.returncode}"
        raise SkippedError(f"{command[0]} failed: {said}") from error
    except OSError as error:
        raise SkippedError(f"{command[0]} can't be run: {error}") from error


def git(project: Path, *arguments: str) -> None:
    run(project, "git", *PLAIN_GIT, *arguments, seconds=GIT_SECONDS)


def commit(project: Path, message: str, paths: str) -> None:
    git(project, "add", "--", paths)
    git(project, "commit", "--quiet", "--no-verify", "--message", message)


def start_history(project: Path) -> None:
    """Commit the untouched render: it is what a later update is compared with."""
    if any((folder / ".git").exists() for folder in (project, *project.parents)):
        raise SkippedError("this folder is inside another git work tree", later=f"git add . && {COMMIT}")
    try:
        git(project, "init", "--quiet", "--template=")
        git(project, "symbolic-ref", "HEAD", "refs/heads/main")
        for role in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT"):
            try:
                git(project, "-c", "user.useConfigOnly=true", "var", role)
            except SkippedError as error:
                raise SkippedError("git does not know who commits (user.name and user.email)") from error
        commit(project, FIRST_MESSAGE, ".")
    except BaseException:
        shutil.rmtree(project / ".git", ignore_errors=True)
        raise


def lock(project: Path) -> None:
    if (project / "uv.lock").exists():
        return
    if not shutil.which("uv"):
        raise SkippedError("uv is not on the PATH")
    print("Locking the dependencies with uv; this asks the package index ...", flush=True)
    run(project, "uv", "lock", seconds=LOCK_SECONDS)


def attempt(what: str, later: str, step: Callable[[], None]) -> bool:
    """Do one step of the extra ones: whatever stops it is said, and stops nothing else."""
    try:
        step()
    except SkippedError as error:
        print(f"Skipped: {what}, because {error}.\n  Later: {error.later or later}")
        return False
    return True


def first_render(project: Path, answers: Mapping[str, str]) -> None:
    has_history = attempt(
        "the first commit",
        f"git init -b main && git add . && {COMMIT}",
        lambda: start_history(project),
    )
    is_locked = attempt("uv.lock", "uv lock", lambda: lock(project))
    if has_history and is_locked:
        attempt(
            "the commit of uv.lock",
            'git add uv.lock && git commit -m "Lock the dependencies"',
            lambda: commit(project, "Lock the dependencies", "uv.lock"),
        )
    print(
        f"\n{answers['project_slug']} is there. Next:\n\n"
        f"  cd {shlex.quote(str(project))}\n"
        f"  uv run pytest\n"
        f"  uv run python -m {answers['package_name']}\n\n"
        "and open http://127.0.0.1:8000/-/ready (traffic) and http://127.0.0.1:8001/-/config (introspection)."
    )


def main() -> None:
    answers = json.loads(unquote("{{ cookiecutter|jsonify|urlencode }}"))
    project = Path.cwd()
    prune(project, answers)
    if "_commit" in answers:  # set by cruft alone
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    first_render(project, answers)


if __name__ == "__main__":
    main()
