"""Let all version ranges, the template's and the service's, take in what is newest, if the tests then pass.

The lower ends stay: that they are true is tested too, with the lowest versions that they allow. The upper end
is the next release that may break something: the next major one, or the next minor one of what is still at 0.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]
FILES = (ROOT / "pyproject.toml", ROOT / "{{cookiecutter.project_slug}}" / "pyproject.toml")
RANGE = re.compile(r'"(?P<name>[a-z0-9.-]+)(?P<low>>=[0-9.]+),<(?P<end>[0-9.]+)"')
MATRIX = ("-m", "pytest", "tests/test_generated.py", "tests/test_dependencies.py")


def newest(names: Iterable[str]) -> dict[str, Version]:
    """Look up the newest release of each distribution."""
    command = (
        Path(sys.executable).with_name("uv"),
        "pip",
        "compile",
        "--quiet",
        "--no-deps",
        "--no-header",
        "-",
    )
    done = subprocess.run(
        command, input="\n".join(sorted(names)), stdout=subprocess.PIPE, text=True, check=True
    )
    pinned = (line.split("==") for line in done.stdout.splitlines() if "==" in line)
    return {name: Version(version) for name, version in pinned}


def end_after(version: Version) -> str:
    """Return the first version that may break what works with *version*."""
    return f"{version.major + 1}" if version.major else f"0.{version.minor + 1}"


def widened(text: str, releases: Mapping[str, Version]) -> str:
    """Return *text* with each range extended, where the newest release is not in it."""

    def extend(found: re.Match[str]) -> str:
        release = releases.get(found["name"])
        if release is None or release < Version(found["end"]):
            return found[0]
        print(f"{found['name']}: <{found['end']} becomes <{end_after(release)}, for {release}")
        return f'"{found["name"]}{found["low"]},<{end_after(release)}"'

    return RANGE.sub(extend, text)


def main() -> int:
    """Widen, test, and take it back when the tests fail."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="NAME", help="leave all other distributions as they are")
    parser.add_argument("tests", nargs="*", help="run this instead of the tests that bake and run services")
    asked = parser.parse_args()
    before = {path: path.read_text(encoding="utf-8") for path in FILES}
    names = {found["name"] for text in before.values() for found in RANGE.finditer(text)}
    if asked.only:
        names &= {asked.only}
    releases = newest(names)
    after = {path: widened(text, releases) for path, text in before.items()}
    if after == before:
        print(f"The newest releases of {len(releases)} distributions are all within their ranges.")
    for path, text in after.items():
        path.write_text(text, encoding="utf-8")
    try:
        passed = subprocess.run(asked.tests or (sys.executable, *MATRIX), cwd=ROOT).returncode == 0
    except BaseException:
        passed = False
        raise
    finally:
        if not passed:
            for path, text in before.items():
                path.write_text(text, encoding="utf-8")
    if not passed and after != before:
        print(
            "The tests fail with these, so nothing was changed. One at a time: make deps ONLY=NAME",
            file=sys.stderr,
        )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
