"""Show which services are behind their template, which have an update pending, and how their CI does.

    python scripts/fleet.py ../one ../two ADDRESS      folders, and addresses that git can clone
    python scripts/fleet.py --list services.txt        the same, one a line
    python scripts/fleet.py --organisation NAME        what has a .cruft.json among its repositories on GitHub
    ... --json                                         for programs
    ... --html fleet.html                              as a page, too

It reads the template's releases from the clone that it is part of: `git fetch --tags` first. It asks gh,
which must be logged in, what GitHub knows (pull requests, CI). Exit status: 1 if a service could not be read.
"""

import argparse
import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from updates.commands import StoppedError, here, releases
from updates.proposal import branch_of

ROOT = Path(__file__).resolve().parents[1]
GITHUB = re.compile(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$")
UNKNOWN = "?"
AT_ONCE = 8
# A server that takes a connection and never answers must not hold up all others.
LIMIT_SECONDS = 120
STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 20%, transparent) }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } div { overflow-x: auto }
td, th { text-align: left; padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line) }
.bad { color: light-dark(#b3261e, #ff8a80); font-weight: 600 }
.good { color: light-dark(#1a7f37, #7ee787) }
"""


@dataclass
class Row:
    """What is known of one service; `?` is what could not be asked.

    It is *behind* by so many releases of the template, or by so many commits as long as there is no release.
    """

    service: str
    repository: str
    template: str = UNKNOWN
    age_days: int = 0
    behind: int = 0
    withdrawn: bool = False
    update: str = UNKNOWN
    ci: str = UNKNOWN
    problem: str = ""


def ask(*command: str, cwd: Path = ROOT) -> str:
    """Run a command that shows nothing to people, and asks them for no password.

    Raises:
        StoppedError: It failed, or there is no such program.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=here(GIT_TERMINAL_PROMPT="0"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise StoppedError(f"{command[0]} is not on the PATH.") from None
    except subprocess.TimeoutExpired:
        raise StoppedError(f"{' '.join(command)}: no answer in {LIMIT_SECONDS} s") from None
    if done.returncode:
        raise StoppedError(f"{' '.join(command)}: exit status {done.returncode}")
    return done.stdout.strip()


class Template:
    """The releases of the template, in a clone of it."""

    def __init__(self, clone: Path) -> None:
        self._git = functools.partial(ask, "git", cwd=clone)
        self._git("rev-parse", "HEAD")
        self.releases = releases(self._git)
        changelog = (clone / "CHANGELOG.md").read_text(encoding="utf-8")
        self._withdrawn = set(re.findall(r"^## \[?v?([\w.-]+)\]?.*\[YANKED\]", changelog, flags=re.MULTILINE))

    def describe(self, commit: str, row: Row) -> None:
        """Say in *row* what this commit of the template is.

        Raises:
            StoppedError: The clone has no such commit.
        """
        if not re.fullmatch("[0-9a-f]{7,64}", commit):
            raise StoppedError("its .cruft.json names no commit")
        try:
            # What git shows to people has more in it where log.showSignature is set.
            (_, seconds) = self._git("rev-list", "--max-count=1", "--format=%ct", commit, "--").split("\n")
        except StoppedError:
            why = f"this clone of the template has no commit {commit[:12]}"
            raise StoppedError(f"{why}: `git fetch`, or it is another template") from None
        row.age_days = (datetime.now(UTC) - datetime.fromtimestamp(int(seconds), UTC)).days
        try:
            row.template = self._git("describe", "--tags", "--match", "v[0-9]*", commit)
            release = self._git("describe", "--tags", "--match", "v[0-9]*", "--abbrev=0", commit)
            row.withdrawn = release.removeprefix("v") in self._withdrawn
        except StoppedError:
            row.template = commit[:12]
        if self.releases:
            row.behind = len(releases(self._git, f"--no-merged={commit}"))
        else:
            row.behind = int(self._git("rev-list", "--count", f"{commit}..HEAD"))


class GitHub:
    """What GitHub knows, asked by gh."""

    def _list(self, *command: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(ask("gh", *command) or "[]")
        return found

    def repositories(self, organisation: str) -> list[str]:
        wanted = ("--no-archived", "--limit", "1000", "--json", "nameWithOwner")
        return [one["nameWithOwner"] for one in self._list("repo", "list", organisation, *wanted)]

    def link(self, name: str) -> str:
        raw = ("-H", "Accept: application/vnd.github.raw")
        return ask("gh", "api", f"repos/{name}/contents/.cruft.json", *raw)

    def update(self, name: str, branch: str) -> str:
        """Return the address of the pull request with the template's update, if there is one."""
        wanted = ("--head", branch, "--state", "open", "--json", "url,isCrossRepository")
        found = self._list("pr", "list", "--repo", name, *wanted)
        # A fork of the service may have a branch of the same name.
        return next((one["url"] for one in found if not one["isCrossRepository"]), "")

    def ci(self, name: str) -> str:
        """Return how the last run of CI for the main branch went."""
        wanted = ("--workflow", "ci.yml", "--event", "push", "--limit", "1", "--json", "status,conclusion")
        runs = self._list("run", "list", "--repo", name, *wanted)
        return next((one["conclusion"] or one["status"] for one in runs), "never ran")


class Fleet:
    """Reads services, with what *template* and *github* know of them."""

    def __init__(self, template: Template, github: GitHub) -> None:
        self._template, self._github = template, github

    def of_organisation(self, organisation: str) -> list[Row]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            names = self._github.repositories(organisation)
            return [row for row in pool.map(self._of_github, names) if row is not None]

    def of_repositories(self, repositories: Iterable[str]) -> list[Row]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return [*pool.map(self._of_repository, repositories)]

    def _of_github(self, name: str) -> Row | None:
        """Return the row of a repository on GitHub; None if it is no service of a template."""
        try:
            text = self._github.link(name)
        except StoppedError:
            return None
        row = Row(name.rpartition("/")[2], name)
        self._complete(row, text, name, branch_of(""))
        return row

    def _of_repository(self, repository: str) -> Row:
        """Return the row of a folder, or of a repository that git can clone."""
        row = Row(Path(repository.removesuffix(".git")).absolute().name, repository)
        branch = branch_of("")
        try:
            if Path(repository).is_dir():
                # A bare repository has no folders below it to be in.
                prefix = ask("git", "rev-parse", "--show-prefix", cwd=Path(repository))
                branch = branch_of(prefix)
                text = ask("git", "show", f"HEAD:{prefix}.cruft.json", cwd=Path(repository))
                address = self._origin(Path(repository))
            else:
                with tempfile.TemporaryDirectory() as folder:
                    clone = (
                        "git",
                        "clone",
                        "--quiet",
                        "--depth=1",
                        "--no-checkout",
                        "--",
                        repository,
                        folder,
                    )
                    ask(*clone)
                    text = ask("git", "show", "HEAD:.cruft.json", cwd=Path(folder))
                address = repository
        except (StoppedError, OSError):
            row.problem = "its HEAD has no .cruft.json, or it is no repository that can be read"
            return row
        on_github = GITHUB.search(address)
        self._complete(row, text, on_github[1] if on_github else None, branch)
        if on_github is None and address:
            self._try(
                row,
                "update",
                lambda: ask("git", "ls-remote", "--heads", "--", address, branch) and "a branch",
            )
        return row

    def _origin(self, folder: Path) -> str:
        try:
            return ask("git", "remote", "get-url", "origin", cwd=folder)
        except StoppedError:
            return ""

    def _complete(self, row: Row, text: str, name: str | None, branch: str) -> None:
        try:
            commit = json.loads(text)["commit"]
            self._template.describe(commit, row)
        except StoppedError as error:
            row.problem = str(error)
        except (ValueError, KeyError, TypeError):
            row.problem = "its .cruft.json is not what cruft writes: `uvx cruft link TEMPLATE_URL` makes one"
        if name is not None:
            self._try(row, "update", lambda: self._github.update(name, branch))
            self._try(row, "ci", lambda: self._github.ci(name))

    def _try(self, row: Row, field: str, question: Any) -> None:
        """Leave a field unknown when nobody answers: the rest of the row is of use without it."""
        try:
            setattr(row, field, question() or "none")
        except (StoppedError, ValueError):
            setattr(row, field, UNKNOWN)


def summary(rows: Sequence[Row]) -> str:
    read = [row for row in rows if not row.problem]
    behind = [row for row in read if row.behind]
    oldest = max((row.age_days for row in read), default=0)
    text = f"{len(rows)} services: {len(read) - len(behind)} current, {len(behind)} behind"
    unread = f", {len(rows) - len(read)} could not be read" if len(rows) > len(read) else ""
    return f"{text}{unread}; the oldest template is {oldest} days old"


HEADINGS = ("service", "template", "days old", "behind", "update", "CI")


def cells(row: Row) -> tuple[str, ...]:
    if row.problem:
        return row.service, row.template, row.problem, "", row.update, row.ci
    template = f"{row.template} (withdrawn)" if row.withdrawn else row.template
    return row.service, template, str(row.age_days), str(row.behind), row.update, row.ci


def table(rows: Sequence[Row]) -> str:
    lines = [HEADINGS, *map(cells, rows)]
    # A problem is a sentence: it may be as long as it is.
    widths = [max(len(line[column]) for line in lines if line[3]) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def page(rows: Sequence[Row], now: datetime) -> str:
    """Return the table as HTML, without scripts."""

    def cell(row: Row, column: int, text: str) -> str:
        is_bad = (
            (column == 1 and row.withdrawn)
            or (column == 2 and bool(row.problem))
            or (column == 3 and row.behind > 0)
            or (column == 5 and text in {"failure", "timed_out", "startup_failure"})
        )
        is_good = (column == 3 and text == "0") or (column == 5 and text == "success")
        kind = " class=bad" if is_bad else " class=good" if is_good else ""
        shown = f"<a href='{escape(text)}'>pull request</a>" if text.startswith("https://") else escape(text)
        return f"<td{kind}>{shown}"

    body = "\n".join(
        "<tr>" + "".join(cell(row, column, text) for column, text in enumerate(cells(row))) for row in rows
    )
    head = "".join(f"<th>{heading}" for heading in HEADINGS)
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>Services and their template</title><style>{STYLE}</style>
<h1>Services and their template</h1>
<p>{escape(summary(rows))}. {now:%Y-%m-%d %H:%M} UTC.</p>
<div><table><tr>{head}
{body}
</table></div>
</html>
"""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "repositories", nargs="*", metavar="REPOSITORY", help="a folder, or an address for git"
    )
    parser.add_argument("--list", type=Path, metavar="FILE", help="a file with one repository a line")
    parser.add_argument("--organisation", help="all services of this organisation on GitHub")
    parser.add_argument(
        "--template", type=Path, metavar="CLONE", default=ROOT, help="another clone of the template"
    )
    parser.add_argument("--json", action="store_true", help="print JSON and no table")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")
    options = parser.parse_args(arguments)
    repositories = list(options.repositories)
    if options.list:
        lines = (line.strip() for line in options.list.read_text(encoding="utf-8-sig").splitlines())
        repositories += [line for line in lines if line and not line.startswith("#")]
    if not repositories and not options.organisation:
        parser.error("name some repositories, or a --list of them, or an --organisation")
    fleet = Fleet(Template(options.template), GitHub())
    rows = fleet.of_repositories(repositories)
    if options.organisation:
        rows += fleet.of_organisation(options.organisation)
    rows.sort(key=lambda row: (not row.problem, -row.behind, -row.age_days, row.service))
    if options.html:
        options.html.write_text(page(rows, datetime.now(UTC)), encoding="utf-8")
    print(
        json.dumps([asdict(row) for row in rows], indent=2)
        if options.json
        else f"{table(rows)}\n\n{summary(rows)}"
    )
    return 1 if any(row.problem for row in rows) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except StoppedError as error:
        sys.exit(f"{error}")
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
