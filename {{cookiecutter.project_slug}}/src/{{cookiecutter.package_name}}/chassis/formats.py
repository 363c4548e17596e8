"""The settings of a service as people and tools read them; made from the classes, so never out of date.

A format is a function that makes files, by name, from a `Page`. To add one, write it and name it in `FORMATS`
and in the command line's list.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import attrs
import msgspec

from .config import Problem, as_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .config import Entry, Setting

# The braces of Go's templates, composed because this file has itself been made by a template.
OPEN, CLOSE = "{" * 2, "}" * 2
# What some reader of bare values takes for a quote, an escape, a variable or a comment, or does not take at all.
SPECIAL = "\"'\\$`# "
STOP_TIMEOUT = "30s"


@attrs.frozen
class Page:
    """What a format is made of; *current*: with the values that are set now, and not only the defaults."""

    name: str
    entries: Sequence[Entry]
    current: bool = False

    @property
    def settings(self) -> list[Setting]:
        """What is a variable."""
        return [entry.setting for entry in self.entries if entry.setting.file is None]

    @property
    def secrets(self) -> dict[str, Setting]:
        """What is a file, by its name."""
        return {entry.setting.file: entry.setting for entry in self.entries if entry.setting.file is not None}


class RefusedError(Exception):
    """A format can't hold some values; *problems* names each."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


Files = dict[str, str]


def text(page: Page) -> Files:
    """A table for people: every setting, its value, and where that is from."""
    rows = [(entry.setting.label, _shown(entry), entry.source, entry.setting.help) for entry in page.entries]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return {"settings.txt": _joined("  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows)}


def json(page: Page) -> Files:
    """Every setting with all that is known of it, for tools."""
    rows = [
        {
            "name": entry.setting.name,
            "file": entry.setting.file,
            "required": entry.setting.required,
            "default": entry.setting.default,
            "value": None if entry.value is None else _printable(entry.value),
            "source": _printable(entry.source),
            "help": entry.setting.help,
        }
        for entry in page.entries
    ]
    return {"settings.json": _as_json(rows)}


def json_schema(page: Page) -> Files:
    """A JSON schema of the environment: for a ConfigMap's data, or Compose's environment, before it is deployed."""
    names = [setting.name for setting in page.settings]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Environment of {page.name}",
        "type": "object",
        "properties": {
            setting.name: {"type": "string", "description": setting.help}
            | ({} if setting.default is None else {"default": as_text(setting.default)})
            for setting in page.settings
        },
        "required": [setting.name for setting in page.settings if _mark(setting) == "required"],
        # No misspelt names, and no secrets: those are files.
        "propertyNames": {"anyOf": [{"enum": names}, {"not": {"pattern": "^APP_"}}]},
    }
    return {"settings.schema.json": _as_json(schema)}


def markdown(page: Page) -> Files:
    """A table for a README."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for entry in page.entries:
        setting = entry.setting
        default = "required" if setting.required else "-" if setting.default is None else f"`{setting.default}`"
        name = f"secret file `{setting.file}`" if setting.file is not None else f"`{setting.name}`"
        lines.append(f"| {name} | {default} | {setting.help.replace('|', '&#124;')} |")
    return {"settings.md": _joined(lines)}


def dotenv(page: Page) -> Files:
    """A ``.env`` with bare values, which mean the same to direnv, Docker, Compose and systemd's EnvironmentFile."""
    first = "# Made by the command config --format dotenv. Copy it to .env and take the # off what you change."
    return {".env": _joined([first, *_explained(page, lambda name, value: f"{name}={_bare(value)}")])}


def direnv(page: Page) -> Files:
    """An ``.envrc`` that sets, and asks for what is missing; what is yours alone stays in a ``.env`` beside it."""
    lines = [
        "# Made by the command config --format direnv. direnv reads this once `direnv allow` has said that it may.",
        *_explained(page, lambda name, value: f"export {name}={shlex.quote(value)}"),
        "",
        "dotenv_if_exists",
        'export APP_SECRETS_DIR="${APP_SECRETS_DIR:-$PWD/secrets}"',
        'mkdir -p "$APP_SECRETS_DIR"',
        "PATH_add .venv/bin",
    ]
    for setting in page.settings:
        if _mark(setting) == "required":
            hint = shlex.quote(_line(f"{setting.name} is required; set it in .env: {setting.help}"))
            lines.append(f"{_is_set(setting)} || log_status {hint}")
    for file, setting in page.secrets.items():
        if _mark(setting) == "required":
            hint = shlex.quote(_line(f"{file} is required; put it into $APP_SECRETS_DIR/{file}: {setting.help}"))
            lines.append(f'[ -e "$APP_SECRETS_DIR/{file}" ] || log_status {hint}')
    return {".envrc": _joined([*lines, f'log_status "to see all settings: {page.name} config; to check them: check"'])}


def envsubst(page: Page) -> Files:
    """A template of an env file, and the script that hands envsubst the names that are set, and only those."""
    template = f"{page.name}.env.template"
    lines = [f"# Filled in by: sh {page.name}.env.sh > {page.name}.env"]
    for setting in page.settings:
        lines += ["", *_comments(setting), _default_comment(setting)]
        lines.append(setting.name + "=${" + setting.name + "}")
    missing = []
    for setting in page.settings:
        if _mark(setting) == "required":
            reason = shlex.quote(_line(f"{setting.name}: is not set; {setting.help}"))
            missing.append(f"{_is_set(setting)} || refuse {reason}")
    script = _SUBSTITUTE.replace("TEMPLATE", template).replace("REQUIRED", "\n".join(missing) or ":")
    names = " ".join(setting.name for setting in page.settings)
    return {template: _joined(lines), f"{page.name}.env.sh": script.replace("NAMES", names)}


# envsubst makes an unset variable nothing, which no setting is; so only lines of set variables are handed to it.
_SUBSTITUTE = """\
#!/bin/sh
# Writes an env file from the environment: what is set, and nothing else, so that the defaults hold.
# Secrets are files; they don't get there this way.
set -u
failed= found= names=
refuse() { printf '%s\\n' "$1" >&2; failed=yes; }
REQUIRED
for name in NAMES; do
    eval "set -- \\"\\${$name-}\\" \\"\\${$name+set}\\""
    [ -n "$2" ] || continue
    case $1 in
        *[\\"\\'\\\\\\$\\`\\#[:cntrl:][:space:]]*)
            refuse "$name: quotes, \\\\, $, \\`, #, spaces and control characters don't fit an env file" ;;
    esac
    names="$names \\${$name}" found="$found|$name"
done
[ -z "$failed" ] || exit 1
grep -E "^(${found#|})=" "$(dirname -- "$0")/TEMPLATE" | envsubst "$names"
"""


def confd(page: Page) -> Files:
    """A template resource and its template, with keys that are the same in all of confd's back ends.

    The environment's back end turns every ``_`` into ``/``, so no key has one. ZooKeeper's reads either the value or
    the children of a node, so no setting's key may be the start of another's.
    """
    keys = {setting.name: "/" + setting.name.lower().replace("_", "/") for setting in page.settings}
    folders = [name for name, key in keys.items() if any(other.startswith(f"{key}/") for other in keys.values())]
    if folders:
        raise RefusedError([Problem(name, f"its key {keys[name]} holds other keys too") for name in folders])
    resource = [
        f"# Keys: /{page.name.replace('-', '/')} and what the template names, for example {next(iter(keys.values()))}",
        "[template]",
        f'src = "{page.name}.env.tmpl"',
        f'dest = "/etc/{page.name}.env"',
        'mode = "0644"',
        f'prefix = "/{page.name.replace("-", "/")}"',
        'keys = ["/app"]',
        "# The service then says in its log what needs a restart. Restart instances one after the other.",
        f"reload_cmd = \"systemctl kill --kill-who=main --signal=HUP '{page.name}@*.service'\"",
    ]
    escaped = "."
    for character in '\\"$`':
        escaped = f"replace ({escaped}) {_go_string(character)} {_go_string(chr(92) + character)} -1"
    template = [_go('define "quoted"') + f'"{_go(escaped)}"' + _go("end") + f"# Made by confd for {page.name}."]
    for setting in page.settings:
        key = keys[setting.name]
        line = f"{setting.name}=" + _go(f'template "quoted" (getv "{key}")')
        if _mark(setting) != "required":
            line = _go(f'if exists "{key}"') + line + _go("end")
        template += ["", *_comments(setting), _default_comment(setting), line]
    template += ["", *(f"# {file} is a secret: no key, but a file." for file in page.secrets)]
    return {f"conf.d/{page.name}.toml": _joined(resource), f"templates/{page.name}.env.tmpl": _joined(template)}


def consul_template(page: Page) -> Files:
    """The configuration of a consul-template that runs the service, and its templates: settings, and each secret."""
    etc, run = f"/etc/{page.name}", f"/run/{page.name}"
    rendered = [_rendered(f"{etc}/{page.name}.env.ctmpl", f"{run}/{page.name}.env")]
    settings = [_go('define "quoted"') + f'"{_go(_CONSUL_QUOTED)}"' + _go("end -")]
    for setting in page.settings:
        key = f'"{page.name}/{setting.name}"'
        line = f"{setting.name}=" + _go(f'template "quoted" (key {key})')
        if _mark(setting) != "required":
            line = _go(f"if keyExists {key}") + line + _go("end")
        settings += ["", *_comments(setting), _default_comment(setting), line]
    files = {f"{page.name}.env.ctmpl": _joined(settings)}
    for file, setting in page.secrets.items():
        block = _rendered(f"{etc}/{file}.ctmpl", f"{run}/secrets/{file}")
        rendered += ["", *_comments(setting)]
        rendered.append(block if _mark(setting) == "required" else _commented(block))
        value = _go(f'with secret "secret/data/{page.name}"') + _go(f".Data.data.{file}") + _go("end")
        # Without a newline at its end, so that the one that a secret may have is the last.
        files[f"{file}.ctmpl"] = value
    lines = [
        f"# consul-template -config {page.name}.hcl, with CONSUL_HTTP_ADDR, VAULT_ADDR and VAULT_TOKEN set.",
        f"# Settings are Consul's keys {page.name}/APP_…; secrets are fields of Vault's secret/{page.name} (KV 2).",
        'kill_signal = "SIGTERM"',
        "",
        *rendered,
        "",
        "exec {",
        f'  command = ["sh", "-c", "set -a && . {run}/{page.name}.env && exec {page.name}"]',
        "  # Secrets are taken over; the service says in its log which settings need a restart.",
        '  reload_signal = "SIGHUP"',
        '  kill_signal = "SIGTERM"',
        "  # At least APP_DRAIN_DELAY + APP_DRAIN_TIMEOUT + 2 s.",
        f'  kill_timeout = "{STOP_TIMEOUT}"',
        "  env {",
        f'    custom = ["APP_SECRETS_DIR={run}/secrets"]',
        "  }",
        "}",
    ]
    return {f"{page.name}.hcl": _joined(lines), **files}


# A backslash before what is special between double quotes, for sh and for systemd.
_CONSUL_QUOTED = r'. | regexReplaceAll "([\"$\\\\`])" "\\${1}"'


def _rendered(source: str, destination: str) -> str:
    return (
        "template {\n"
        f'  source = "{source}"\n  destination = "{destination}"\n'
        '  perms = "0400"\n  error_on_missing_key = true\n}'
    )


def envconsul(page: Page) -> Files:
    """The configuration of an envconsul that runs the service with Consul's keys, and never with a secret."""
    lines = [
        f"# envconsul -config {page.name}.envconsul.hcl, with CONSUL_HTTP_ADDR set. A changed key restarts it.",
        "prefix {",
        f'  path = "{page.name}"',
        "}",
        "",
        "exec {",
        f'  command = "{page.name}"',
        '  kill_signal = "SIGTERM"',
        "  # At least APP_DRAIN_DELAY + APP_DRAIN_TIMEOUT + 2 s.",
        f'  kill_timeout = "{STOP_TIMEOUT}"',
        "}",
        "",
        "# The keys:",
    ]
    for setting in page.settings:
        lines += ["", f"# {page.name}/{setting.name}", *_comments(setting), _default_comment(setting)]
    lines += ["", "# Secrets are refused: as variables, child processes, crash reports and /proc show them."]
    lines += [f"# {file}: a file; see consul-template" for file in page.secrets]
    return {f"{page.name}.envconsul.hcl": _joined(lines)}


def kubernetes(page: Page) -> Files:
    """A ConfigMap, and which keys the Secret needs. A Secret itself would overwrite the real one with nothing."""
    keys = " ".join(f"--from-file={file}" for file in page.secrets)
    lines = [
        "# Made by the command config --format kubernetes. Take the # off what you change.",
        "apiVersion: v1",
        "kind: ConfigMap",
        "metadata:",
        f"  name: {page.name}",
        *_under("data:", _explained(page, lambda name, value: f"  {name}: {_yaml(value)}")),
        "",
        "# Each secret is a key of the Secret, made from the file of the same name:",
        f"# kubectl create secret generic {page.name} {keys}",
    ]
    return {"configmap.yaml": _joined(lines)}


def swarm(page: Page) -> Files:
    """A file that `docker stack deploy` merges with the stack's; a secret's name has a number: it can't change."""

    def live(setting: Setting, *lines: str) -> list[str]:
        return list(lines) if _mark(setting) == "required" else [_commented(line) for line in lines]

    mounts, sources = list[str](), list[str]()
    for file, setting in page.secrets.items():
        mounts += live(setting, f"      - source: {file}", f"        target: {file}")
        sources += live(setting, f"  {file}:", f"    name: {page.name}_{file}_1", "    external: true")
    environment = _explained(page, lambda name, value: f"      {name}: {_yaml(value).replace('$', '$$')}")
    service = [*_under("    environment:", environment), *_under("    secrets:", mounts)]
    lines = [
        f"# docker stack deploy -c deploy/swarm/stack.yaml -c settings.yaml {page.name}",
        'version: "3.9"',
        *_under("services:", _under("  service:", service)),
        *_under("secrets:", sources),
    ]
    return {"settings.yaml": _joined(lines)}


def systemd(page: Page) -> Files:
    """A drop-in of the unit. A credential goes by name: if there is none, the unit starts and the service says so."""

    def credential(setting: Setting) -> str:
        return f"LoadCredential={setting.file}:{page.name}.{setting.file}"

    lines = [
        f"# /etc/systemd/system/{page.name}@.service.d/settings.conf; then systemctl daemon-reload, and restart.",
        f"# Secrets: /etc/credstore/{page.name}.NAME",
        "[Service]",
        *_explained(page, lambda name, value: f'Environment="{name}={_unit(value)}"', credential),
    ]
    return {"settings.conf": _joined(lines)}


def _explained(
    page: Page, assign: Callable[[str, str], str], deliver: Callable[[Setting], str] | None = None
) -> list[str]:
    """Write each setting with its help: the value that is set now, if those are wanted, or the default as a comment."""
    lines: list[str] = []
    problems: list[Problem] = []
    for entry in page.entries:
        setting = entry.setting
        lines += ["", *_comments(setting)]
        if setting.file is not None:
            lines += [deliver(setting)] if deliver else []
        elif page.current and entry.value is not None and entry.source.startswith("environment"):
            try:
                lines.append(assign(setting.name, _utf8(entry.value)))
            except ValueError as error:
                problems.append(Problem(setting.name, f"its value can't be written in this format: {error}"))
        else:
            default = "" if setting.default is None else as_text(setting.default)
            try:
                lines.append(_commented(assign(setting.name, default)))
            except ValueError as error:
                lines.append(f"# its default can't be written in this format: {error}")
    if problems:
        raise RefusedError(problems)
    return lines


def _comments(setting: Setting) -> list[str]:
    """Make the comment above a setting, in one or two lines that no other syntax can be found in."""
    mark = _mark(setting)
    lines = [_line(f"# {setting.help}").replace(OPEN, "{ {")]
    if setting.file is not None:
        return [*lines, f"# {mark}: a secret, the file {setting.file}"]
    return lines if mark == "optional" else [*lines, f"# {mark}"]


def _mark(setting: Setting) -> str:
    if not setting.required:
        return "optional"
    if setting.optional_group is not None:
        return f"required once anything of {'_'.join(setting.optional_group).upper()} is there"
    return "required"


def _default_comment(setting: Setting) -> str:
    shown = "none" if setting.default is None else _line(as_text(setting.default)).replace(OPEN, "{ {")
    return f"# default: {shown}"


def _commented(lines: str) -> str:
    return "#" + lines.replace("\n", "\n#")


def _under(key: str, lines: list[str]) -> list[str]:
    """Put *lines* under a YAML key; a key that would hold nothing but comments is one itself."""
    return [key if any(line and line.lstrip()[0] != "#" for line in lines) else _commented(key), *lines]


def _is_set(setting: Setting) -> str:
    return '[ -n "${' + setting.name + '+set}" ]'


def _bare(value: str) -> str:
    if not value.isprintable():
        raise ValueError("it has a newline or another character that can't be printed")
    if found := ["a space" if character == " " else character for character in SPECIAL if character in value]:
        raise ValueError(f"it has {' '.join(found)}, which readers of bare values don't agree on")
    return value


def _unit(value: str) -> str:
    """Quote for the inside of a unit's double quotes, where ``%`` is special too."""
    if any(0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE for c in value):
        raise ValueError("it has a noncharacter of Unicode, which systemd takes for broken UTF-8")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return "".join(c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}" for c in escaped)


def _yaml(value: str) -> str:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value) + '"'


def _utf8(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not UTF-8") from None
    return value


def _go(action: str) -> str:
    return OPEN + action + CLOSE


def _go_string(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _line(words: str) -> str:
    return " ".join(words.split())


def _joined(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _as_json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def _printable(value: str) -> str:
    """Show what was no UTF-8 in the environment."""
    return value.encode(errors="backslashreplace").decode()


def _shown(entry: Entry) -> str:
    if entry.value is not None:
        return _printable(entry.value)
    return "(required)" if entry.setting.required else "-"


FORMATS: dict[str, Callable[[Page], Files]] = {
    "text": text,
    "json": json,
    "json-schema": json_schema,
    "markdown": markdown,
    "dotenv": dotenv,
    "direnv": direnv,
    "envsubst": envsubst,
    "confd": confd,
    "consul-template": consul_template,
    "envconsul": envconsul,
    "kubernetes": kubernetes,
    "swarm": swarm,
    "systemd": systemd,
}
