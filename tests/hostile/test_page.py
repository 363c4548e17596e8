"""docs/reliability.md names all tests of this folder, and no test that does not exist."""

import ast
import re
from pathlib import Path

from kit.project import ROOT

HERE = Path(__file__).parent


def names_in(files: list[Path]) -> set[str]:
    return {
        part.name
        for path in files
        for part in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(part, ast.FunctionDef) and part.name.startswith("test_")
    }


def test_the_page_names_every_test() -> None:
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\btest_\w+", page))
    # These are about limits of HAProxy that are no fault of anybody's.
    unnamed = {"test_the_page_names_every_test", "test_a_client_that_waits_to_be_asked_for_its_body_is_asked"}
    assert names_in(list(HERE.glob("test_*.py"))) - named == unnamed
    assert named <= names_in(list(HERE.parent.rglob("test_*.py")))
