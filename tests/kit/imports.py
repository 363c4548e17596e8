"""Who imports whom in a package, read from its source: imports for types and inside functions count too."""

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

Graph = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, ast.Module]:
    """Parse all modules of the package in the folder *root*, by their dotted names."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return found


def graph(root: Path) -> Graph:
    """Return which modules of the package each of its modules imports."""
    trees = modules(root)
    packages = {name for name in trees if (root.parent / Path(*name.split("."))).is_dir()}
    return {
        name: set(imported(name if name in packages else name.rpartition(".")[0], tree, trees.keys()))
        - {name}
        for name, tree in trees.items()
    }


def imported(package: str, tree: ast.Module, known: Collection[str]) -> Iterator[str]:
    """Find which of the *known* modules a module of *package* imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names if alias.name in known)
            case ast.ImportFrom():
                base = node.module or ""
                if node.level:
                    above = package.split(".")
                    base = ".".join((*above[: len(above) + 1 - node.level], *filter(None, [base])))
                for alias in node.names:
                    # What is imported from a package is one of its modules, or a name of its __init__.
                    inner = f"{base}.{alias.name}"
                    if inner in known or base in known:
                        yield inner if inner in known else base


def circle(imports: Graph) -> list[str]:
    """Return one circle of imports, from a module back to itself; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(imports[name]):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    for name in sorted(imports):
        if found := walk(name, []):
            return found
    return []
