"""An organisation's own package index, with a password and a CA of its own, for uv and in a build."""

import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from kit.engine import Engine, unique_name
from kit.index import Index, package_index
from kit.project import Project, Renders, copy_of_the_template
from kit.tools import tool
from kit.updates import commit, render, replace
from kit.workflows import docker_here

pytestmark = pytest.mark.slow

# Characters that mean something to a shell, to make, to Compose, in a URL or in TOML.
PASSWORD = f"canary $(id) $$ \"'@/%41#{uuid.uuid4().hex}"
LOGIN = {"UV_INDEX_ORGANISATION_USERNAME": "team", "UV_INDEX_ORGANISATION_PASSWORD": PASSWORD}


@pytest.fixture(scope="module")
def index(renders: Renders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    locked = (renders.as_people_do().path / "uv.lock").read_text()
    (behind,) = set(re.findall(r'registry = "(\S+)"', locked))
    with package_index(behind, PASSWORD, tmp_path_factory.mktemp("index") / "ca") as index:
        yield index


@pytest.fixture(scope="module")
def service(index: Index, engine: Engine, uv: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A service of an organisation with this index, locked with the login, without what its checks need."""
    folder = tmp_path_factory.mktemp("ours")
    template = copy_of_the_template(folder / "template")
    replace(template / "cookiecutter.json", '"_package_index": ""', f'"_package_index": "{index.url}"')
    replace(template / "cookiecutter.json", '"_ca_bundle": ""', f'"_ca_bundle": "{index.ca}"')
    commit(template, "Make it ours")
    # The image has the service's name, and there may be others on this engine.
    answers = {"project_slug": unique_name(), "package_name": "ours"}
    options = (f"{name}={value}" for name, value in answers.items())
    service = Project(render(str(template), folder / "home", *options, tools=("git",)), answers)
    engine.images.append(service.name)
    project = service.path / "pyproject.toml"
    start, _, rest = project.read_text().partition("[dependency-groups]")
    project.write_text(start + rest[rest.index("[[tool.uv.index]]") :])
    here = {"SSL_CERT_FILE": str(index.ca), "UV_CACHE_DIR": str(folder / "cache")}
    with pytest.raises(pytest.fail.Exception, match="401"):
        service.run(uv, "lock", **here)
    service.run(uv, "lock", **here, **LOGIN)
    lock = (service.path / "uv.lock").read_text()
    assert {*re.findall(r'registry = "(\S+)"', lock)} == {index.url}
    assert "canary" not in lock
    return service


def assert_nowhere(engine: Engine, image: str, folder: Path, said: str) -> None:
    """Assert that the image starts, and that nothing has kept the password."""
    assert engine.do("run", "--rm", image, "check") == "ok"
    assert "canary" not in said + engine.do("history", "--no-trunc", image) + engine.do("inspect", image)
    for layer in engine.unpack(image, folder, b"canary $(id)", PASSWORD[-32:].encode()):
        assert not layer.leaks


def test_an_index_with_a_password_and_a_ca_of_its_own_serves_uv_and_the_build(
    index: Index, service: Project, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With this machine's network; the CA is the index's.
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    programs = f"{docker_here(engine, tmp_path)}:/usr/bin:/bin"
    build = {"PATH": programs, "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
    index.logins.clear()
    # What GitHub makes of secrets that are not set.
    with pytest.raises(pytest.fail.Exception, match="401"):
        service.run(tool("make"), "image", **build, **dict.fromkeys(LOGIN, ""))
    assert index.logins == {None}
    before = index.served
    said = service.run(tool("make"), "image", **build, **LOGIN)
    assert index.served > before
    assert_nowhere(engine, service.name, tmp_path, said)
    # The other way, for an index that no fork has made its own: a file with the password in the address.
    settings = tmp_path / "uv.toml"
    address = f"https://team:{quote(PASSWORD, safe='')}@{index.address}"
    settings.write_text(f'[[index]]\nname = "organisation"\nurl = "{address}"\n')
    secrets = ("--secret", f"id=ca,src={index.ca}", "--secret", f"id=index,src={settings}")
    before = index.served
    engine.do("build", "--network=host", "--no-cache", "--target=dependencies", *secrets, service.path)
    assert index.served > before
    # Without the CA it is not the password that is asked for.
    login = [word for name in LOGIN for word in ("--secret", f"id={name},env={name}")]
    with pytest.raises(pytest.fail.Exception, match="certificate"):
        service.run("docker", "build", "--no-cache", *login, ".", **build, **LOGIN)


def test_compose_builds_with_the_login_too(
    index: Index, service: Project, engine: Engine, tmp_path: Path
) -> None:
    tool("docker compose")
    (service.path / "compose.override.yaml").write_text(
        f"services: {{{service.name}: {{build: {{network: host}}}}}}\n"
    )
    before = index.served
    said = service.run(engine.docker, "compose", "build", "--no-cache", BUILDKIT_PROGRESS="plain", **LOGIN)
    assert index.served > before
    assert_nowhere(engine, service.name, tmp_path, said)


def test_a_login_that_is_empty_is_none_for_what_make_runs(tmp_path: Path) -> None:
    template = copy_of_the_template(tmp_path / "template")
    replace(template / "cookiecutter.json", '"_package_index": ""', '"_package_index": "https://a.example/b"')
    commit(template, "Make it ours")
    service = render(str(template), tmp_path / "home", tools=("git",))
    (service / "own.mk").write_text("seen:\n\t@env | grep ^UV_INDEX_ || echo none\n")
    password = "UV_INDEX_ORGANISATION_PASSWORD"
    for value, wanted in (("", "none"), ("a$(id) b", f"{password}=a$(id) b")):
        done = subprocess.run(
            (tool("make"), "seen"),
            cwd=service,
            env={"PATH": "/usr/bin:/bin", password: value},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == wanted, done.stderr
