"""Lines that both a service's Dependabot and the template raise: of two versions the newer one stays."""

import difflib
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

# What a bot raises, as it stands in a line: a requirement, an image, an action. Each has a name and a rest.
PIN = re.compile(
    r"""["'](?P<requirement>[A-Za-z0-9][\w.-]*(?:\[[\w, -]*\])?)\s*(?:(?:[<>=!~]=|[<>])\s*[\w.*+!-]+[\s,]*)+
    |(?:\bFROM\s+(?:--platform=\S+\s+)?|\bimage:\s*["']?|--from=|IMAGE=["']?)
     (?P<image>[\w.-]+(?::\d+(?=/))?(?:/[\w.-]+)*):[\w.-]+(?:@sha256:[0-9a-f]{64})?
    |\buses:\s*["']?(?P<action>[\w./-]+)@[\w./-]+(?:["']?\s+\#\s*v?\d[\w.-]*)?""",
    re.VERBOSE,
)
# The digests and versions in that rest.
TOKEN = re.compile(
    r"""\b[0-9a-f]{64}\b|\b[0-9a-f]{40}\b
    |\bv?(?P<release>\d+(?:\.\d+)*)
     (?:[-.]?(?P<stage>dev|alpha|a|beta|b|rc|c|post)[-.]?(?P<number>\d*)(?![A-Za-z]))?""",
    re.VERBOSE,
)
# A stage by its first letter; a version without one is released.
STAGES = {"d": 0, "a": 1, "b": 2, "c": 3, "r": 3, "": 4, "p": 5}


def with_versions(line: str, put: Callable[[str], str]) -> str:
    """Replace the versions and digests of a line's pins, which stand behind their names."""

    def replace(pin: re.Match[str]) -> str:
        start = pin.end(pin.lastgroup or 0)
        return line[pin.start() : start] + TOKEN.sub(lambda token: put(token[0]), line[start : pin.end()])

    return PIN.sub(replace, line)


def shape(line: str) -> str:
    """Return what is left of a line when its versions don't matter."""
    return with_versions(line, lambda _: "\0")


def tokens(line: str) -> list[str]:
    """Return the versions and digests of a line, in their order."""
    rests = (line[pin.end(pin.lastgroup or 0) : pin.end()] for pin in PIN.finditer(line))
    return [token[0] for rest in rests for token in TOKEN.finditer(rest)]


def order(token: str) -> tuple[tuple[int, ...], int, int]:
    """Return what versions are compared by; for a digest, which is no version, always the same."""
    found = TOKEN.fullmatch(token)
    if found is None or not found["release"]:
        return (), 0, 0
    release = tuple(int(part) for part in found["release"].split("."))
    return release, STAGES[(found["stage"] or "")[:1]], int(found["number"] or 0)


def newer(one: str, other: str) -> str | None:
    """Return the newer of two lines that differ in versions only; None if there is no telling."""
    pairs = [*zip(tokens(one), tokens(other), strict=True)]
    ordered = [(order(left), order(right)) for left, right in pairs]
    if one == other or all(left >= right for left, right in ordered):
        # The same version with another digest: a tag was moved, and somebody has to look why.
        return one if one == other or any(left > right for left, right in ordered) else None
    if all(left <= right for left, right in ordered):
        return other
    if "@" in one:
        return None
    # One has the higher lower end of a range, and the other one the higher upper end.
    best = iter([max(pair, key=order) for pair in pairs])
    return with_versions(one, lambda _: next(best))


def aligned(one: Sequence[str], other: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the places of lines that are the same but for their versions."""
    matcher = difflib.SequenceMatcher(None, [*map(shape, one)], [*map(shape, other)], autojunk=False)
    for start, there, size in matcher.get_matching_blocks():
        yield from ((start + index, there + index) for index in range(size))


def differ_in_versions_only(one: str, other: str) -> bool:
    return [*map(shape, one.split("\n"))] == [*map(shape, other.split("\n"))]


def pins(lines: Iterable[str]) -> dict[str, str]:
    """Return the pins of some lines by their names."""
    return {pin[pin.lastgroup or 0]: pin[0] for line in lines for pin in PIN.finditer(line)}


class Merged(NamedTuple):
    """A file in which both sides had raised versions; *both* are the lines on which they differed."""

    text: str
    both: list[str]
    is_clean: bool


def merge_versions(work: Path, base: str, ours: str, theirs: str) -> Merged | None:
    """Merge a file so that of two versions the newer one stays; None if there is no telling which is.

    The service's versions are put back first, so that none of them is in the way of the merge of all else.
    In the result, the newer of both is put in.
    """
    old, mine = base.split("\n"), ours.split("\n")
    raised = {here: old[there] for here, there in aligned(mine, old) if mine[here] != old[there]}
    if not raised:
        return None
    plain = "\n".join(raised.get(here, line) for here, line in enumerate(mine))
    work.mkdir(exist_ok=True)
    for name, text in (("service", plain), ("before", base), ("template", theirs)):
        (work / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    command = ("git", "merge-file", "-p", "-q", "service", "before", "template")
    done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, check=False)
    if not 0 <= done.returncode < 128:
        return None
    merged = done.stdout.decode("utf-8", "surrogateescape").split("\n")
    both: dict[str, None] = {}
    for here, there in aligned(merged, mine):
        if (before := raised.pop(there, None)) is None:
            continue
        if (line := newer(merged[here], mine[there])) is None:
            return None
        if before != merged[here] != mine[there]:
            both[line.strip()] = None
        merged[here] = line
    # What the template has dropped or written anew has no line any more, and must not be older now.
    now = pins(merged)
    for name, pin in pins(mine[there] for there in raised).items():
        if name in now and [*map(order, tokens(now[name]))] < [*map(order, tokens(pin))]:
            return None
    return Merged("\n".join(merged), [*both], done.returncode == 0)
