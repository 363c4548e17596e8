"""Each named combination passes its own suite, types, lint and rules."""

from pathlib import Path

import pytest
from conftest import Project

STEPS = (
    ("sync", "--quiet"),
    ("run", "pytest"),
    ("run", "mypy"),
    ("run", "ruff", "check"),
    ("run", "ruff", "format", "--check"),
    ("run", "lint-imports"),
)


@pytest.mark.slow
def test_a_generated_project_passes_its_own_checks(project: Project, uv: Path) -> None:
    for step in STEPS:
        project.run(uv, *step)
