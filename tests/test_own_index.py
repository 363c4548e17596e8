"""An organisation's own package index, with a password and a CA of its own, for uv and in a build."""

import re
import uuid
from pathlib import Path

import pytest
from kit.engine import Engine, unique_name
from kit.index import package_index
from kit.project import Project, Renders, copy_of_the_template
from kit.updates import commit, render, replace

pytestmark = pytest.mark.slow


def test_an_index_with_a_password_and_a_ca_of_its_own_serves_uv_and_the_build(
    renders: Renders, engine: Engine, uv: Path, tmp_path: Path
) -> None:
    locked = (renders.as_people_do().path / "uv.lock").read_text()
    (behind,) = set(re.findall(r'registry = "(\S+)"', locked))
    password = f"canary-{uuid.uuid4().hex}"
    with package_index(behind, password, tmp_path / "index") as index:
        template = copy_of_the_template(tmp_path / "template")
        questions = template / "cookiecutter.json"
        replace(questions, '"_package_index": ""', f'"_package_index": "{index.url}"')
        replace(questions, '"_ca_bundle": ""', f'"_ca_bundle": "{index.ca}"')
        commit(template, "Make it ours")
        service = Project(
            render(str(template), tmp_path / "home", tools=("git",)), {"package_name": "my_service"}
        )

        # What checks need is much, and no part of the image.
        project = service.path / "pyproject.toml"
        start, _, rest = project.read_text().partition("[dependency-groups]")
        project.write_text(start + rest[rest.index("[[tool.uv.index]]") :])
        ours = {"SSL_CERT_FILE": str(index.ca), "UV_CACHE_DIR": str(tmp_path / "cache")}
        with pytest.raises(pytest.fail.Exception, match="401"):
            service.run(uv, "lock", **ours)
        user = {"UV_INDEX_ORGANISATION_USERNAME": "team", "UV_INDEX_ORGANISATION_PASSWORD": password}
        service.run(uv, "lock", **ours, **user)
        lock = (service.path / "uv.lock").read_text()
        assert {*re.findall(r'registry = "(\S+)"', lock)} == {index.url}
        assert password not in lock

        # As `make image` builds, but with the password, and with this machine's network.
        (line,) = re.findall(
            r"docker build (.*) --tag .* \.$", (service.path / "Makefile").read_text(), re.MULTILINE
        )
        assert line == f"--secret id=ca,src={index.ca}"
        settings = tmp_path / "uv.toml"
        settings.write_text(
            f'[[index]]\nname = "organisation"\nurl = "https://team:{password}@{index.address}"\n'
        )
        tag = unique_name()
        engine.images.append(tag)
        build = ("build", "--network=host", "--progress=plain", "--tag", tag, *line.split(), service.path)
        refused = engine.call(*build, check=False)
        assert refused.returncode != 0
        assert "401" in refused.stderr, refused.stderr
        before = index.served
        done = engine.call(*build, "--secret", f"id=index,src={settings}")
        assert index.served > before
        assert engine.do("run", "--rm", tag, "check") == "ok"
        assert password not in done.stdout + done.stderr + engine.do("history", "--no-trunc", tag)
        # Without the CA it is not the password that is asked for.
        plain = [word for word in build if "id=ca" not in str(word) and word != "--secret"]
        stranger = engine.call(*plain, "--secret", f"id=index,src={settings}", "--no-cache", check=False)
        assert stranger.returncode != 0
        assert "certificate" in stranger.stderr
