"""After the render: finish its files; in a person's first render also link, commit, lock.

cruft renders into temporary folders and compares them, so under cruft nothing but the first may happen.
"""

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Files that belong to one answer have a condition in their names; the folders of the others are left, empty.
FOLDERS_OF_ANSWERS = ("deploy", "src/{{ cookiecutter.package_name }}/migrations")
# An archive of the template has lost which files may be run.
PROGRAMS = ("deploy/systemd/rolling-restart",)

GIT_SECONDS = 60
LOCK_SECONDS = 120

HTTP = ("http", "https")
FIRST_MESSAGE = "Render the service from its template"
COMMIT = f"git commit -m '{FIRST_MESSAGE}'"

# A person's global git settings that could change, refuse or hang a commit nobody looks at.
PLAIN_GIT = (
    "-c", "core.hooksPath=.git/hooks",
    "-c", "core.excludesFile=",
    "-c", "core.fsmonitor=false",
    "-c", "commit.gpgSign=false",
    "-c", "user.useConfigOnly=true",
    "-c", "gc.auto=0",
    "-c", "maintenance.auto=false",
)  # fmt: skip

# What uv would take for its project instead of this one, or what forbids it to write a lock.
ELSEWHERE = {"UV_PROJECT", "UV_WORKING_DIR", "UV_WORKING_DIRECTORY", "UV_FROZEN", "UV_LOCKED"}


class SkippedError(Exception):
    """A step that could not be done: why, and what does it later if that is not the usual command."""

    def __init__(self, why: str, later: str = "") -> None:
        super().__init__(why)
        self.later = later


def say(text: str) -> None:
    """Print it. A reader that has gone away must not make cookiecutter delete the project."""
    try:
        print(text, flush=True)
    except OSError:
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def finish_files(project: Path) -> None:
    for name in FOLDERS_OF_ANSWERS:
        for folder in sorted((project / name).rglob("**/"), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
    for program in (project / name for name in PROGRAMS):
        # Some file systems, of Windows or of a network, have no such bits.
        with contextlib.suppress(OSError):
            program.chmod(program.stat().st_mode | 0o111)


def run(project: Path, *command: str, seconds: int) -> str:
    # GIT_DIR and its like are set when cookiecutter is called from a git hook; they mean another repository.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ELSEWHERE
        and (
            not name.startswith("GIT_")
            or name.startswith(("GIT_AUTHOR_", "GIT_COMMITTER_", "GIT_CONFIG", "GIT_SSL_"))
        )
    }
    try:
        done = subprocess.run(
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
    except KeyboardInterrupt as error:
        raise SkippedError(f"{command[0]} was interrupted") from error
    return done.stdout.strip()


def git(folder: Path, *arguments: str) -> str:
    return run(folder, "git", *PLAIN_GIT, *arguments, seconds=GIT_SECONDS)


def in_git(folder: Path) -> bool:
    return any((above / ".git").exists() for above in (folder, *folder.parents))


def template_folder(answers: Mapping[str, str]) -> tuple[Path, bool]:
    """Find the template as it lies on this disk, and tell whether the person named this folder or a URL."""
    # A relative path starts where the person stood: the output folder, unless another one was asked for.
    for start in (answers["_output_dir"], os.environ.get("PWD", "")):
        folder = Path(start, answers["_repo_dir"])
        if start and (folder / "cookiecutter.json").is_file():
            return folder.resolve(), Path(start, answers["_template"]).is_dir()
    raise SkippedError(f"{answers['_repo_dir']} can't be found from here")


def to_be_kept(url: str) -> str:
    """Give the URL as it may be committed: without a password, and a folder's as its path, as cruft does."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return unquote(parts.path)
    if parts.scheme in HTTP:
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    # The user of an ssh address is a part of it.
    return url.replace(f":{parts.password}@", "@", 1)


def link_command(answers: Mapping[str, str]) -> str:
    """Return what links the project later: to the version that it was rendered from, with its answers."""
    given = json.dumps({name: value for name, value in answers.items() if not name.startswith("_")})
    return (
        f"uvx cruft link --no-input TEMPLATE_URL --checkout VERSION --extra-context {shlex.quote(given)}\n"
        "  with the URL of the template's repository, and the tag or commit that this was rendered from."
    )


def link(project: Path, answers: Mapping[str, str]) -> None:
    """Leave the .cruft.json that `cruft create` leaves, so that updates work from the first day on."""
    if (project / ".cruft.json").exists():
        raise SkippedError(
            "there is a .cruft.json, which says what version the files are that this render did not replace",
            later="make update",
        )
    folder, is_local = template_folder(answers)
    if shutil.which("git") and not in_git(folder):
        raise SkippedError(f"{folder} is not a git repository, so there is no version to link to")
    top, _, commit = git(folder, "rev-parse", "--show-toplevel", "HEAD").rpartition("\n")
    # Another repository may hold a copy of the template that it does not track.
    git(folder, "cat-file", "-e", "HEAD:./cookiecutter.json")
    if git(folder, "status", "--porcelain", "--untracked-files=normal", "--", "."):
        raise SkippedError(
            f"{folder} has changes that are not committed, so no commit of it gives this render",
            later="commit them and render again",
        )
    template = top if is_local else to_be_kept(git(folder, "config", "remote.origin.url"))
    questions = json.loads((folder / "cookiecutter.json").read_text(encoding="utf-8"))
    asked = {name: answers[name] for name in questions if name in answers}
    state = {
        "template": template,
        "commit": commit,
        "checkout": answers["_checkout"],
        "context": {"cookiecutter": {**asked, "_template": template, "_commit": commit}},
        "directory": str(folder.relative_to(top)) if folder != Path(top) else None,
    }
    text = json.dumps(state, ensure_ascii=False, indent=2)
    (project / ".cruft.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    if Path(template).is_dir():
        say(
            f"Linked to {template}, a folder that others don't have. For a service that is shared,"
            " put the template's URL in its place, twice in .cruft.json."
        )


def commit(project: Path, message: str, paths: str) -> None:
    git(project, "add", "--", paths)
    git(project, "commit", "--quiet", "--no-verify", "--message", message)


def start_history(project: Path, answers: Mapping[str, str]) -> None:
    """Commit the untouched render: it is what a later update is compared with."""
    if (project / ".git").exists():
        raise SkippedError("this folder has a history already", later="git diff, and commit what you like")
    if in_git(project):
        raise SkippedError(
            "this folder is inside another git work tree",
            later=f"git add . && {COMMIT}; GitHub reads .github at the root of a repository alone:"
            f" {answers['_docs']}/places.md",
        )
    try:
        git(project, "-c", "init.defaultBranch=main", "init", "--quiet", "--template=")
        commit(project, FIRST_MESSAGE, ".")
    except BaseException:
        shutil.rmtree(project / ".git", ignore_errors=True)
        raise


def workspace(project: Path) -> Path | None:
    """Find the uv workspace that this folder is a member of."""
    try:
        import tomllib
    except ImportError:  # before Python 3.11, which the lock asks for anyway
        return None
    for root in project.parents:
        try:
            settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
            table = settings["tool"]["uv"]["workspace"]
            members, excluded = (
                {path for pattern in table.get(key, []) for path in root.glob(pattern)}
                for key in ("members", "exclude")
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError):
            continue
        return root if project in members - excluded else None
    return None


def lock(project: Path) -> None:
    if (project / "uv.lock").exists():
        return
    if not shutil.which("uv"):
        raise SkippedError("uv is not on the PATH")
    if root := workspace(project):
        # Its lock would be written, and the image, which is built from this folder alone, would have none.
        raise SkippedError(
            f"this folder is a member of the uv workspace {root}",
            later=f'add "{project.relative_to(root).as_posix()}" to `exclude` in [tool.uv.workspace] of'
            f" {root / 'pyproject.toml'}, then: uv lock",
        )
    say("Locking the dependencies with uv; this asks the package index ...")
    run(project, "uv", "lock", "--python", sys.executable, seconds=LOCK_SECONDS)
    if not (project / "uv.lock").exists():
        raise SkippedError("uv wrote the lock of a workspace above this folder")


def attempt(what: str, later: str, step: Callable[[], None]) -> bool:
    """Do one step of the extra ones: whatever stops it is said, and stops nothing else."""
    try:
        step()
    except (SkippedError, OSError) as error:
        say(f"Skipped: {what}, because {error}.\n  Later: {getattr(error, 'later', '') or later}")
        return False
    return True


def first_render(project: Path, answers: Mapping[str, str]) -> None:
    attempt(
        "the link to the template",
        link_command(answers),
        lambda: link(project, answers),
    )
    has_history = attempt(
        "the first commit",
        f"git init -b main && git add . && {COMMIT}",
        lambda: start_history(project, answers),
    )
    is_locked = attempt("uv.lock", "uv lock", lambda: lock(project))
    if has_history and is_locked:
        attempt(
            "the commit of uv.lock",
            'git add uv.lock && git commit -m "Lock the dependencies"',
            lambda: commit(project, "Lock the dependencies", "uv.lock"),
        )
    say(
        f"\n{answers['project_slug']} is there. Next:\n\n"
        f"  cd {shlex.quote(str(project))}\n"
        "  make dev     # run it, and restart it when a file is saved\n"
        "  make test    # run its tests\n\n"
        "and open http://127.0.0.1:8000/greetings/Ada (a route) and http://127.0.0.1:8001/ (for operators)."
    )


def main() -> None:
    answers = json.loads("{{ (cookiecutter|jsonify|tojson)[1:-1] }}")
    project = Path.cwd()
    finish_files(project)
    if "_commit" in answers:  # set by cruft alone
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    first_render(project, answers)


if __name__ == "__main__":
    main()
