"""Bring a service to a later version of this template, and say plainly what could not be done.

It runs in the service's folder, and needs uv and git. A service's `make update` fetches the template and
calls it:

    make update                                       to the newest release
    make update UPDATE="--checkout v1.2.0"            to this tag, branch or commit
    make update UPDATE=--propose                      and open a pull request, as the service's workflow does
    uv run python CLONE/scripts/update_service.py     the same without make

cruft renders the service's version and the wanted one, and git merges the difference between both renders
into the service. Where both have raised a version, the newer one stays. Then uv.lock and .env.example are
made again, and the tests are run. Exit status: 0 if everything is done, 1 if somebody has to look.
"""

import argparse
import difflib
import json
import os
import shutil
import signal
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from updates.commands import Git, StoppedError, releases, run
from updates.proposal import Proposal
from updates.versions import differ_in_versions_only, merge_versions

UV = os.environ.get("UV", "uv")  # `uv run` sets it to the path of uv.
WITH_CRUFT = ("--with", "cruft>=2.16,<3", "--with", "cookiecutter>=2.7.1,<3")
# Both renders by one process, since most of a render's time goes into the imports.
RENDER = """
import json, logging, pathlib, sys
import cruft
logging.disable()  # cookiecutter logs the traceback of what is said below.
for render in json.load(sys.stdin):
    render["output_dir"] = pathlib.Path(render["output_dir"])
    try:
        cruft.create(**render, no_input=True, default_config=True)
    except Exception as error:  # of many kinds: cookiecutter, Jinja, git
        sys.exit(f"The template can't be rendered at {render['checkout']}: {error}")
"""
# What git leaves in its folder while it is in the middle of something.
UNFINISHED = {
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
}
# Where `make update` puts the template's branches and tags for a moment, in the service's repository.
REFS = "refs/template/"
FETCHED = ("HEAD", "refs/heads/*", "refs/tags/*")
# The author of two commits that no branch ever has.
NOBODY = {f"GIT_{role}_{fact}": "template" for role in ("AUTHOR", "COMMITTER") for fact in ("NAME", "EMAIL")}


class Service:
    """The service in *folder*, which is a repository or a folder of one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.git = folder, Git(folder)
        try:
            self.link: dict[str, Any] = json.loads((folder / ".cruft.json").read_text(encoding="utf-8"))
            self.template: str = self.link["template"]
            self.commit: str = self.link["commit"]
            self.answers: dict[str, str] = self.link["context"]["cookiecutter"]
            self.package: str = self.answers["package_name"]
        except FileNotFoundError:
            raise StoppedError(
                f"There is no .cruft.json in {folder}: `uvx cruft link` makes one. docs/updates.md of the"
                " template has the whole command, which needs the version and the answers."
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise StoppedError(
                f".cruft.json can't be used ({type(error).__name__}: {error}). Take back the last one that"
                " was whole: `git log --patch -- .cruft.json` shows them all. Nothing was done."
            ) from None

    def changed(self) -> list[str]:
        """Name what is not committed. An update must be the only change, so that it can be taken back."""
        options = ("--porcelain=v1", "--no-renames", "--untracked-files=normal", "--ignore-submodules=dirty")
        return [entry[3:] for entry in self.git.names("status", *options)]

    def unfinished(self) -> str | None:
        """Name what git is in the middle of: the commit that ends it would take in the update too."""
        found = (self.folder / self.git("rev-parse", "--git-path", name) for name in UNFINISHED)
        return next((UNFINISHED[path.name] for path in found if path.exists()), None)

    def skipped(self) -> list[str]:
        """Return `skip` of pyproject.toml and .cruft.json: the paths and patterns of the team's files."""
        try:
            text = (self.folder / "pyproject.toml").read_text(encoding="utf-8")
            table = tomllib.loads(text).get("tool", {}).get("cruft", {})
        except FileNotFoundError:
            table = {}
        except ValueError as error:
            raise StoppedError(f"pyproject.toml can't be read: {error}. Nothing was done.") from None
        found: list[str] = []
        for where, entries in (
            ("pyproject.toml", table.get("skip", [])),
            (".cruft.json", self.link.get("skip", [])),
        ):
            if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
                raise StoppedError(f"`skip` in {where} has to be a list of paths. Nothing was done.")
            found += entries
        return found

    def keep(self, root: Path, *parent: str) -> str:
        """Make a commit of all files below *root*, which no branch has, and return its name."""
        extra = {"environment": {"GIT_INDEX_FILE": f"{root}.index", **NOBODY}}
        repository = self.git("rev-parse", "--absolute-git-dir")
        there = ("--git-dir", repository, "--work-tree", root, "-c", "core.sparseCheckout=false")
        self.git(*there, "add", "--all", "--force", ".", cwd=root, **extra)
        tree = self.git("write-tree", **extra)
        parents = (word for name in parent for word in ("-p", name))
        return self.git("commit-tree", tree, *parents, "-m", "Render", **extra)

    def unmerged(self) -> dict[str, dict[str, str]]:
        """Return the files with a conflict, each with the blobs of base (1), service (2) and template (3)."""
        found: dict[str, dict[str, str]] = {}
        for entry in self.git.names("ls-files", "--unmerged"):
            facts, _, name = entry.partition("\t")
            _mode, blob, stage = facts.split(" ")
            found.setdefault(name, {})[stage] = blob
        return found


class Template:
    """The template's history, in a clone that nothing is written to."""

    def __init__(self, service: Service, clone: Path, checkout: str | None) -> None:
        self.clone, self.git = clone, Git(clone, is_bare=not (clone / ".git").exists())
        self.old = service.commit
        if not self.git.accepts("cat-file", "-e", f"{self.old}^0"):
            raise StoppedError(
                f"The template at {service.template} has no commit {self.old}: its history was"
                " rewritten, or it was rendered from another copy. Put a commit that it has into .cruft.json."
            )
        self.checkout = checkout or next(iter(releases(self.git)), None)
        self.new = self._commit(self.checkout or "HEAD")
        self.name = self.checkout or self.new[:12]
        self.directory: str | None = service.link.get("directory")

    def _commit(self, name: str) -> str:
        """Find a tag, a commit or a branch; of all branches but one, a clone has those of `origin` only."""
        for candidate in (name, f"origin/{name}"):
            if self.git.accepts("rev-parse", "--quiet", "--verify", f"{candidate}^0"):
                return self.git("rev-parse", "--quiet", "--verify", f"{candidate}^0")
        raise StoppedError(f"The template has no tag, branch or commit {name}. Nothing was changed.")

    def _read(self, commit: str, name: str) -> str:
        path = f"{commit}:{self.directory}/{name}" if self.directory else f"{commit}:{name}"
        return self.git.read("cat-file", "blob", path) if self.git.accepts("cat-file", "-e", path) else ""

    def is_behind(self) -> bool:
        """Tell whether the service has everything of the wanted version already."""
        return self.git.accepts("merge-base", "--is-ancestor", self.new, self.old)

    def taken_back(self) -> list[str]:
        """Return the commits that the service has and the wanted version has not, in this or another form."""
        missing = ("--cherry-pick", "--right-only", "--no-merges", "--oneline", f"{self.new}...{self.old}")
        return self.git("rev-list", *missing).splitlines()

    def changes(self) -> str:
        """Return the lines that the changelog has now and had not at the service's version."""
        old, new = (self._read(commit, "CHANGELOG.md").splitlines() for commit in (self.old, self.new))
        codes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        lines = [line for kind, _, _, start, end in codes if kind != "equal" for line in new[start:end]]
        return "\n".join(lines) or "The changelog says nothing."

    def check(self, answers: Mapping[str, str], changed: Mapping[str, str]) -> None:
        """Raise StoppedError if the wanted version doesn't ask for, or doesn't offer, one of the answers."""
        questions = json.loads(self._read(self.new, "cookiecutter.json") or "{}")
        asked = [name for name in questions if not name.startswith("_")]
        problems = [
            f"{name}: {self.name} does not ask for it, but for {', '.join(asked)}"
            for name in changed
            if name not in asked
        ]
        for name in asked:
            offered = questions[name]
            if isinstance(offered, list) and answers.get(name, offered[0]) not in offered:
                other = json.dumps({name: offered[0]})
                problems.append(
                    f"{name}: {self.name} does not offer {answers[name]!r}, but {', '.join(offered)}."
                    f" Choose one, for example: --variables-to-update '{other}'"
                )
        if problems:
            raise StoppedError("\n".join([*problems, "Nothing was changed."]))

    def render(self, work: Path, wanted: Mapping[Path, tuple[str, Mapping[str, str]]]) -> None:
        """Make of each folder a render of a commit with these answers."""
        renders = [
            {
                "template_git_url": str(self.clone),
                "output_dir": str(work / "rendered" / folder.relative_to(work).parts[0]),
                "checkout": commit,
                "directory": self.directory,
                "extra_context": {name: value for name, value in answers.items() if not name.startswith("_")},
            }
            for folder, (commit, answers) in wanted.items()
        ]
        command = (UV, "run", "--quiet", "--no-project", *WITH_CRUFT, "python", "-c", RENDER)
        # cookiecutter leaves the hooks that it has run in the folder for temporary files.
        run(*command, cwd=work, given=json.dumps(renders), environment={"TMPDIR": str(work)})
        for folder in wanted:
            (project,) = (work / "rendered" / folder.relative_to(work).parts[0]).iterdir()
            folder.parent.mkdir(parents=True, exist_ok=True)
            project.rename(folder)


def fetch(service: Service, into: Path, is_fetched: bool) -> Path:
    """Copy the template's history by way of the service's repository, whose git settings count for it too."""
    git = service.git
    if not is_fetched:
        wanted = (f"+{name}:{REFS}{name.removeprefix('refs/')}" for name in FETCHED)
        options = ("--quiet", "--prune", "--no-tags", "--no-recurse-submodules")
        git("fetch", *options, service.template, *wanted)
    git("init", "--quiet", "--bare", into)
    kept = (f"+{REFS}{name}:refs/{name}" for name in ("heads/*", "tags/*"))
    copy = Git(into)
    # By a file: git asks whose a folder is that it fetches from, without the settings in the environment.
    git("bundle", "create", "--quiet", into / "bundle", f"--glob={REFS}*")
    copy("fetch", "--quiet", "--no-tags", into / "bundle", *kept, f"{REFS}HEAD")
    copy("update-ref", "--no-deref", "HEAD", git("rev-parse", f"{REFS}HEAD"))
    return into


def forget(git: Git) -> None:
    """Remove what was fetched from the service's repository."""
    listed = git("for-each-ref", "--format=delete %(refname)", REFS)
    git("update-ref", "--no-deref", "--stdin", given=f"{listed}\n" if listed else "")


def remove(names: Iterable[str], root: Path) -> None:
    """Remove files and folders below *root*; a name with a star is a pattern, as it is for cruft."""
    for name in names:
        try:
            paths = [*root.glob(name.lstrip("/"))] if "*" in name else [root / name.lstrip("/")]
        except ValueError as error:
            raise StoppedError(f"`skip`: {name!r} is no pattern: {error}. Nothing was changed.") from None
        for path in paths:
            if root not in Path(os.path.normpath(path)).parents or not os.path.lexists(path):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def files_of(root: Path, path: Path) -> set[str]:
    """Return the files at or below *path*, by their names below *root*."""
    return {str(each.relative_to(root)) for each in (path, *path.rglob("*")) if not each.is_dir()}


def in_the_way(service: Service, old: set[str], new: set[str]) -> Iterator[str]:
    """Yield what is not git's, or no folder, where the template has a new file or folder.

    A file of the template's own may become a folder, and the other way round.
    """
    tracked = {*service.git.names("ls-files")}
    for name in new - old:
        path = service.folder / name
        if os.path.lexists(path) and name not in tracked and not files_of(service.folder, path) <= old:
            yield name
        for parent in list(PurePath(name).parents)[:-1]:
            above = service.folder / parent
            if (above.is_symlink() or (above.exists() and not above.is_dir())) and str(parent) not in old:
                yield str(parent)


def update(service: Service, template: Template, answers: Mapping[str, str], work: Path) -> list[str]:
    """Merge the difference between both renders, and return the lines whose version both had raised.

    Raises:
        StoppedError: A part of the update could not be merged.
    """
    git, own = service.git, service.skipped()
    tracked = {PurePath(name) for name in git.names("ls-files")}
    folders = {folder for name in tracked for folder in name.parents}
    if PurePath("src", service.package) not in folders:
        raise StoppedError(
            f"There is no src/{service.package}, which .cruft.json names. If the package has another name"
            " now, write that into .cruft.json (package_name), and commit it. Nothing was changed."
        )
    roots = work / "old", work / "new"
    old, new = (root / git("rev-parse", "--show-prefix") for root in roots)
    print(f"Rendering {template.old[:12]} and {template.name} of the template ...", flush=True)
    template.render(work, {old: (template.old, service.answers), new: (template.new, answers)})
    link = json.loads((new / ".cruft.json").read_text(encoding="utf-8"))
    link["context"]["cookiecutter"]["_template"] = service.template
    link = (
        service.link | {name: link[name] for name in ("commit", "context")} | {"checkout": template.checkout}
    )
    # What the team owns or has deleted is no part of the difference; what a sparse checkout leaves out is.
    every = {path.relative_to(old) for path in old.rglob("*")}
    dropped = [str(path) for path in every - tracked - folders]
    for render in (old, new):
        remove([".cruft.json", *own, *dropped], render)
    if found := {*in_the_way(service, files_of(old, old), files_of(new, new))}:
        raise StoppedError(
            f"In the way of new files of the template: {', '.join(sorted(found))}. Move or delete what is"
            " there. Nothing was changed."
        )
    before = service.keep(roots[0])
    complaint = git.complaint("cherry-pick", "--no-commit", service.keep(roots[1], before))
    conflicts = service.unmerged()
    if complaint and not conflicts:
        raise StoppedError(f"git can't merge the update:\n{complaint}")
    both: list[str] = []
    for name, blobs in [*conflicts.items()]:
        texts = [git.read("cat-file", "blob", blobs[stage]) for stage in sorted(blobs)]
        if blobs.keys() == {"1", "2"} and differ_in_versions_only(*texts):
            git("rm", "--quiet", "--force", "--", name)
            del conflicts[name]
        elif blobs.keys() == {"1", "2", "3"} and (merged := merge_versions(work / "merge", *texts)):
            (service.folder / name).write_bytes(merged.text.encode("utf-8", "surrogateescape"))
            both += [f"{name}: {line}" for line in merged.both]
            if merged.is_clean:
                git("add", "--", name)
                del conflicts[name]
    text = json.dumps(link, ensure_ascii=False, indent=2)
    (service.folder / ".cruft.json").write_text(f"{text}\n", encoding="utf-8")
    if conflicts:
        raise StoppedError(
            "Not all of the update could be merged:\n"
            + "".join(f"  {name}: {conflict(blobs)}\n" for name, blobs in sorted(conflicts.items()))
            + "Nothing is lost. Edit these files, `git add` them, run `uv lock`, write .env.example again,\n"
            + "run the tests, and commit all with .cruft.json. To give up: git reset --hard"
        )
    return both


def conflict(blobs: Mapping[str, str]) -> str:
    """Say what kind of conflict it is, by what there is of the file: base, service, template."""
    if blobs.keys() == {"1", "2"}:
        return "changed here, and the template has no such file any more: `git rm` it or `git add` it"
    return "changed here and in the template"


def remake(service: Service) -> None:
    """Make again what is made from other files.

    Raises:
        StoppedError: The dependencies can't be locked, or the service can't be imported.
    """
    run(UV, "lock", cwd=service.folder, show=True)
    command = (UV, "run", "python", "-m", service.package, "config", "--format", "dotenv")
    example = run(*command, cwd=service.folder)
    (service.folder / ".env.example").write_text(example, encoding="utf-8")


def try_out(service: Service) -> None:
    """Start what the service's tests need, and run them, as `make test` does.

    Raises:
        StoppedError: A test fails, or what it needs does not start.
    """
    if (service.folder / "compose.test.yaml").exists():
        try:
            run("make", "services", cwd=service.folder, show=True)
        except StoppedError as error:
            raise StoppedError(
                f"{error}: what compose.test.yaml lists does not start. If all of it runs already:"
                " make update COMPOSE_TEST="
            ) from None
    run(UV, "run", "pytest", cwd=service.folder, show=True)


def read_answers(text: str | None) -> dict[str, str]:
    """Read what `--variables-to-update` was given, if anything; raise StoppedError if it is no object."""
    try:
        answers = json.loads(text or "{}")
        if isinstance(answers, dict):
            return answers
    except ValueError:
        pass
    raise StoppedError(
        f'--variables-to-update takes a JSON object, such as \'{{"deploy_to": "swarm"}}\', and not {text!r}.'
    )


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
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--template", metavar="CLONE", type=Path, help="a fresh clone; default: make one")
    source.add_argument("--fetched", action="store_true", help=f"the template is in {REFS} already")
    parser.add_argument("--no-suite", action="store_true", help="do not run the tests")
    parser.add_argument("--propose", action="store_true", help="commit, push and open a pull request")
    options = parser.parse_args(arguments)
    git = Git(Path.cwd())
    git("rev-parse", "--git-dir")
    try:
        return bring(options)
    finally:
        forget(git)


def bring(options: argparse.Namespace) -> int:
    """Do what the options say, and return the exit status."""
    service = Service(Path.cwd())
    if changed := service.changed():
        names = "".join(f"  {name}\n" for name in changed[:20])
        raise StoppedError(
            f"There are changes that are not committed:\n{names}"
            "Commit or stash them first (git stash --include-untracked). Nothing was done."
        )
    if unfinished := service.unfinished():
        raise StoppedError(
            f"A {unfinished} is not finished. `git {unfinished} --continue` or `git {unfinished} --abort`"
            " ends it. Nothing was done."
        )
    changed_answers = read_answers(options.variables_to_update)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder).resolve()
        clone = (
            options.template.resolve()
            if options.template
            else fetch(service, work / "template", options.fetched)
        )
        template = Template(service, clone, options.checkout)
        if template.is_behind() and not changed_answers:
            print(f"Nothing to do: the service has all of {template.name}.")
            return 0
        body = f"{template.changes()}\n"
        if lost := template.taken_back():
            listed = "".join(f"- {line}\n" for line in lost[:20])
            if options.checkout is None:
                raise StoppedError(
                    f"{template.name} lacks commits of the template that the service has"
                    f" ({service.link.get('checkout') or template.old[:12]}), and would take them back:\n"
                    f"{listed}"
                    "Say which version you want, with --checkout. Nothing was changed."
                )
            body += f"\nThis takes back what {template.name} lacks:\n\n{listed}"
        answers = service.answers | changed_answers
        template.check(answers, changed_answers)
        proposal = Proposal(service.git) if options.propose else None
        if proposal and (why := proposal.others()):
            print(why)
            return 0 if proposal.is_open else 1
        if both := update(service, template, answers, work):
            body += "\nWhere both had raised a version, the newer one stays:\n\n"
            body += "".join(f"- `{line}`\n" for line in both)
    service = Service(Path.cwd())
    passed = True
    try:
        remake(service)
        if options.no_suite:
            suite = "The suite was not run."
        else:
            try_out(service)
            suite = "The suite passes with it."
    except StoppedError as error:
        passed = False
        suite = (
            f"**The suite fails with it** ({error}): what the changelog asks of a service is probably still"
            " to be done."
        )
    title = f"Update to {template.name} of the template"
    body = f"{suite}\n\n{body}"
    print(f"\n{title}\n\n{body}")
    if proposal:
        proposal.renew(title, body)
    return 0 if passed else 1


if __name__ == "__main__":
    if not sys.flags.utf8_mode:
        # Answers and names of files are UTF-8, whatever the locale says.
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    # Then too, what was fetched goes in the end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except StoppedError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. `git status` shows what is done; `git reset --hard` takes it back.")
