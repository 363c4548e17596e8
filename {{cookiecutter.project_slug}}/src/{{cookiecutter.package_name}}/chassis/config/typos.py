"""Names that are nearly right: what was meant to be a setting or a secret, and is neither."""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

from ..errors import Problem

SIMILARITY = 0.85  # This much of a name that may be another's must agree. At 0.8, a_key is taken for b_key.


def unknown_variables(known: Mapping[str, str | None], env: Mapping[str, str]) -> Iterator[Problem]:
    """Warn of each variable that looks like a setting and is none; *known* has the file of each that is a secret."""
    for name in sorted(env.keys() - known.keys()):
        ours, wanted = name.startswith("APP_"), re.sub(r"\W", "_", name).upper()
        if wanted.startswith("APP_") and (near := get_close_matches(wanted, known, 1, 0.6 if ours else SIMILARITY)):
            meant = f"the secret file {known[near[0]]}" if known[near[0]] else near[0]
            yield Problem(name, f"is no setting of this service; did you mean {meant}?")
        elif ours:
            yield Problem(name, "is no setting of this service; see the command config for all names")


def misnamed_files(missing: Collection[str], directory: Path) -> Iterator[Problem]:
    """Warn of each file that is named nearly like a secret that is *missing*, such as ``DB-PASSWORD.txt``."""
    # Reading the secrets says why the directory can't be listed, if there must be any.
    with contextlib.suppress(OSError):
        for path in sorted(directory.iterdir()):
            names = [re.sub(r"\W", "_", name).lower().removeprefix("app_") for name in (path.name, path.stem)]
            near = [meant for name in names for meant in get_close_matches(name, missing, 1, SIMILARITY)]
            if near and path.name not in missing:
                yield Problem(path.name, f"is no secret of this service; did you mean {directory / near[0]}?")
