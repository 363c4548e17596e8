"""An organisation's own package index, with a password and a CA of its own, for uv and in a build."""

import re
import subprocess
import uuid
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


def ours(index: Index, template: Path, home: Path) -> Project:
    """Render a service of an organisation that has this index, without what its checks need."""
    questions = copy_of_the_template(template) / "cookiecutter.json"
    replace(questions, '"_package_index": ""', f'"_package_index": "{index.url}"')
    replace(questions, '"_ca_bundle": ""', f'"_ca_bundle": "{index.ca}"')
    commit(template, "Make it ours")
    # `make image` names the image as the service, and there may be others on this engine.
    answers = {"project_slug": unique_name(), "package_name": "ours"}
    options = (f"{name}={value}" for name, value in answers.items())
    service = Project(render(str(template), home, *options, tools=("git",)), answers)
    project = service.path / "pyproject.toml"
    start, _, rest = project.read_text().partition("[dependency-groups]")
    project.write_text(start + rest[rest.index("[[tool.uv.index]]") :])
    return service


def test_an_index_with_a_password_and_a_ca_of_its_own_serves_uv_and_the_build(
    renders: Renders, engine: Engine, uv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = (renders.as_people_do().path / "uv.lock").read_text()
    (behind,) = set(re.findall(r'registry = "(\S+)"', locked))
    # Characters that mean something to a shell, to make, in a URL or in TOML.
    password = f"canary $(id) $$ \"'@/%41#{uuid.uuid4().hex}"
    login = {"UV_INDEX_ORGANISATION_USERNAME": "team", "UV_INDEX_ORGANISATION_PASSWORD": password}
    with package_index(behind, password, tmp_path / "index") as index:
        service = ours(index, tmp_path / "template", tmp_path / "home")
        engine.images.append(service.name)
        here = {"SSL_CERT_FILE": str(index.ca), "UV_CACHE_DIR": str(tmp_path / "cache")}
        with pytest.raises(pytest.fail.Exception, match="401"):
            service.run(uv, "lock", **here)
        service.run(uv, "lock", **here, **login)
        lock = (service.path / "uv.lock").read_text()
        assert {*re.findall(r'registry = "(\S+)"', lock)} == {index.url}
        assert password not in lock

        # With this machine's network; the CA is the index's.
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        programs = f"{docker_here(engine, tmp_path)}:{uv.parent}:/usr/bin:/bin"
        build = {"PATH": programs, "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
        index.logins.clear()
        # What GitHub makes of secrets that are not set.
        with pytest.raises(pytest.fail.Exception, match="401"):
            service.run(tool("make"), "image", **build, **dict.fromkeys(login, ""))
        assert index.logins == {None}
        before = index.served
        said = service.run(tool("make"), "image", **build, **login)
        assert index.served > before
        assert engine.do("run", "--rm", service.name, "check") == "ok"
        said += engine.do("history", "--no-trunc", service.name) + engine.do("inspect", service.name)
        assert "canary" not in said
        for layer in engine.unpack(service.name, tmp_path, b"canary $(id)", password[-32:].encode()):
            assert not layer.leaks
        # The other way, for an index that no fork has made its own: a file with the password in the address.
        settings = tmp_path / "uv.toml"
        address = f"https://team:{quote(password, safe='')}@{index.address}"
        settings.write_text(f'[[index]]\nname = "organisation"\nurl = "{address}"\n')
        secrets = ("--secret", f"id=ca,src={index.ca}", "--secret", f"id=index,src={settings}")
        before = index.served
        engine.do("build", "--network=host", "--no-cache", "--target=dependencies", *secrets, service.path)
        assert index.served > before
        # Without the CA it is not the password that is asked for.
        makefile = service.path / "Makefile"
        replace(makefile, f"--secret id=ca,src={index.ca}", "--no-cache")
        with pytest.raises(pytest.fail.Exception, match="certificate"):
            service.run(tool("make"), "image", **build, **login)


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
