"""docs/reliability.md names tests that exist, and all that do."""

import ast
import re
from pathlib import Path

from conftest import ROOT


def test_the_page_names_every_test() -> None:
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\btest_\w+", page))
    there = {
        part.name
        for path in Path(__file__).parent.glob("test_*.py")
        for part in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(part, ast.FunctionDef) and part.name.startswith("test_")
    }
    assert there - named == {"test_the_page_names_every_test"}
    assert named <= there
