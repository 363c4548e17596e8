"""Bring this service to a later version of its template, and say plainly when that is not all done.

    uv run python .github/template_update.py                      to the newest release
    uv run python .github/template_update.py --checkout v1.2.0    to this one
    uv run python .github/template_update.py --propose            and open a pull request with it (the workflow's way)

cruft does the work. It exits with 0 whatever comes of it, needs the last render in git to merge with it, and leaves the
lock, `.env.example` and the suite to others; this adds that. Exit status: 0 all is well, 1 somebody has to look.
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

UV = os.environ.get("UV", "uv")  # `uv run` says which uv it is
CRUFT = (UV, "tool", "run", "--quiet", "--from", "cruft>=2.16,<3", "--with", "cookiecutter>=2.7.1,<3", "cruft")
BRANCH = "template-update"


class StoppedError(Exception):
    """Nothing was changed, or what was changed needs somebody; the text says which, and what to do."""


def run(*command: str | Path, cwd: Path, show: bool = False, **extra: Any) -> str:
    """Run a command and return what it printed; with *show*, people see that instead.

    Raises:
        StoppedError: It failed, or isn't there.
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
    """This repository, or the part of it that came from the template."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.link: dict[str, Any] = json.loads((folder / ".cruft.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoppedError("There is no .cruft.json here: `uvx cruft link TEMPLATE_URL` makes one.") from None
        self.answers: dict[str, str] = self.link["context"]["cookiecutter"]

    def git(self, *arguments: str, **extra: Any) -> str:
        return run("git", *arguments, cwd=self.folder, **extra).strip()

    def read(self) -> dict[str, bytes]:
        """Read all files that git knows or would take, by their names."""
        listed = self.git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
        return {name: (self.folder / name).read_bytes() for name in listed if (self.folder / name).is_file()}

    def owned(self, names: Iterable[str]) -> set[str]:
        """Pick the team's files: cruft leaves them alone."""
        settings = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))
        skip = settings["tool"]["cruft"]["skip"] + self.link.get("skip", [])
        return {name for name in names for own in skip if fnmatch.fnmatch(name, own) or name.startswith(f"{own}/")}


class Template:
    """The template's history, in a folder that is thrown away."""

    def __init__(self, service: Service, folder: Path, checkout: str | None) -> None:
        self.url, self.old = service.link["template"], service.link["commit"]
        self.clone = folder / "template"
        run("git", "clone", "--quiet", self.url, self.clone, cwd=folder)
        try:
            self.git("cat-file", "-e", f"{self.old}^0")
        except StoppedError:
            raise StoppedError(
                f"The template at {self.url} has no commit {self.old}: its history was rewritten, or it was rendered"
                " from another copy. Put a commit that it has into .cruft.json."
            ) from None
        self.checkout = checkout or self.newest_release()
        self.new = self.git("rev-parse", "--verify", f"{self.checkout or 'HEAD'}^0")
        self.folder = self.clone / (service.link["directory"] or ".")

    def git(self, *arguments: str) -> str:
        return run("git", *arguments, cwd=self.clone).strip()

    def newest_release(self) -> str | None:
        tags = self.git("tag", "--list", "v[0-9]*", "--merged", "HEAD", "--sort=-version:refname").splitlines()
        return tags[0] if tags else None

    def is_behind(self) -> bool:
        """Tell whether the service has all of this already."""
        return self.git("merge-base", self.old, self.new) == self.new

    def changes(self) -> str:
        """Give what the changelog has more than at the service's commit."""
        added = self.git("diff", "--unified=0", self.old, self.new, "--", str(self.folder / "CHANGELOG.md"))
        lines = [line[1:] for line in added.splitlines() if line.startswith("+") and not line.startswith("+++")]
        return "\n".join(lines) or "The changelog says nothing."

    def render(self, commit: str, answers: Mapping[str, str], into: Path) -> dict[str, bytes]:
        directory = ("--directory", str(self.folder.relative_to(self.clone))) if self.folder != self.clone else ()
        given = {name: value for name, value in answers.items() if not name.startswith("_")}
        create = ("create", str(self.clone), "--no-input", "--default-config", "--checkout", commit, *directory)
        run(*CRUFT, *create, "--output-dir", into, "--extra-context", json.dumps(given), cwd=self.clone)
        project = next(into.iterdir())
        files = {path.relative_to(project).as_posix(): path for path in project.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in files.items() if name != ".cruft.json"}


def update(service: Service, template: Template, variables: str | None, work: Path) -> None:
    """Have cruft update the files.

    Raises:
        StoppedError: Some of it did not get in.
    """
    old = template.render(template.old, service.answers, work / "old")
    # The last render is what git merges with. After an update only this puts it where git looks for it.
    paths = "\n".join(str(path) for path in (work / "old").rglob("*") if path.is_file())
    service.git("hash-object", "-w", "--no-filters", "--stdin-paths", input=paths)
    before = service.read()
    folders = {str(folder) for name in old for folder in PurePath(name).parents}
    left_out = {folder for folder in folders if not (service.folder / folder).is_dir()}
    team = service.owned(before.keys() | old.keys())
    given = {"--checkout": template.checkout, "--variables-to-update": variables}
    options = [word for option, value in given.items() if value for word in (option, value)]
    # Seven digits of a hash, cruft's diff has without this, can mean two files in a large repository.
    whole = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.abbrev", "GIT_CONFIG_VALUE_0": "40"}
    run(*CRUFT, "update", "--skip-apply-ask", *options, cwd=service.folder, show=True, env=os.environ | whole)

    service = Service(service.folder)
    new = template.render(template.new, service.answers, work / "new")
    after = service.read()
    conflicts = set(service.git("diff", "--name-only", "--relative", "--diff-filter=U").splitlines())
    conflicts |= set(service.git("ls-files", "--others", "--", "*.rej").splitlines())
    conflicts |= {name for name in after if b"\n<<<<<<< " in after[name] and b"\n<<<<<<< " not in before.get(name, b"")}
    # Whoever left a file as it was rendered must have the new render of it, or cruft dropped something without a word.
    added = {name for name in new.keys() - old.keys() if not left_out & set(map(str, PurePath(name).parents))}
    untouched = {name for name in old if before.get(name) == old[name]} | added
    lost = {name for name in untouched - team if after.get(name) != new.get(name)} - conflicts
    if conflicts or lost:
        raise StoppedError(
            "Not all of the update could be merged:\n"
            + "".join(f"  {name}: changed here and in the template\n" for name in sorted(conflicts))
            + "".join(f"  {name}: the template's change is missing\n" for name in sorted(lost))
            + "Nothing is lost. Edit these files (NAME.rej has what did not fit into NAME), `git add` them, run\n"
            + "`uv lock` and the suite, and commit all of it with .cruft.json. To give up: git reset --hard"
        )


def settle(service: Service) -> None:
    """Make again what is made from other files."""
    run(UV, "lock", cwd=service.folder, show=True)
    package = service.answers["package_name"]
    example = run(UV, "run", "python", "-m", package, "config", "--format", "dotenv", cwd=service.folder)
    (service.folder / ".env.example").write_text(example, encoding="utf-8")


def propose(service: Service, title: str, body: str) -> None:
    """Open the pull request with this update, or renew it."""
    service.git("switch", "--quiet", "--force-create", BRANCH)
    service.git("add", "--all", ".")
    service.git("commit", "--quiet", "--message", title)
    try:
        service.git("push", "--quiet", "--force", "origin", BRANCH)
    except StoppedError as error:
        raise StoppedError(
            f"{error}\nA token that may write contents pushes this; when the update changes files in .github/workflows,"
            "\nGitHub wants one with the permission `workflows` as well: see the head of template-update.yml."
        ) from None
    known = run("gh", "pr", "list", "--head", BRANCH, "--json", "number", "--jq", ".[].number", cwd=service.folder)
    what = ("edit", *known.split()) if known.strip() else ("create", "--head", BRANCH)
    run("gh", "pr", *what, "--title", title, "--body", body, cwd=service.folder, show=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", help="tag, branch or commit of the template; the newest release if left out")
    parser.add_argument("--variables-to-update", metavar="JSON", help='new answers: {"deploy_to": "swarm"}')
    parser.add_argument("--no-suite", action="store_true", help="leave the suite to somebody else")
    parser.add_argument("--propose", action="store_true", help="commit, push and open a pull request")
    options = parser.parse_args(arguments)
    service = Service(Path(__file__).resolve().parents[1])
    if service.git("status", "--porcelain"):
        raise StoppedError("There are changes that are not committed: commit or stash them first. Nothing was done.")
    with tempfile.TemporaryDirectory() as work:
        template = Template(service, Path(work), options.checkout)
        if template.is_behind() and not options.variables_to_update:
            print(f"Nothing to do: the service has all of {template.checkout or template.new}.")
            return 0
        changes = template.changes()
        update(service, template, options.variables_to_update, Path(work))
    settle(service)
    try:
        if options.no_suite:
            suite = "The suite was not run."
        else:
            run(UV, "run", "pytest", cwd=service.folder, show=True)
            suite = "The suite passes with it."
    except StoppedError:
        suite = "**The suite fails with it**: what the changelog asks of a service is probably still to be done."
    title = f"Update to {template.checkout or template.new[:12]} of the template"
    body = f"{suite}\n\n{changes}\n"
    print(f"\n{title}\n\n{body}")
    if options.propose:
        propose(service, title, body)
    return 1 if "fails" in suite else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StoppedError as error:
        sys.exit(f"\n{error}")
