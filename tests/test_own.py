"""A fork that an organisation makes its own, by the private variables of cookiecutter.json alone."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from kit.command import Command
from kit.parsing import check_parses
from kit.project import ROOT, TARGETS, git
from kit.service import clean_environment
from kit.updates import PROJECT, commit, replace

Rendered = Callable[[Path, str], Path]

# What an organisation may want to be otherwise, and what it wants here.
OWN = {
    "github_owner": "acme",
    "_docs": "https://docs.acme.example/services",
    "_github": "https://git.acme.example",
    "_registry": "registry.acme.example/team",
    "_python_image": "registry.acme.example/python:3.15@sha256:" + "0" * 64,
    "_uv_image": "registry.acme.example/uv@sha256:" + "1" * 64,
    "_ca_bundle": "/etc/ssl/certs/acme.pem",
    "_package_index": "https://packages.acme.example/simple",
    "_runner": "[self-hosted, linux]",
    "_reviewers": "@acme/platform",
    "_licence": "Apache-2.0",
}
LOGIN = ("UV_INDEX_ORGANISATION_USERNAME", "UV_INDEX_ORGANISATION_PASSWORD")
# What the defaults say. A service of this organisation names none of it, but the tools' own makers.
DEFAULTS = re.compile(
    r"ubuntu-24|ghcr\.io/(?!sigstore|anchore|astral-sh/uv:)|github\.com/(?!org/)|your-organisation"
)


@pytest.fixture(scope="module")
def fork(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the template in which one commit changes only these variables; not to be changed."""
    fork = tmp_path_factory.mktemp("ours") / "fork"
    git(fork.parent, "clone", "--quiet", str(template), str(fork))
    file = fork / "cookiecutter.json"
    text = file.read_text(encoding="utf-8")
    for name, value in OWN.items():
        text, changes = re.subn(rf'^  "{name}": ".*"', f'  "{name}": "{value}"', text, flags=re.MULTILINE)
        assert changes == 1, name
    file.write_text(text, encoding="utf-8")
    commit(fork, "Make it ours")
    return fork


@pytest.fixture
def rendered_from(tmp_path: Path, cookiecutter: Command) -> Rendered:
    """What renders a template for one of the targets, without tools, and returns the service's folder."""

    def render(template: Path, target: str) -> Path:
        command = ("--no-input", "--default-config", template, f"deploy_to={target}")
        environment = clean_environment(HOME=str(tmp_path), PATH=str(tmp_path))
        done = cookiecutter(command, tmp_path, environment)
        assert done.returncode == 0, done.stderr
        return tmp_path / "my-service"

    return render


def test_every_private_variable_is_one_that_an_organisation_may_change() -> None:
    questions = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
    assert {
        name for name in questions if name.startswith("_") and not name.startswith("__")
    } == OWN.keys() - {"github_owner"}
    page = (ROOT / "docs" / "make-it-yours.md").read_text(encoding="utf-8")
    assert not [name for name in OWN if f"`{name}`" not in page]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_changed_is_used_everywhere(fork: Path, rendered_from: Rendered, target: str) -> None:
    service = rendered_from(fork, target)
    texts = {
        path.relative_to(service).as_posix(): path.read_text(encoding="utf-8")
        for path in service.rglob("*")
        if path.is_file()
    }
    for name, value in OWN.items():
        assert value in "".join(texts.values()), name
    left = [f"{name}: {found}" for name, text in texts.items() for found in DEFAULTS.findall(text)]
    assert not left, left
    for name in texts:
        check_parses(service / name)
    dockerfile = texts["Dockerfile"]
    assert re.findall(r"^FROM (\S+@\S+) AS", dockerfile, re.M) == [OWN["_python_image"], OWN["_uv_image"]]
    for name in (".github/workflows/ci.yml", ".github/workflows/release.yml", "Makefile"):
        builds = [
            line for line in texts[name].splitlines() if re.search(r"docker (buildx )?build .*[.\\]$", line)
        ]
        assert builds
        secrets = ("id=ca,src=/etc/ssl/certs/acme.pem", *(f"id={name},env={name}" for name in LOGIN))
        assert not [line for line in builds for secret in secrets if f"--secret {secret} " not in line]
    for name in ("ci", "release", "weekly", "template-update"):
        assert all(f"{variable}: ${{{{ " in texts[f".github/workflows/{name}.yml"] for variable in LOGIN)
    project = tomllib.loads(texts["pyproject.toml"])
    assert project["project"]["license"] == "Apache-2.0"
    assert project["tool"]["uv"]["index"][0]["default"] is True
    jobs = [
        job
        for name, text in texts.items()
        if name.startswith(".github/workflows/")
        for job in yaml.safe_load(text)["jobs"].values()
    ]
    assert {str(job["runs-on"]) for job in jobs if "runs-on" in job} == {"['self-hosted', 'linux']"}
    compose = yaml.safe_load(texts["compose.yaml"])
    assert compose["secrets"] == {
        "ca": {"file": OWN["_ca_bundle"]},
        **{name: {"environment": name} for name in LOGIN},
    }
    assert "\n* @acme/platform\n" in texts[".github/CODEOWNERS"]


def test_upstreams_releases_merge_without_a_conflict(
    fork: Path, template: Path, rendered_from: Rendered, tmp_path: Path
) -> None:
    upstream, ours = tmp_path / "upstream", tmp_path / "ours"
    for source, clone in ((template, upstream), (fork, ours)):
        git(tmp_path, "clone", "--quiet", str(source), str(clone))
    # A bump of both images, a question on each side of the owner's, a variable, and a changed workflow.
    dockerfile = upstream / PROJECT / "Dockerfile"
    replace(dockerfile, "FROM python:3.15-slim", "FROM python:3.16-slim")
    text = dockerfile.read_text(encoding="utf-8")
    dockerfile.write_text(re.sub(r"astral-sh/uv:\S+", "astral-sh/uv:0.14.0", text), encoding="utf-8")
    questions = upstream / "cookiecutter.json"
    replace(questions, '\n\n  "github_owner"', '\n  "on_call": "",\n\n  "github_owner"')
    replace(questions, '  "web_framework"', '  "tracing": ["none", "otlp"],\n  "web_framework"')
    replace(
        questions, '  "__prompts__": {\n', '  "_mirror": "",\n\n  "__prompts__": {\n    "on_call": "Who?",\n'
    )
    replace(upstream / PROJECT / ".github/workflows/ci.yml", "timeout-minutes: 10", "timeout-minutes: 11")
    commit(upstream, "Release")
    git(ours, "pull", "--quiet", "--no-rebase", "--no-edit", str(upstream), "main")
    merged = json.loads((ours / "cookiecutter.json").read_text(encoding="utf-8"))
    assert merged | OWN == merged
    assert (merged["on_call"], merged["_mirror"]) == ("", "")
    assert "timeout-minutes: 11" in (rendered_from(ours, "swarm") / ".github/workflows/ci.yml").read_text()
