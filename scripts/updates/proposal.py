"""The pull request with an update."""

import json
import re

from updates.commands import Git, StoppedError, run

BRANCH = "template-update"
# What an update writes and git has not merged. What else is new now was left by the suite.
MADE = (".cruft.json", ".env.example", "uv.lock")
# GitHub takes 65,536 characters for the text of a pull request; the rest is in the template's changelog.
MOST_CHARACTERS = 60_000


def branch_of(folder: str) -> str:
    """Return the branch for a service in this folder of its repository: each service has its own."""
    return "-".join((BRANCH, *re.findall(r"\w+", folder)))


class Proposal:
    """The branch with the update on `origin`, and its pull request.

    Args:
        git: git in the service's folder, where the update is not begun yet.
    """

    def __init__(self, git: Git) -> None:
        self._git, self._start = git, git("rev-parse", "HEAD")
        self._branch = branch_of(git("rev-parse", "--show-prefix"))
        self._ref = f"refs/heads/{self._branch}"
        # What is there now. Nothing else is pushed over.
        self._there = "".join(git("ls-remote", "origin", self._ref).split()[:1])
        if self._there:
            git("fetch", "--quiet", "--no-tags", "origin", self._ref)
        found = json.loads(self._gh("list", "--head", self._branch, "--json", "number,isCrossRepository"))
        # A fork of the service may have a branch of the same name.
        self._number = [str(one["number"]) for one in found if not one["isCrossRepository"]][:1]
        self.is_open = bool(self._number)

    def _gh(self, *arguments: str, show: bool = False) -> str:
        return run("gh", "pr", *arguments, cwd=self._git.folder, show=show)

    def others(self) -> str:
        """Return why the branch has to be left alone: commits of others. Otherwise return nothing."""
        if not self._there:
            return ""
        form = ("--format=%an <%ae>%n%cn <%ce>", f"{self._start}..{self._there}")
        lines = self._git("rev-list", *form).splitlines()
        me = "".join(re.findall(r"<.*>", self._git("var", "GIT_COMMITTER_IDENT")))
        others = {line for line in lines if not line.startswith("commit ") and not line.endswith(me)}
        if not others:
            return ""
        what = f"Pull request {self._number[0]}" if self.is_open else "The branch"
        return (
            f"{what} has commits of {', '.join(sorted(others))}, so {self._branch} was left as it is."
            " Merge it, or take what you need and delete the branch: then the next run proposes what is"
            " missing."
        )

    def renew(self, title: str, body: str) -> None:
        """Commit and push the update, if it is another one than the branch has, and open the pull request."""
        git = self._git
        branch = git("branch", "--show-current")
        git("switch", "--quiet", "--detach")
        try:
            git("add", "--", *git.names("ls-files", "--modified", "--others", "--exclude-standard", *MADE))
            git("commit", "--quiet", "--message", title)
            is_new = not self._there or self._change(self._there) != self._change("HEAD")
            if is_new:
                self._push()
            else:
                print(f"{self._branch} has this update already: nothing was pushed.")
        finally:
            if branch:
                git("switch", "--quiet", branch)
        if len(body) > MOST_CHARACTERS:
            body = f"{body[:MOST_CHARACTERS]}\n\n(The rest is in CHANGELOG.md of the template.)"
        if is_new or not self.is_open:
            what = ("edit", *self._number) if self.is_open else ("create", "--head", self._branch)
            self._gh(*what, "--title", title, "--body", body, show=True)

    def _change(self, tip: str) -> str:
        """Return what a branch changes, file by file, since it left the service's."""
        if self._git.complaint("merge-base", self._start, tip):
            return tip
        return self._git("diff-tree", "-r", "--no-renames", self._git("merge-base", self._start, tip), tip)

    def _push(self) -> None:
        lease = f"--force-with-lease={self._ref}:{self._there}"
        try:
            self._git("push", "--quiet", lease, "origin", f"HEAD:{self._ref}")
        except StoppedError as error:
            raise StoppedError(
                f"{error}\nA token that may write contents pushes this. When the update changes files in"
                " .github/workflows,\nGitHub wants a token with the permission `workflows` as well: see the"
                " head of template-update.yml.\nIf the branch has changed meanwhile, run it once more."
            ) from None
