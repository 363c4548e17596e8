"""A service from elsewhere moves in as docs/adopting.md says, and gets updates from then on."""

import re
import shutil
from pathlib import Path

import pytest
from kit.project import ROOT, Project, Renders, git
from kit.updates import commit, contents, cruft, shell, template_with_releases, update

# A service as there are many, with settings and a password from variables, prints, a port of its own choice;
# and the same service, moved to where the page says.
ADOPTED = ROOT / "tests" / "apps" / "adopted"


@pytest.mark.slow
def test_a_service_from_elsewhere_moves_in_as_the_page_says(
    renders: Renders, uv: Path, tmp_path: Path
) -> None:
    template = template_with_releases(tmp_path / "deployable-service")
    service = Path(shutil.copytree(ADOPTED / "before", tmp_path / "books"))
    git(service, "init", "--quiet", "--initial-branch=main")
    commit(service, "Two years of work")

    answers = (
        "--checkout",
        "v1.0.0",
        "--extra-context",
        '{"project_slug": "books", "package_name": "books"}',
    )
    cruft(service, "link", str(template), "--no-input", *answers)
    cruft(tmp_path, "create", str(template), "--output-dir", str(tmp_path / "render"), *answers)
    rendered = tmp_path / "render" / "books"
    shell(service, "cp", "--recursive", "--no-clobber", f"{rendered}/.", ".")
    differ = {
        path.relative_to(rendered).as_posix()
        for path in rendered.rglob("*")
        if path.is_file() and path.read_bytes() != (service / path.relative_to(rendered)).read_bytes()
    }
    assert differ == {"Dockerfile", "README.md"}
    shutil.copy(rendered / "Dockerfile", service / "Dockerfile")
    for name in ("books.py", "requirements.txt", "tests/test_domain.py"):
        (service / name).unlink()
    shutil.copytree(ADOPTED / "after", service, dirs_exist_ok=True)
    shell(service, uv, "add", "--quiet", "--no-sync", "humanize")
    renders.sync(Project(service, {}))
    example = shell(service, uv, "run", "--quiet", "python", "-m", "books", "config", "--format", "dotenv")
    (service / ".env.example").write_text(example, encoding="utf-8")
    shell(service, uv, "run", "--quiet", "pytest")
    said = cruft(service, "diff")
    assert re.findall(r"^\+\+\+ \S+?/(\S+)", said, flags=re.MULTILINE) == ["pyproject.toml"]
    commit(service, "Move to the template")

    done = update(service, "--no-suite")
    assert done.returncode == 0, done.stdout
    assert b"APP_HTTP_LATER" in contents(service)[".env.example"]
