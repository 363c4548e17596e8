"""Bring a service to a later version of this template, and say plainly what could not be done.

It runs in the service's folder, and needs uv and git. A service's `make update` clones the template and
calls it:

    make update                                       to the newest release
    make update UPDATE="--checkout v1.2.0"            to this tag, branch or commit
    make update UPDATE=--propose                      and open a pull request, as the service's workflow does
    uv run python CLONE/scripts/update_service.py     the same without make

cruft does the merging. It exits with 0 whether or not all of the update was merged, it needs the previous
render in the service's git objects to merge at all, and it leaves uv.lock, .env.example and the tests to
others. This program adds that. Exit status: 0 if everything is done, 1 if somebody has to look.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

UV = os.environ.get("UV", "uv")  # `uv run` sets it to the path of uv.
CRUFT = (
    UV,
    "tool",
    "run",
    "--quiet",
    "--from",
    "cruft>=2.16,<3",
    "--with",
    "cookiecutter>=2.7.1,<3",
    "cruft",
)
BRANCH = "template-update"


class StoppedError(Exception):
    """The update can't go on. The text says what was done until then, and what to do next."""


def run(*command: str | Path, cwd: Path, show: bool = False, **extra: Any) -> str:
    """Run a command and return its output; with *show*, the person sees the output instead.

    Raises:
        StoppedError: The command failed, or there is no such program.
    """
    if show:
        print("+", *command, flush=True)
    out = None if show else subprocess.PIPE
    try:
        done = subprocess.run(command, cwd=cwd, text=True, stdout=out, check=False, **extra)
    except FileNotFoundError:
        raise StoppedError(f"{command[0]} is not on the PATH.") from None
    if done.returncode:
        raise StoppedError(f"{' '.join(map(str, command))}: exit status {done.returncode}")
    return done.stdout or ""


class Service:
    """The service in *folder*, which is a repository or a folder of one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.link: dict[str, Any] = json.loads((folder / ".cruft.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoppedError(
                f"There is no .cruft.json in {folder}: `uvx cruft link TEMPLATE_URL` makes one."
            ) from None
        self.answers: dict[str, str] = self.link["context"]["cookiecutter"]

    def git(self, *arguments: str, **extra: Any) -> str:
        return run("git", *arguments, cwd=self.folder, **extra).strip()

    def read(self) -> dict[str, bytes]:
        """Read all files that git tracks or would add, by their names."""
        listed = self.git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        return {name: (self.folder / name).read_bytes() for name in listed if (self.folder / name).is_file()}

    def owned(self, names: Iterable[str]) -> set[str]:
        """Pick the names of the team's files, which cruft leaves alone."""
        settings = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))
        skip = settings["tool"]["cruft"]["skip"] + self.link.get("skip", [])
        return {
            name for name in names for own in skip if fnmatch.fnmatch(name, own) or name.startswith(f"{own}/")
        }


class Template:
    """The template's history, in a clone that nothing is written to."""

    def __init__(self, service: Service, clone: Path, checkout: str | None) -> None:
        self.clone = clone
        self.old: str = service.link["commit"]
        try:
            self.git("cat-file", "-e", f"{self.old}^0")
        except StoppedError:
            raise StoppedError(
                f"The template at {service.link['template']} has no commit {self.old}: its history was"
                " rewritten, or it was rendered from another copy. Put a commit that it has into .cruft.json."
            ) from None
        self.checkout = checkout or self.newest_release()
        self.new = self._commit(self.checkout or "HEAD")
        self.folder = clone / (service.link["directory"] or ".")

    def git(self, *arguments: str) -> str:
        return run("git", *arguments, cwd=self.clone).strip()

    def _commit(self, name: str) -> str:
        """Find a tag, a commit or a branch; of all branches but one, a clone has those of `origin` only."""
        for candidate in (name, f"origin/{name}"):
            try:
                return self.git("rev-parse", "--quiet", "--verify", f"{candidate}^0")
            except StoppedError:
                continue
        raise StoppedError(f"The template has no tag, branch or commit {name}. Nothing was changed.")

    def newest_release(self) -> str | None:
        tags = self.git("tag", "--list", "v[0-9]*", "--merged", "HEAD", "--sort=-version:refname")
        return tags.splitlines()[0] if tags else None

    def is_behind(self) -> bool:
        """Tell whether the service has everything of the wanted version already."""
        return self.git("merge-base", self.old, self.new) == self.new

    def changes(self) -> str:
        """Give the lines that the changelog has now and had not at the service's version."""
        added = self.git("diff", "--unified=0", self.old, self.new, "--", str(self.folder / "CHANGELOG.md"))
        lines = [
            line[1:] for line in added.splitlines() if line.startswith("+") and not line.startswith("+++")
        ]
        return "\n".join(lines) or "The changelog says nothing."

    def render(self, commit: str, answers: Mapping[str, str], into: Path) -> dict[str, bytes]:
        directory = (
            ("--directory", str(self.folder.relative_to(self.clone))) if self.folder != self.clone else ()
        )
        given = {name: value for name, value in answers.items() if not name.startswith("_")}
        create = (
            *("create", str(self.clone), "--no-input", "--default-config", "--checkout", commit),
            *("--output-dir", into, "--extra-context", json.dumps(given)),
        )
        run(*CRUFT, *create, *directory, cwd=self.clone)
        project = next(into.iterdir())
        files = {path.relative_to(project).as_posix(): path for path in project.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in files.items() if name != ".cruft.json"}


def update(service: Service, template: Template, variables: str | None, work: Path) -> None:
    """Have cruft update the files.

    Raises:
        StoppedError: A part of the update could not be merged.
    """
    old = template.render(template.old, service.answers, work / "old")
    # git merges with the previous render, and looks for it among the service's objects.
    paths = "\n".join(str(path) for path in (work / "old").rglob("*") if path.is_file())
    service.git("hash-object", "-w", "--no-filters", "--stdin-paths", input=paths)
    before = service.read()
    folders = {str(folder) for name in old for folder in PurePath(name).parents}
    left_out = {folder for folder in folders if not (service.folder / folder).is_dir()}
    team = service.owned(before.keys() | old.keys())
    given = {"--checkout": template.checkout, "--variables-to-update": variables}
    options = [word for option, value in given.items() if value for word in (option, value)]
    # cruft's diff names objects by seven digits, which can mean two objects in a large repository.
    whole = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.abbrev", "GIT_CONFIG_VALUE_0": "40"}
    run(*CRUFT, "update", "--skip-apply-ask", *options, cwd=service.folder, show=True, env=os.environ | whole)

    service = Service(service.folder)
    new = template.render(template.new, service.answers, work / "new")
    after = service.read()
    conflicts = set(service.git("diff", "--name-only", "--relative", "--diff-filter=U").splitlines())
    conflicts |= set(service.git("ls-files", "--others", "--", "*.rej").splitlines())
    conflicts |= {
        name for name in after if b"\n<<<<<<< " in after[name] and b"\n<<<<<<< " not in before.get(name, b"")
    }
    # A file that the team had left as it was rendered must now be as the new render has it. If it is not,
    # cruft has dropped something without a word.
    added = {name for name in new.keys() - old.keys() if not left_out & set(map(str, PurePath(name).parents))}
    untouched = {name for name in old if before.get(name) == old[name]} | added
    lost = {name for name in untouched - team if after.get(name) != new.get(name)} - conflicts
    if conflicts or lost:
        raise StoppedError(
            "Not all of the update could be merged:\n"
            + "".join(f"  {name}: changed here and in the template\n" for name in sorted(conflicts))
            + "".join(f"  {name}: the template's change is missing\n" for name in sorted(lost))
            + "Nothing is lost. Edit these files (NAME.rej has what did not fit into NAME), `git add` them,\n"
            + "run `uv lock`, write .env.example again, run the tests, and commit all with .cruft.json.\n"
            + "To give up: git reset --hard"
        )


def settle(service: Service) -> None:
    """Make again what is made from other files.

    Raises:
        StoppedError: The dependencies can't be locked, or the service can't be imported.
    """
    run(UV, "lock", cwd=service.folder, show=True)
    package = service.answers["package_name"]
    example = run(UV, "run", "python", "-m", package, "config", "--format", "dotenv", cwd=service.folder)
    (service.folder / ".env.example").write_text(example, encoding="utf-8")


def propose(service: Service, title: str, body: str) -> None:
    """Open the pull request with this update, or renew the one that is open."""
    service.git("switch", "--quiet", "--force-create", BRANCH)
    service.git("add", "--all", ".")
    service.git("commit", "--quiet", "--message", title)
    try:
        service.git("push", "--quiet", "--force", "origin", BRANCH)
    except StoppedError as error:
        raise StoppedError(
            f"{error}\nA token that may write contents pushes this. When the update changes files in"
            " .github/workflows,\nGitHub wants a token with the permission `workflows` as well: see the head"
            " of template-update.yml."
        ) from None
    listed = ("pr", "list", "--head", BRANCH, "--json", "number", "--jq", ".[].number")
    known = run("gh", *listed, cwd=service.folder).split()
    what = ("edit", *known) if known else ("create", "--head", BRANCH)
    run("gh", "pr", *what, "--title", title, "--body", body, cwd=service.folder, show=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkout", help="tag, branch or commit of the template; default: the newest release"
    )
    parser.add_argument(
        "--variables-to-update", metavar="JSON", help='changed answers: {"deploy_to": "swarm"}'
    )
    parser.add_argument("--template", metavar="CLONE", type=Path, help="a fresh clone; default: make one")
    parser.add_argument("--no-suite", action="store_true", help="do not run the tests")
    parser.add_argument("--propose", action="store_true", help="commit, push and open a pull request")
    options = parser.parse_args(arguments)
    service = Service(Path.cwd())
    if service.git("status", "--porcelain"):
        raise StoppedError(
            "There are changes that are not committed: commit or stash them first. Nothing was done."
        )
    with tempfile.TemporaryDirectory() as work:
        clone: Path | None = options.template
        if clone is None:
            clone = Path(work, "template")
            run("git", "clone", "--quiet", service.link["template"], clone, cwd=service.folder)
        template = Template(service, clone.resolve(), options.checkout)
        if template.is_behind() and not options.variables_to_update:
            print(f"Nothing to do: the service has all of {template.checkout or template.new}.")
            return 0
        changes = template.changes()
        update(service, template, options.variables_to_update, Path(work))
    passed = True
    try:
        settle(service)
        if options.no_suite:
            suite = "The suite was not run."
        else:
            run(UV, "run", "pytest", cwd=service.folder, show=True)
            suite = "The suite passes with it."
    except StoppedError as error:
        passed = False
        suite = (
            f"**The suite fails with it** ({error}): what the changelog asks of a service is probably still"
            " to be done."
        )
    title = f"Update to {template.checkout or template.new[:12]} of the template"
    body = f"{suite}\n\n{changes}\n"
    print(f"\n{title}\n\n{body}")
    if options.propose:
        propose(service, title, body)
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StoppedError as error:
        sys.exit(f"\n{error}")
