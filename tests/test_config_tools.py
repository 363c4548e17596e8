"""Configuration tools, the real ones where they can be had: what they read is written by the service itself.

confd, consul-template and envconsul are in no package archive. The files for them are parsed and checked
against what their documentation lists. What they would render is rendered here; for consul-template by the
engine in OpenBao's agent, which is a copy of its own.
"""

import base64
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import tempfile
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import hcl2
import jsonschema
import pytest
import yaml
from conftest import ROOT, Bake, Project, clean_environment, missing, tool
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kazoo.client import KazooClient  # type: ignore[import-untyped]
from service import Service, free_port, wait_for

pytestmark = pytest.mark.slow

Values = Mapping[str, str]

# Twelve texts that nobody judges, to be carried by every format.
NAMES = tuple(f"APP_FREE_{letter}" for letter in "ABCDEFGHIJKL")
MAKER = """
import json, sys
import environ
from PACKAGE.chassis.config import Settings, describe
from PACKAGE.chassis.formats import FORMATS, Page, RefusedError

fields = {name: environ.var(None, help=f"what {name} is") for name in "abcdefghijkl"}
free = environ.config(type("Free", (), {**fields, "__annotations__": dict.fromkeys(fields, str)}))
kind = type("Config", (Settings,), {"free": environ.group(free), "__annotations__": {"free": free}})
config = environ.config(prefix="APP")(kind)
for line in sys.stdin:
    format, values = json.loads(line)
    try:
        answer = {"files": FORMATS[format](Page("free", describe(config, values), True))}
    except RefusedError as error:
        answer = {"refused": {problem.setting: problem.problem for problem in error.problems}}
    print(json.dumps(answer), flush=True)
"""
# What some reader somewhere takes for more than it says.
# fmt: off
HOSTILE = (
    "", " ", "a b", " a", "a ", "\t", "\n", "a\nb", "a\n", "\r\n", "\x0b",
    "\x1f", "\x7f", "\x85", "\u2028", "\ufeff",
    "#", "a#b", "a #b", "'", "it's", '"', '"a"', "'a'", "\\", "\\n", "a\\", "\\'", '\\"', "\\\\", "`", "`id`",
    "$", "$$", "$HOME", "${HOME}", "${A:-b}", "$(id)", "%", "%%", "%n", "%h", "%s", "\\x41",
    "{{.}}", "<no value>",
    "=", "a=b", "=a", "APP_FREE_A=1", "export A=1", "a;b", "a&b", "a|b", "!", "~", "*", "?", "[a]", "{a: b}",
    "-", "- a", "a: b", "a:", "&a", "*a", "!a", "|", ">", "@a", "null", "yes", "010", "1e3", "0x1f", "1:20",
    "é", "天気", "e\u0301", "👩\u200d💻", "\u202e", "\U0010ffff", "a,b", "a/b", "a@b", "(a)", "<a>", "^", "+",
)
# fmt: on
TEXTS = st.lists(
    st.sampled_from(HOSTILE) | st.characters(codec="utf-8", exclude_characters="\0"), max_size=5
).map("".join)
VALUES = st.lists(TEXTS, min_size=len(NAMES), max_size=len(NAMES)).map(
    lambda texts: dict(zip(NAMES, texts, strict=True))
)

Test = TypeVar("Test", bound=Callable[..., None])


def thoroughly(examples: int) -> Callable[[Test], Test]:
    """Give a test all that is hostile, and this many examples made of it and of other characters."""

    def decorate(test: Test) -> Test:
        for start in range(0, len(HOSTILE), len(NAMES)):
            test = example(values=dict(zip(NAMES, HOSTILE[start:], strict=False)))(test)
        checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
        limits = settings(max_examples=examples, deadline=None, suppress_health_check=checks)
        return cast(Test, limits(given(values=VALUES)(test)))

    return decorate


@pytest.fixture(scope="module")
def project(cookies_session: Any, uv: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The default service, with its environment, for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path_factory.mktemp("no-tools")))
        result = cookies_session.bake(template=str(ROOT))
    assert result.exception is None, result
    project = Project(result.project_path, result.context)
    project.run(uv, "sync", "--quiet")
    return project


@dataclass(frozen=True)
class Made:
    """The files of a format, what they carry, and what was refused."""

    files: dict[str, str]
    carried: dict[str, str]
    refused: dict[str, str]

    @property
    def file(self) -> str:
        (content,) = self.files.values()
        return content


Make = Callable[[str, Values], Made]


@pytest.fixture(scope="module")
def make(project: Project) -> Iterator[Make]:
    """Make files of a format, with all values but those that it refuses."""
    command = (project.path / ".venv/bin/python", "-c", MAKER.replace("PACKAGE", project.package))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdin is not None
        assert maker.stdout is not None
        stdin, stdout = maker.stdin, maker.stdout

        def ask(format: str, values: Values) -> dict[str, dict[str, str]]:
            print(json.dumps([format, values]), file=stdin, flush=True)
            answer: dict[str, dict[str, str]] = json.loads(stdout.readline())
            return answer

        def make(format: str, values: Values) -> Made:
            refused = ask(format, values).get("refused", {})
            carried = {name: value for name, value in values.items() if name not in refused}
            return Made(ask(format, carried)["files"], carried, refused)

        yield make
        stdin.close()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter and write to, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


def run(*command: str | Path, cwd: Path | None = None, env: Values, **options: Any) -> str:
    """Run a tool with this environment alone; return what it printed, or fail with all of it."""
    env = {"PATH": os.environ["PATH"], **env}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, timeout=60, **options)
    said = f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}"
    assert done.returncode == 0, said
    printed: str = done.stdout.decode()
    return printed


@contextmanager
def running(*command: str | Path, log: Path, ready: Callable[[], object], env: Values) -> Iterator[None]:
    """Run a server until the end of the block, which begins when it is ready."""
    env = {"PATH": os.environ["PATH"], **env}
    with log.open("wb") as out:
        server = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:

        def is_ready() -> bool:
            assert server.poll() is None, log.read_text()
            try:
                ready()
            except (OSError, subprocess.SubprocessError):
                return False
            return True

        wait_for(is_ready, f"{command[0]} is ready", 60)
        yield
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def sourced(file: Path) -> dict[str, str]:
    """Read an env file as `set -a; . FILE` does."""
    told = run("sh", "-c", 'set -a && . "$1" && env -0', "sh", file, env={})
    return dict(line.split("=", 1) for line in told.split("\0") if line.startswith("APP_"))


def direnv(folder: Path) -> tuple[dict[str, str], str]:
    """Enter a folder; return what is in the environment then, and what is printed."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder.parent), "TERM": "dumb"}
    program = tool("direnv")
    subprocess.run([program, "allow"], cwd=folder, env=env, check=True, timeout=60)
    done = subprocess.run([program, "export", "json"], cwd=folder, env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout or "{}"), done.stderr.decode()


def only_free(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name in NAMES}


# Values, through each format and the tool that reads it.


@thoroughly(20)
def test_direnv_hands_over_every_value(make: Make, tmp_path: Path, values: Values) -> None:
    made = make("direnv", values)
    assert not made.refused
    folder = tmp_path / "direnv"
    folder.mkdir(exist_ok=True)
    (folder / ".envrc").write_text(made.file)
    env, said = direnv(folder)
    assert only_free(env) == values, said


@thoroughly(20)
def test_bare_values_mean_the_same_to_direnv_and_systemd(make: Make, tmp_path: Path, values: Values) -> None:
    made = make("dotenv", values)
    folder = tmp_path / "dotenv"
    folder.mkdir(exist_ok=True)
    (folder / ".envrc").write_text("dotenv\n")
    (folder / ".env").write_text(made.file)
    env, said = direnv(folder)
    assert only_free(env) == made.carried, said
    assert environment_d(made.file, tmp_path) == {
        name: value for name, value in made.carried.items() if value
    }


def environment_d(content: str, folder: Path) -> dict[str, str]:
    """Read an env file by systemd's parser, in a tool that expands `$` too, and unsets what is empty."""
    generator = Path("/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator")
    if not generator.exists():
        missing(str(generator))
    (folder / "environment.d").mkdir(exist_ok=True)
    (folder / "environment.d/free.conf").write_text(content)
    printed = run(generator, env={"XDG_CONFIG_HOME": str(folder), "HOME": str(folder)})
    found = {}
    for line in printed.splitlines():
        name, _, value = line.partition("=")
        if value.startswith('"'):
            value = re.sub(r"\\(.)", lambda found: found[1].replace("n", "\n"), value[1:-1])
        found[name] = value
    return only_free(found)


@thoroughly(10)
def test_bare_values_mean_the_same_to_compose(make: Make, tmp_path: Path, values: Values) -> None:
    made = make("dotenv", values)
    (tmp_path / "compose.yaml").write_text("services: {free: {image: none, env_file: free.env}}\n")
    (tmp_path / "free.env").write_text(made.file)
    told = run(docker(), "compose", "config", "--format", "json", cwd=tmp_path, env={"HOME": str(tmp_path)})
    assert (json.loads(told)["services"]["free"].get("environment") or {}) == made.carried


def docker() -> Path:
    if os.environ.get("WITHOUT_ENGINE") == "1":
        pytest.skip("no container engine can be had here")
    return tool("docker")


@pytest.fixture
def empty_image() -> Iterator[str]:
    """An image with nothing in it, in the engine that answers."""
    if subprocess.run([docker(), "info"], capture_output=True, timeout=60).returncode:
        pytest.skip("no Docker engine answers")
    name = f"empty-{secrets.token_hex(6)}"
    subprocess.run([docker(), "import", "-", name], input=bytes(10240), check=True, capture_output=True)
    yield name
    subprocess.run([docker(), "rmi", name], check=True, capture_output=True)


@thoroughly(8)
def test_bare_values_mean_the_same_to_docker(
    make: Make, empty_image: str, tmp_path: Path, values: Values
) -> None:
    made = make("dotenv", values)
    (tmp_path / "free.env").write_text(made.file)
    home = {"HOME": str(tmp_path)} | {key: os.environ[key] for key in ("DOCKER_HOST",) if key in os.environ}
    file = str(tmp_path / "free.env")
    name = run(docker(), "create", "--env-file", file, empty_image, "none", env=home).strip()
    try:
        told = json.loads(run(docker(), "inspect", "--format", "{{json .Config.Env}}", name, env=home))
    finally:
        run(docker(), "rm", name, env=home)
    assert only_free(dict(pair.split("=", 1) for pair in told or [])) == made.carried


@thoroughly(100)
def test_a_bare_value_is_refused_for_a_reason_that_it_has(make: Make, values: Values) -> None:
    made = make("dotenv", values)
    for name, reason in made.refused.items():
        value = values[name]
        assert not value.isprintable() or set(value) & set("\"'\\$`# "), (value, reason)


@thoroughly(20)
def test_envsubst_fills_in_what_bare_values_can_be(make: Make, tmp_path: Path, values: Values) -> None:
    tool("envsubst")
    made = make("envsubst", {})
    for name, content in made.files.items():
        (tmp_path / name).write_text(content)
    bare = make("dotenv", values)
    script: tuple[str | Path, ...] = ("sh", tmp_path / "free.env.sh")
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run(script, env=env | bare.carried, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == bare.carried
    special = {name for name, value in values.items() if re.search("[\"'\\\\$`#\0- \x7f]", value)}
    done = subprocess.run(script, env={**env, **values}, capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0) == bool(special), done.stderr
    refused = {line.partition(":")[0] for line in done.stderr.splitlines()}
    assert special <= refused <= bare.refused.keys()
    assert not (special and done.stdout)


@thoroughly(20)
def test_a_unit_carries_every_value(make: Make, open_folder: Path, values: Values) -> None:
    made = make("systemd", values)
    assert made.refused.keys() == {name for name, value in values.items() if has_noncharacter(value)}
    (open_folder / "free.service").write_text("[Service]\nExecStart=/bin/true\n")
    (open_folder / "free.service.d").mkdir(exist_ok=True)
    (open_folder / "free.service.d/settings.conf").write_text(made.file)
    told = dump(open_folder)
    found = {name: f"\t\tEnvironment: {name}={value}\n" in told for name, value in made.carried.items()}
    assert all(found.values()), (found, told)


def has_noncharacter(value: str) -> bool:
    return any(ord(c) % 0x10000 >= 0xFFFE or c in map(chr, range(0xFDD0, 0xFDF0)) for c in value)


def dump(units: Path) -> str:
    """What systemd makes of the unit free.service, as it would run it."""
    program = Path("/lib/systemd/systemd")
    if not program.exists():
        missing("systemd")
    (units / "home").mkdir(exist_ok=True, mode=0o777)
    (units / "home").chmod(0o777)
    env = {"HOME": str(units / "home"), "XDG_RUNTIME_DIR": str(units), "SYSTEMD_UNIT_PATH": f"{units}:"}
    # It doesn't test as root.
    other = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
    return run(*other, program, "--test", "--user", "--unit=free.service", "--no-pager", env=env)


@thoroughly(30)
def test_a_config_map_carries_every_value(make: Make, values: Values) -> None:
    made = make("kubernetes", values)
    assert not made.refused
    assert yaml.safe_load(made.file)["data"] == values


@thoroughly(8)
def test_a_stack_file_carries_every_value(make: Make, tmp_path: Path, values: Values) -> None:
    made = make("swarm", values)
    assert not made.refused
    (tmp_path / "stack.yaml").write_text("version: '3.9'\nservices: {service: {image: none}}\n")
    (tmp_path / "settings.yaml").write_text(made.file)
    files = ("--file", "stack.yaml", "--file", "settings.yaml")
    told = run(docker(), "compose", *files, "config", "--format", "json", cwd=tmp_path, env={"HOME": "/"})
    shown = json.loads(told)["services"]["service"]["environment"]
    # What it prints can be read again, so its dollars are doubled.
    assert {name: value.replace("$$", "$") for name, value in shown.items()} == values


@thoroughly(20)
def test_confd_renders_every_value_for_a_shell_and_for_systemd(
    make: Make, tmp_path: Path, values: Values
) -> None:
    files = make("confd", {}).files
    keys = {"/" + name.lower().replace("_", "/"): value for name, value in values.items()}
    file = tmp_path / "free.env"
    file.write_text(confd(files["templates/free.env.tmpl"], keys))
    assert sourced(file) == values
    plain = {key: value for key, value in keys.items() if systemd_shows(value)}
    rendered = confd(files["templates/free.env.tmpl"], plain)
    wanted = {name: value for name, value in values.items() if systemd_shows(value)}
    assert environment_d(rendered, tmp_path) == wanted


def systemd_shows(value: str) -> bool:
    """Whether systemd's tool leaves it as it is, and prints it in a way that is undone here."""
    return bool(value) and "$" not in value and value.replace("\n", "").isprintable()


def confd(template: str, values: Values) -> str:
    """Render a template with what confd's `exists`, `getv` and `replace` do."""
    definition, end, body = template.partition("{{end}}")
    escapes = re.findall(r'("(?:\\.|[^"\\])*") ("(?:\\.|[^"\\])*") -1', definition)
    assert end
    assert escapes

    def quoted(found: re.Match[str]) -> str:
        value = values[found[1]]
        for old, new in escapes:
            value = value.replace(json.loads(old), json.loads(new))
        return f'"{value}"'

    body = re.sub(
        r'\{\{if exists "([^"]+)"\}\}(.+?)\{\{end\}\}', lambda found: found[2] * (found[1] in values), body
    )
    place = r'\{\{template "quoted" \(getv "([^"]+)"\)\}\}'
    assert "{{" not in re.sub(place, "", body), body
    return re.sub(place, quoted, body)


# The service, started with what a tool made of values in a real back end.

FIRST = {
    "APP_LOG_LEVEL": "debug",
    "APP_HTTP_TRUSTED_PROXIES": "10.0.0.0/8,::1",
    "APP_DRAIN_TIMEOUT": "7",
    "APP_BUILD_REVISION": "a 'b' \"c\" $HOME `id` \\d # e=é 👩 %f\nsecond line",
    "APP_GREETING_EVENING": "20",
}
SECOND = FIRST | {"APP_GREETING_EVENING": "13"}
BARE = {"APP_BUILD_REVISION": "é=1;2"}
STAYS = "settings are from the start; a change of these needs a restart"


class Instance:
    """The service as a tool runs it: its settings from an env file, its secrets from a folder."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.file, self.secrets = folder / "service.env", folder / "secrets"
        self.secrets.mkdir()
        self._project, self._folder = project, folder
        self._started: list[Service] = []

    def start(self, env: Values | None = None) -> Service:
        """Start it, from the env file or with just these variables."""
        folder = self._folder / f"run{len(self._started)}"
        folder.mkdir()
        command: tuple[str | Path, ...] = (
            self._project.path / ".venv/bin/python",
            "-m",
            self._project.package,
        )
        fixed = {"APP_HTTP_PORT": "0", "APP_ADMIN_PORT": "0", "APP_SECRETS_DIR": str(self.secrets)}
        if env is None:
            command = ("sh", "-c", 'set -a && . "$0" && exec "$@"', self.file, *command)
        fixed |= {"APP_SECRETS_REFRESH": "0"} | dict(env or {})
        self._started.append(Service(command, folder, self._project.path, **fixed))
        return self._started[-1].started()

    def end(self) -> None:
        for service in self._started:
            service.end()


@pytest.fixture
def instance(project: Project, tmp_path: Path) -> Iterator[Instance]:
    instance = Instance(project, tmp_path)
    yield instance
    instance.end()


def formatted(project: Project, format: str, folder: Path, *options: str, **env: str) -> Path:
    """Write the files of a format by the service's own command."""
    service = project.path / ".venv/bin" / project.path.name
    project.run(service, "config", "--format", format, "--output", folder, *options, **env)
    return folder


def shows(service: Service, values: Values) -> None:
    """Fail unless /-/config has exactly these values, each from the environment."""
    shown = json.loads(service.look("/-/config"))
    seen = {name: (shown[name]["value"], shown[name]["source"]) for name in values}
    assert seen == {name: (value, f"environment {name}") for name, value in values.items()}


def wants(service: Service, token: str) -> None:
    """Fail unless this is the greeting's token."""
    for shown, status in ((token, 200), (f"not {token}", 401)):
        request = urllib.request.Request(f"http://127.0.0.1:{service.http}/greetings/Ada")
        request.add_header("Authorization", f"Bearer {shown}")
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                seen = answer.status
        except urllib.error.HTTPError as error:
            seen = error.code
        assert seen == status, shown


def hangup(service: Service, event: str) -> None:
    """Send the signal that tools send, and wait for what is said then."""
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: service.lines(event), event)


def follows(instance: Instance, change: Callable[[Values], None]) -> None:
    """Go the way of a changed setting and a changed secret, as docs/configuration.md tells it."""
    (instance.secrets / "greeting_token").write_text("old")
    change(FIRST)
    service = instance.start()
    shows(service, FIRST)
    wants(service, "old")
    (instance.secrets / "greeting_token").write_text("new")
    change(SECOND)
    hangup(service, "secrets reloaded")
    wants(service, "new")
    (line,) = service.lines(STAYS)
    assert set(FIRST) <= set(line["settings"])
    shows(service, FIRST)
    service.end()
    assert service.process.returncode == 0
    service = instance.start()
    shows(service, SECOND)
    wants(service, "new")


Store = Callable[[str, str], object]
Stored = Callable[[str], dict[str, str]]


@contextmanager
def etcd(folder: Path) -> Iterator[tuple[Store, Stored]]:
    program, control, port, peer = tool("etcd"), tool("etcdctl"), free_port(), free_port()
    url, peers = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    env = {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": url}
    options: dict[str, str] = {
        "--data-dir": str(folder / "etcd"),
        "--listen-client-urls": url,
        "--advertise-client-urls": url,
        "--listen-peer-urls": peers,
        "--initial-advertise-peer-urls": peers,
        "--initial-cluster": f"default={peers}",
    }
    command: list[str | Path] = [program, *(word for option in options.items() for word in option)]

    def stored(prefix: str) -> dict[str, str]:
        answer = json.loads(run(control, "get", "--prefix", prefix, "-w", "json", env=env))
        pairs = [
            [base64.b64decode(pair[part]).decode() for part in ("key", "value")] for pair in answer["kvs"]
        ]
        return dict(pairs)

    def ready() -> None:
        subprocess.run([control, "endpoint", "health"], env=env, check=True, capture_output=True)

    with running(*command, log=folder / "etcd.log", ready=ready, env={}):
        yield lambda key, value: run(control, "put", key, input=value.encode(), env=env), stored


@contextmanager
def redis(folder: Path) -> Iterator[tuple[Store, Stored]]:
    program, port = tool("redis-server"), free_port()
    client = (tool("redis-cli"), "-h", "127.0.0.1", "-p", str(port))
    command = (program, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder)

    def stored(prefix: str) -> dict[str, str]:
        keys = run(*client, "--scan", "--pattern", f"{prefix}/*", env={}).split()
        return {key: run(*client, "--raw", "get", key, env={}).removesuffix("\n") for key in keys}

    def ready() -> None:
        subprocess.run([*client, "ping"], check=True, capture_output=True)

    with running(*command, log=folder / "redis.log", ready=ready, env={}):
        yield lambda key, value: run(*client, "-x", "set", key, input=value.encode(), env={}), stored


@contextmanager
def zookeeper(folder: Path) -> Iterator[tuple[Store, Stored]]:
    jar, port = Path("/usr/share/java/zookeeper.jar"), free_port()
    if not jar.exists():
        missing("zookeeper")
    lines = {"dataDir": folder / "zookeeper", "clientPort": port, "clientPortAddress": "127.0.0.1"}
    lines |= {"admin.enableServer": "false", "tickTime": 2000}
    (folder / "zoo.cfg").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
    command: tuple[str | Path, ...] = (
        tool("java"),
        "-Xmx128m",
        "-cp",
        f"/etc/zookeeper/conf:{jar}",
        main,
        folder / "zoo.cfg",
    )

    def ready() -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"srvr")
            if b"Mode: standalone" not in connection.recv(65536, socket.MSG_WAITALL):
                raise ConnectionError

    with running(*command, log=folder / "zookeeper.log", ready=ready, env={}):
        client = KazooClient(hosts=f"127.0.0.1:{port}", timeout=30)
        client.start(timeout=60)

        def store(key: str, value: str) -> None:
            client.ensure_path(key)
            client.set(key, value.encode())

        def stored(path: str) -> dict[str, str]:
            children = client.get_children(path)
            if not children:
                return {path: client.get(path)[0].decode()}
            found = [stored(f"{path}/{child}") for child in children]
            return {key: value for part in found for key, value in part.items()}

        try:
            yield store, stored
        finally:
            client.stop()
            client.close()


@contextmanager
def environment(folder: Path) -> Iterator[tuple[Store, Stored]]:
    """confd's back end of that name: variables called like the keys, with `_` for `/`, and back again."""
    env: dict[str, str] = {}

    def stored(prefix: str) -> dict[str, str]:
        printed = run("env", "-0", env=env).split("\0")
        pairs = (pair.partition("=") for pair in printed)
        keys = {"/" + name.lower().replace("_", "/"): value for name, _, value in pairs}
        return {key: value for key, value in keys.items() if key.startswith(prefix)}

    yield lambda key, value: env.update({key[1:].replace("/", "_").upper(): value}), stored


@pytest.mark.parametrize("back_end", [etcd, redis, zookeeper, environment], ids=lambda given: given.__name__)
def test_the_service_follows_what_confd_finds(
    project: Project, instance: Instance, tmp_path: Path, back_end: Any
) -> None:
    folder = formatted(project, "confd", tmp_path / "confd")
    (resource_file,) = (folder / "conf.d").iterdir()
    resource = tomllib.loads(resource_file.read_text())["template"]
    template = (folder / "templates" / resource["src"]).read_text()
    with back_end(tmp_path) as (store, stored):

        def change(values: Values) -> None:
            for name, value in values.items():
                store(f"{resource['prefix']}/{name.lower().replace('_', '/')}", value)
            found: dict[str, str] = {}
            for key in resource["keys"]:
                found |= stored(resource["prefix"] + key)
            known = {key.removeprefix(resource["prefix"]): value for key, value in found.items()}
            instance.file.write_text(confd(template, known))

        follows(instance, change)


VAULT_TOKEN = "root"


class Vault:
    """OpenBao, and its agent, whose templates are rendered by consul-template's engine."""

    def __init__(self, folder: Path) -> None:
        self.address = f"http://127.0.0.1:{free_port()}"
        self._folder, self._program = folder, tool("bao")
        self._env = {"HOME": str(folder)}
        self.agent_log = folder / "agent.log"

    def ask(self, path: str, body: object = None) -> None:
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Vault-Token": VAULT_TOKEN, "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/v1/{path}", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=5):
            pass

    def keep(self, name: str, values: Values) -> None:
        self.ask(f"secret/data/{name}", {"data": values})

    @contextmanager
    def server(self) -> Iterator["Vault"]:
        listen = f"-dev-listen-address={self.address.removeprefix('http://')}"
        command = (self._program, "server", "-dev", f"-dev-root-token-id={VAULT_TOKEN}", listen)
        ready = lambda: self.ask("secret/config")  # noqa: E731
        with running(*command, log=self._folder / "vault.log", ready=ready, env=self._env):
            yield self

    def agent(self, templates: str, *, once: bool) -> tuple[str | Path, ...]:
        """Write an agent's configuration with these template blocks; return the command that runs it."""
        (self._folder / "token").write_text(VAULT_TOKEN)
        (self._folder / "agent.hcl").write_text(
            f"exit_after_auth = {str(once).lower()}\n"
            f'vault {{ address = "{self.address}" }}\n'
            f'template_config {{ static_secret_render_interval = "1s" }}\n'
            "auto_auth { method {\n"
            f'  type = "token_file"\n  config = {{ token_file_path = "{self._folder / "token"}" }}\n'
            f"}} }}\n{templates}\n"
        )
        return (self._program, "agent", f"-config={self._folder / 'agent.hcl'}")

    def render(self, templates: str) -> None:
        """Render what there is now."""
        run(*self.agent(templates, once=True), env=self._env)

    @contextmanager
    def rendering(self, templates: str, ready: Callable[[], object]) -> Iterator[None]:
        """Render again and again."""
        command = self.agent(templates, once=False)
        with running(*command, log=self.agent_log, ready=ready, env=self._env):
            yield


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    folder = tmp_path / "vault"
    folder.mkdir()
    with Vault(folder).server() as vault:
        yield vault


def template_block(source: Path, destination: Path) -> str:
    """A template's block as the service writes it, with other places."""
    return (
        f'template {{\n  source = "{source}"\n  destination = "{destination}"\n'
        '  perms = "0400"\n  error_on_missing_key = true\n}\n'
    )


def from_vault(template: str, name: str) -> str:
    """Let a template of Consul's keys find them in a secret of Vault's: the agent has no Consul."""
    definition, end, body = template.partition("{{end -}}")
    assert end
    body = re.sub(r'keyExists "[^"]+/([^"/]+)"', r'ne (printf "%v" (index $kv "\1")) "<nil>"', body)
    body = re.sub(r'\(key "[^"]+/([^"/]+)"\)', r'(index $kv "\1")', body)
    return (
        f'{definition}{end}{{{{with secret "secret/data/{name}"}}}}{{{{$kv := .Data.data}}}}{body}{{{{end}}}}'
    )


@thoroughly(10)
def test_consul_template_renders_every_value_for_a_shell(
    make: Make, vault: Vault, tmp_path: Path, values: Values
) -> None:
    source, destination = tmp_path / "free.env.ctmpl", tmp_path / "free.env"
    source.write_text(from_vault(make("consul-template", {}).files["free.env.ctmpl"], "free"))
    vault.keep("free", values)
    vault.render(template_block(source, destination))
    assert sourced(destination) == values


def test_the_service_follows_what_consul_template_renders(
    project: Project, instance: Instance, vault: Vault, tmp_path: Path
) -> None:
    folder, name = formatted(project, "consul-template", tmp_path / "consul-template"), project.path.name
    config = hcl2.loads((folder / f"{name}.hcl").read_text())
    (block,) = config["template"]
    assert template_block(Path("x"), Path("y")).count("=") == len([key for key in block if key[0] != "_"])
    source = folder / f"{name}.env.ctmpl"
    source.write_text(from_vault(source.read_text(), f"{name}-settings"))
    token = instance.secrets / "greeting_token"
    blocks = template_block(folder / "greeting_token.ctmpl", token) + template_block(source, instance.file)
    vault.keep(f"{name}-settings", FIRST)
    vault.keep(name, {"greeting_token": 'old "token"'})
    with vault.rendering(blocks, ready=lambda: (token.stat(), instance.file.stat())):
        assert token.stat().st_mode & 0o777 == 0o400
        service = instance.start()
        shows(service, FIRST)
        wants(service, 'old "token"')
        vault.keep(f"{name}-settings", SECOND)
        # As `greeting_token=@FILE` keeps it.
        vault.keep(name, {"greeting_token": "new\n"})
        wait_for(
            lambda: token.read_text() == "new\n" and 'EVENING="13"' in instance.file.read_text(),
            "a new rendering",
        )
        assert token.stat().st_mode & 0o777 == 0o400
        # What `reload_signal` sends.
        hangup(service, "secrets reloaded")
        wants(service, "new")
        assert "APP_GREETING_EVENING" in service.lines(STAYS)[0]["settings"]
        shows(service, FIRST)
        service.end()
        service = instance.start()
        shows(service, SECOND)


def test_a_secret_that_is_missing_in_the_vault_is_not_rendered(
    project: Project, vault: Vault, tmp_path: Path
) -> None:
    folder = formatted(project, "consul-template", tmp_path / "consul-template")
    vault.keep(project.path.name, {"admin_token": "there"})
    there, absent = tmp_path / "there", tmp_path / "absent"
    blocks = template_block(folder / "greeting_token.ctmpl", absent)

    def complains() -> None:
        if not re.search(r"has no entry for key .*greeting_token", vault.agent_log.read_text()):
            raise FileNotFoundError

    with vault.rendering(blocks, ready=complains):
        assert not absent.exists()
    vault.render(template_block(folder / "admin_token.ctmpl", there))
    assert there.read_text() == "there"


def test_a_developer_who_enters_the_folder_is_helped(bake: Bake, tmp_path: Path) -> None:
    project = bake()
    env, said = direnv(project.path)
    assert "the defaults are enough to start" in said
    assert "error" not in said.lower()
    assert Path(env["APP_SECRETS_DIR"]).is_dir()


def test_the_service_follows_direnv(project: Project, instance: Instance, tmp_path: Path) -> None:
    folder = formatted(project, "direnv", tmp_path / "direnv", "--current", **FIRST)
    env, said = direnv(folder)
    assert "error" not in said.lower()
    instance.secrets = folder / "secrets"
    (instance.secrets / "greeting_token").write_text("mine")
    service = instance.start({key: value for key, value in env.items() if key.startswith("APP_")})
    shows(service, FIRST)
    wants(service, "mine")
    # What is one developer's own.
    (folder / ".env").write_text("APP_GREETING_EVENING=13\n")
    env, _ = direnv(folder)
    service = instance.start({key: value for key, value in env.items() if key.startswith("APP_")})
    shows(service, SECOND)


def test_what_is_required_is_asked_for_by_direnv(make: Make, project: Project, tmp_path: Path) -> None:
    probe = "import sys; sys.path.insert(0, '.'); from tests.chassis import probe; print(probe.cli.main("
    probe += (
        f"{project.path.name!r}, probe.service, ['config', '--format', 'direnv'], {{}}), file=sys.stderr)"
    )
    (tmp_path / "probe").mkdir()
    done = subprocess.run(
        [project.path / ".venv/bin/python", "-c", probe],
        cwd=project.path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == "0\n"
    (tmp_path / "probe/.envrc").write_text(done.stdout)
    _, said = direnv(tmp_path / "probe")
    assert "APP_PROBE_NAME is required; set it in .env: what to call it" in said
    assert (
        "probe_password is required; put it into $APP_SECRETS_DIR/probe_password: a required secret" in said
    )
    assert "error" not in said.lower()
    (tmp_path / "probe/.env").write_text("APP_PROBE_NAME=it\n")
    (tmp_path / "probe/secrets/probe_password").write_text("x")
    assert "required" not in direnv(tmp_path / "probe")[1]


def test_the_service_follows_envsubst(project: Project, instance: Instance, tmp_path: Path) -> None:
    tool("envsubst")
    folder = formatted(project, "envsubst", tmp_path / "envsubst")

    def change(values: Values) -> None:
        instance.file.write_text(run("sh", folder / f"{project.path.name}.env.sh", env={**values, **BARE}))

    change(FIRST)
    service = instance.start(as_docker_reads(instance.file))
    shows(service, FIRST | BARE)
    change(SECOND)
    hangup(service, STAYS)
    shows(service, FIRST | BARE)
    shows(instance.start(as_docker_reads(instance.file)), SECOND | BARE)


def as_docker_reads(file: Path) -> dict[str, str]:
    lines = file.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_service_follows_an_env_file(project: Project, instance: Instance, tmp_path: Path) -> None:
    folder = formatted(project, "dotenv", tmp_path / "dotenv", "--current", **(FIRST | BARE))
    shows(instance.start(as_docker_reads(folder / ".env")), FIRST | BARE)
    (folder / ".envrc").write_text("dotenv\n")
    shows(instance.start({k: v for k, v in direnv(folder)[0].items() if k in FIRST}), FIRST | BARE)


def test_the_service_follows_envconsul(project: Project, instance: Instance, tmp_path: Path) -> None:
    folder = formatted(project, "envconsul", tmp_path / "envconsul")
    (file,) = folder.iterdir()
    (prefix,) = hcl2.loads(file.read_text())["prefix"]
    keys = re.findall(r"^# ((?:[a-z-]+)/(APP_[A-Z_]+))$", file.read_text(), re.M)
    named = {name: f"{unquoted(prefix['path'])}/{name}" for name in FIRST}
    assert named.items() <= {name: key for key, name in keys}.items()
    shows(instance.start(FIRST), FIRST)


def unquoted(value: str) -> str:
    return value.strip('"')


# Files of tools that can't be had, against what the documentation of these tools lists.

TEMPLATE_OPTIONS = (
    "source destination create_dest_dirs contents command command_timeout exec backup error_on_missing_key "
    "error_fatal perms user group left_delimiter right_delimiter function_denylist sandbox_path wait"
)
EXEC_OPTIONS = "command timeout splay env reload_signal kill_signal kill_timeout"
CONSUL_TEMPLATE_OPTIONS = (
    "consul vault nomad template exec deduplicate syslog telemetry wait once reload_signal kill_signal "
    "dump_signal max_stale block_query_wait log_level log_file pid_file template_error_fatal"
)
ENVCONSUL_OPTIONS = (
    "consul vault prefix secret service exec sanitize upcase pristine once wait kill_signal reload_signal "
    "log_level max_stale pid_file syslog"
)
PREFIX_OPTIONS = "path no_prefix format key"
CONFD_OPTIONS = "src dest keys prefix mode owner group uid gid reload_cmd check_cmd"


def declared(project: Project) -> tuple[list[str], list[str]]:
    """The variables and secret files that the config classes have, in their order."""
    rows = json.loads(
        project.run(project.path / ".venv/bin" / project.path.name, "config", "--format", "json")
    )
    variables = [row["name"] for row in rows if row["file"] is None]
    return variables, [row["file"] for row in rows if row["file"] is not None]


def knows(documented: str, block: Mapping[str, object]) -> bool:
    """Whether all that the block has is documented; the parser's own additions begin with underscores."""
    return {name for name in block if not name.startswith("__")} <= set(documented.split())


def test_consul_template_knows_all_that_is_in_its_files(project: Project, tmp_path: Path) -> None:
    folder, name = formatted(project, "consul-template", tmp_path / "files"), project.path.name
    variables, files = declared(project)
    content = (folder / f"{name}.hcl").read_text()
    # With the templates of optional secrets too.
    live = re.sub(r"^#(template \{|  .*|\})$", r"\1", content, flags=re.M)
    config = hcl2.loads(live)
    assert knows(CONSUL_TEMPLATE_OPTIONS, config)
    assert unquoted(config["kill_signal"]) == "SIGTERM"
    (run_block,) = config["exec"]
    assert knows(EXEC_OPTIONS, run_block)
    assert unquoted(run_block["kill_signal"]) == "SIGTERM"
    assert unquoted(run_block["reload_signal"]) == "SIGHUP"
    sources = []
    for block in config["template"]:
        assert knows(TEMPLATE_OPTIONS, block)
        assert unquoted(block["perms"]) == "0400"
        assert block["error_on_missing_key"] is True
        sources.append(Path(unquoted(block["source"])).name)
    assert sources == [f"{name}.env.ctmpl", *(f"{file}.ctmpl" for file in files)]
    assert {path.name for path in folder.iterdir()} == {f"{name}.hcl", *sources}
    settings = (folder / f"{name}.env.ctmpl").read_text()
    for function in ("keyExists", "key"):
        assert re.findall(rf'\b{function} "{name}/([^"]+)"', settings) == variables
    for file in files:
        assert placeholders((folder / f"{file}.ctmpl").read_text()) == [
            f'with secret "secret/data/{name}"',
            f".Data.data.{file}",
            "end",
        ]


def placeholders(template: str) -> list[str]:
    return re.findall(r"\{\{(.*?)\}\}", template)


def test_envconsul_knows_all_that_is_in_its_file_and_gets_no_secret(project: Project, tmp_path: Path) -> None:
    folder = formatted(project, "envconsul", tmp_path / "files")
    variables, files = declared(project)
    (file,) = folder.iterdir()
    config = hcl2.loads(file.read_text())
    assert knows(ENVCONSUL_OPTIONS, config)
    assert "secret" not in config
    assert knows(EXEC_OPTIONS, config["exec"][0])
    assert knows(PREFIX_OPTIONS, config["prefix"][0])
    assert re.findall(rf"^# {project.path.name}/(.+)$", file.read_text(), re.M) == variables
    live = re.sub(r"^#.*$", "", file.read_text(), flags=re.M)
    assert not [secret for secret in files if secret in live]


def test_confd_knows_all_that_is_in_its_files(project: Project, tmp_path: Path) -> None:
    folder = formatted(project, "confd", tmp_path / "files")
    variables, files = declared(project)
    (file,) = (folder / "conf.d").iterdir()
    config = tomllib.loads(file.read_text())
    assert config.keys() == {"template"}
    assert knows(CONFD_OPTIONS, config["template"])
    template = (folder / "templates" / config["template"]["src"]).read_text()
    keys = ["/" + name.lower().replace("_", "/") for name in variables]
    for function in ("exists", "getv"):
        assert re.findall(rf'\b{function} "([^"]+)"', template) == keys
    assert not [key for key in keys if "_" in key or any(other.startswith(f"{key}/") for other in keys)]
    shape = {re.sub(r'"/[^"]+"', "KEY", found) for found in placeholders(template.partition("{{end}}")[2])}
    assert shape == {"if exists KEY", 'template "quoted" (getv KEY)', "end"}
    assert not [secret for secret in files if f'"{secret}' in template]


def test_systemd_accepts_the_unit_with_the_drop_in(bake: Bake, project: Project, open_folder: Path) -> None:
    analyze = tool("systemd-analyze")
    baked = bake(deploy_to="systemd")
    (unit,) = (baked.path / "deploy/systemd").glob("*@.service")
    # The service is not installed here.
    text = re.sub(r"^ExecStart=.*", "ExecStart=/bin/true", unit.read_text(), flags=re.M)
    (open_folder / unit.name).write_text(text)
    folder = formatted(project, "systemd", open_folder / f"{unit.name}.d", "--current", **FIRST)
    instance = unit.name.replace("@.", "@8000.")
    env = {"SYSTEMD_UNIT_PATH": f"{open_folder}:", "PATH": os.environ["PATH"]}

    def verify() -> str:
        command = (analyze, "verify", "--man=no", str(open_folder / instance))
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        return f"{done.returncode} " + "".join(
            line for line in done.stderr.splitlines() if str(open_folder) in line or unit.name[:-9] in line
        )

    (open_folder / instance).symlink_to(unit.name)
    assert verify() == "0 "
    (drop_in,) = folder.iterdir()
    for file in declared(project)[1]:
        assert f"\nLoadCredential={file}:{project.path.name}.{file}\n" in drop_in.read_text()
    # That it would say so, were there something wrong.
    drop_in.write_text(drop_in.read_text().replace("LoadCredential=", "LoadCredentials="))
    assert "LoadCredentials" in verify()


def test_the_schema_finds_what_is_wrong_with_an_environment(project: Project) -> None:
    command = (project.path / ".venv/bin" / project.path.name, "config", "--format", "json-schema")
    schema = json.loads(project.run(*command))
    jsonschema.Draft202012Validator.check_schema(schema)
    validate = jsonschema.Draft202012Validator(schema).is_valid
    assert validate({"APP_LOG_LEVEL": "debug", "PATH": "/bin"})
    assert not validate({"APP_LOG_LEVL": "debug"})
    assert not validate({"APP_HTTP_PORT": 8000})
    assert not validate({"APP_GREETING_TOKEN": "a secret"})
