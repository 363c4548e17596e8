"""What the workflows of a generated project run is run here, so that no step can be wrong only on GitHub."""

import base64
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from kit.engine import Engine
from kit.project import ROOT, Project, Renders, git
from kit.service import answers, free_port, wait_for
from kit.tools import tool
from kit.workflows import Step, docker_here, run, steps

pytestmark = pytest.mark.slow

# What needs GitHub or a registry outside; and where the rest is run.
ONLY_THERE = {
    "pipx install": "uv is in this environment",
    "docker save": "the scanner's image is in a public registry",
    "sudo apt-get": "this test builds for its own processor alone",
    "docker build --quiet --target cosign": "the identity that signs is GitHub's",
    "gh release create": "it is a request to GitHub",
    "gh auth setup-git": "tests/test_update_proposal.py runs it with a stand-in for gh",
    "uv audit": "it asks the database of known vulnerabilities",
}
ELSEWHERE = {
    ("ci", "lint", "make check"): "tests/test_real_service.py, and tests/test_checks.py for a fresh project",
    ("ci", "test", "make test"): "tests/test_generated.py",
    ("weekly", "test", "uv lock --upgrade"): "tests/test_dependencies.py",
    ("weekly", "test", "make test"): "tests/test_dependencies.py",
}
HERE = (("ci", "image"), ("release", "image"))
# The user of the registry, and the hash of the password by bcrypt.
TOKEN = "registry-password"
USERS = "robot:$2b$04$J0EJosxtXC3/cmhdKXlHg.ANIk682SdPFqiHeAE5O7siEkOuTspO6\n"


@pytest.fixture
def docker(engine: Engine, tmp_path: Path) -> Path:
    """A folder with a `docker` that builds with this machine's network and CA bundle."""
    return docker_here(engine, tmp_path)


def only_there(step: Step) -> str | None:
    return next((command for command in ONLY_THERE if command in step.run), None)


def test_each_step_is_run_by_a_test_or_named_as_one_that_cannot_be(renders: Renders) -> None:
    found = steps(renders.get().path)
    unnamed = [
        step
        for step in found
        if not only_there(step)
        and (step.workflow, step.job) not in HERE
        and (step.workflow, step.job, step.run) not in ELSEWHERE
    ]
    assert not unnamed
    assert {only_there(step) for step in found} - {None} == set(ONLY_THERE)
    assert set(ELSEWHERE) <= {(step.workflow, step.job, step.run) for step in found}


def test_the_image_job_has_the_image_keep_the_contract(
    engine: Engine, committed: Project, docker: Path
) -> None:
    for step in steps(committed.path, "ci", "image"):
        if not only_there(step):
            said = run(committed, step, docker, GITHUB_SHA="0123abc")
    assert re.search(r" \d+ passed in ", said), said
    # An image that does not start its service is seen.
    (committed.path / "Dockerfile").write_text(
        f'FROM {engine.candidate}\nENTRYPOINT ["/app/bin/python", "-c", ""]\n'
    )
    engine.do("build", "--tag", engine.candidate, committed.path)
    with pytest.raises(pytest.fail.Exception, match="ended without a line 'ready'"):
        run(committed, step, docker)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of a registry on this machine, which asks for a password."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    settings = tmp_path / "registry.yml"
    storage = tmp_path / "registry"
    settings.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: {address}}}\n"
        f"auth: {{htpasswd: {{realm: ours, path: {tmp_path / 'users'}}}}}\n"
    )
    (tmp_path / "users").write_text(USERS)
    process = subprocess.Popen((tool("docker-registry"), "serve", settings), stderr=subprocess.DEVNULL)
    try:

        def is_there() -> bool:
            assert process.poll() is None, f"the registry ended with {process.returncode}"
            return answers(port, "/v2/", 401)

        wait_for(is_there, "the registry")
        yield address
    finally:
        process.kill()
        process.wait()


def test_a_release_is_pushed_under_its_version_with_what_it_was_built_from(
    engine: Engine, committed: Project, docker: Path, registry: str, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    facts = {
        "GITHUB_REF_NAME": "v0.1.0",
        "GITHUB_REPOSITORY": "Octo/my-service",
        "GITHUB_SHA": git(committed.path, "rev-parse", "HEAD"),
        "GITHUB_OUTPUT": str(output),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "PLATFORMS": "linux/amd64",
        "REGISTRY": registry,
        # What the workflow takes from REGISTRY_USER and REGISTRY_TOKEN.
        "NAME": "robot",
        "TOKEN": TOKEN,
        "DOCKER_CONFIG": str(tmp_path / "docker"),
    }
    for step in steps(committed.path, "release", "image"):
        if not only_there(step):
            # Both come from BuildKit's own image; the driver that is part of the engine has neither.
            command = re.sub(r" --(sbom|provenance)=\S+", "", step.run)
            run(committed, replace(step, run=command), docker, **facts)
    found = re.fullmatch(rf"image={registry}/octo/my-service@(sha256:[0-9a-f]{{64}})\n", output.read_text())
    assert found
    assert (tmp_path / "summary").read_text() == output.read_text()
    kinds = "application/vnd.oci.image.index.v1+json,application/vnd.docker.distribution.manifest.v2+json"
    basic = base64.b64encode(f"robot:{TOKEN}".encode()).decode()
    headers = {"Accept": kinds, "Authorization": f"Basic {basic}"}
    question = Request(f"http://{registry}/v2/octo/my-service/manifests/0.1.0", headers=headers)
    with urlopen(question, timeout=30) as answer:
        assert answer.headers["Docker-Content-Digest"] == found[1]


def test_a_tag_that_is_not_the_version_ends_the_release(committed: Project) -> None:
    step = next(step for step in steps(committed.path, "release", "image") if "uv version" in step.run)
    run(committed, step, GITHUB_REF_NAME="v0.1.0")
    with pytest.raises(pytest.fail.Exception):
        run(committed, step, GITHUB_REF_NAME="v0.2.0")


@pytest.fixture
def gh(tmp_path: Path) -> Path:
    """A folder with a stand-in for GitHub's client: it notes its arguments, and finds the issue $OPEN."""
    script = tmp_path / "gh" / "gh"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/bash\n"
        f'printf "%s\\n" "$*" >> {tmp_path}/called\n'
        f'while (($#)); do [[ $1 == --notes-file ]] && cp "$2" {tmp_path}/notes; shift; done\n'
        'echo "${OPEN:-}"\n'
    )
    script.chmod(0o755)
    return script.parent


def test_a_release_of_the_template_publishes_its_section_of_the_changelog(gh: Path, tmp_path: Path) -> None:
    (step,) = steps(ROOT, "release", "announce")
    changelog = (
        "# Changelog\n\n## Unreleased\n\nc\n\n## 1.1.0 (2026-12-01)\n\n### Added\n\n- b\n\n## 1.0.0\n\na\n"
    )
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    for tag, notes in (("v1.1.0", "\n### Added\n\n- b\n\n"), ("v1.0.0", "\na\n")):
        run(tmp_path, step, gh, GITHUB_REF_NAME=tag)
        assert (tmp_path / "notes").read_text() == notes
    with pytest.raises(pytest.fail.Exception, match=r"CHANGELOG.md has no section 1\.0"):
        run(tmp_path, step, gh, GITHUB_REF_NAME="v1.0")


def test_what_rots_is_one_issue(gh: Path, tmp_path: Path) -> None:
    (step,) = steps(ROOT, "nightly", "report")
    run(tmp_path, step, gh, RUN="https://run/1")
    run(tmp_path, step, gh, RUN="https://run/2", OPEN="7")
    called = (tmp_path / "called").read_text().splitlines()
    assert [line for line in called if not line.startswith("issue list")] == [
        "issue create --title The nightly run fails --body What came out since yesterday may be why: https://run/1",
        "issue comment 7 --body Again: https://run/2",
    ]
