"""What docs/places.md says of places that are unlike ours."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from kit.project import ROOT, Bake, Renders, git
from kit.service import clean_environment
from kit.tools import tool
from kit.updates import commit
from kit.workflows import steps

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "places.md").read_text(encoding="utf-8")
WHEELS = {
    "Linux": r"linux\w*_x86_64\.whl$",
    "macOS": r"macosx\w*_(arm64|universal2)\.whl$",
    "Windows": r"win_amd64\.whl$",
}


def test_what_is_locked_runs_on_linux_and_macos_and_windows_lacks_a_server(renders: Renders) -> None:
    lock = tomllib.loads((renders.as_people_do().path / "uv.lock").read_text(encoding="utf-8"))
    wheels = {
        package["name"]: [wheel["url"] for wheel in package.get("wheels", ())]
        for package in lock["package"]
        if "registry" in package["source"]
    }
    assert len(wheels) > 40
    lacks = {
        system: {
            name
            for name, urls in wheels.items()
            if not any(re.search(rf"-any\.whl$|{pattern}", url) for url in urls)
        }
        for system, pattern in WHEELS.items()
    }
    assert lacks["Linux"] == lacks["macOS"] == set()
    # Once it has a wheel, the page has to be tried again.
    assert "uvloop" in lacks["Windows"]
    assert "| Windows | nothing is tried there: uvloop has no wheel for it | WSL, or `docker compose" in PAGE


def test_the_workflows_of_a_folder_are_moved_by_the_commands_of_the_page(
    bake: Bake, uv: Path, tmp_path: Path
) -> None:
    root = tmp_path / "mono"
    (root / "services").mkdir(parents=True)
    service = bake().path.rename(root / "services" / "books")
    git(root, "init", "--quiet", "--initial-branch=main")
    commit(root, "All")
    (script,) = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    subprocess.run(("sh", "-euc", script), cwd=root, check=True, capture_output=True)
    workflows = sorted((root / ".github" / "workflows").iterdir())
    assert [path.stem for path in workflows] == [
        f"books-{name}" for name in ("ci", "release", "template-update", "weekly")
    ]
    assert not [*(service / ".github" / "workflows").glob("*")]
    for command in (
        (tool("zizmor"), "--offline", "--pedantic", "--quiet"),
        (tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows"),
    ):
        done = subprocess.run((*command, *workflows), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    groups = set()
    for path in workflows:
        workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert workflow["name"] == path.stem
        groups.add(workflow["concurrency"]["group"].partition("-$")[0])
        assert workflow["defaults"]["run"]["working-directory"] == "services/books"
        for name, job in workflow["jobs"].items():
            # Only what checks out has the folder.
            here = "checkout" in str(job["steps"][0]) if "steps" in job else True
            assert (job.get("defaults") is None) == here, name
            assert "ci.yml" not in job.get("uses", "/books-ci.yml").removesuffix("/books-ci.yml")
    assert groups == {path.stem for path in workflows}
    (step,) = (step for step in steps(root, "books-release", "image") if "uv version" in step.run)
    for tag, status in (("books-v0.1.0", 0), ("v0.1.0", 1), ("lending-v0.1.0", 1)):
        environment = clean_environment(
            GITHUB_REF_NAME=tag, PATH=f"{uv.parent}{os.pathsep}{os.environ['PATH']}"
        )
        assert subprocess.run(("bash", "-ec", step.run), cwd=service, env=environment).returncode == status
