"""Writes the table at the end of docs/contract.md: which tests show what the page promises.

A test module says in its docstring which section it is about: ``Contract, section 7: ...``. The names of its
tests are what they show. Without an argument, the script says whether the table is current; ``--write`` makes
it so. Either way it looks whether the tests are there that docs/promises.md names.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE, OTHER_PAGE = ROOT / "docs" / "contract.md", ROOT / "docs" / "promises.md"
TESTS = (ROOT / "tests", ROOT / "{{cookiecutter.project_slug}}" / "tests")
ABOUT = re.compile(r'"""Contract, sections? ([\d, ]+): (.+?)\.?(?:""")?\n')
HEADING = "## Shown by\n"


def promises() -> Iterator[tuple[int, str, str, list[str]]]:
    """Yield section, promise, file, and what its tests show, for each section that a module names."""
    for path in sorted(path for folder in TESTS for path in folder.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if about := ABOUT.match(text):
            shown = [name.replace("_", " ") for name in re.findall(r"^def test_(\w+)", text, re.M)]
            for section in re.findall(r"\d+", about[1]):
                yield int(section), about[2].replace("<", "&lt;"), path.relative_to(ROOT).as_posix(), shown


def table(sections: list[int]) -> str:
    """Return the table; raise SystemExit if no module is about one of the page's *sections*."""
    rows = sorted(promises())
    if missing := set(sections) - {section for section, *_ in rows}:
        sys.exit(f"docs/contract.md: no test is about section {', '.join(map(str, sorted(missing)))}.")
    lines = [
        f"| {section} | {promise} | `{file}`: {'; '.join(shown)} |" for section, promise, file, shown in rows
    ]
    return "\n".join(["| section | promise | tests |", "|---|---|---|", *lines]) + "\n"


def lost(page: str) -> list[str]:
    """Return the tests that a page names, as `test_file.py::test_name`, and that are not there."""
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    if len(named) != page.count(".py::"):
        return ["one that is not written as `test_file.py::test_name`"]
    files = {name: TESTS[0] / name for name, _ in named}
    texts = {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.exists()}
    return [f"{name}::{test}" for name, test in named if f"\ndef {test}(" not in texts.get(name, "")]


def main(arguments: list[str]) -> None:
    """Write the table, or exit with 1 and a hint if it is not current, or if a named test is not there."""
    if not_there := lost(OTHER_PAGE.read_text(encoding="utf-8")):
        sys.exit(f"docs/promises.md names tests that are not there: {', '.join(not_there)}")
    page = PAGE.read_text(encoding="utf-8")
    before = page.partition(HEADING)[0].rstrip() + "\n\n"
    sections = [int(number) for number in re.findall(r"^## (\d+)\.", before, re.M)]
    current = f"{before}{HEADING}\nThis table is made by `scripts/promises.py --write`.\n\n{table(sections)}"
    if "--write" in arguments:
        PAGE.write_text(current, encoding="utf-8")
    elif page != current:
        sys.exit("The table in docs/contract.md is not current: run scripts/promises.py --write")


if __name__ == "__main__":
    main(sys.argv[1:])
