"""A contract for import-linter: some modules are plain Python."""

import sys
from typing import cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class PlainPython(Contract):
    """The modules import nothing but the standard library and what is allowed, nor does what they import."""

    type_name = "plain_python"

    modules = fields.ListField(subfield=fields.StringField())
    allowed = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        # A field describes an option, and becomes the option's value in an instance.
        modules, allowed = cast(list[str], self.modules), cast(list[str], self.allowed)
        chains = []
        for module in modules:
            plain = {*sys.stdlib_module_names, *allowed, module.partition(".")[0]}
            for foreign in sorted(graph.find_upstream_modules(module, as_package=True)):
                if foreign.partition(".")[0] not in plain:
                    chains.append((module, foreign, graph.find_shortest_chain(module, foreign, as_packages=True)))
        return ContractCheck(kept=not chains, metadata={"chains": chains})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for module, foreign, chain in check.metadata["chains"]:
            output.print_error(f"{module} is not allowed to import {foreign}: {' -> '.join(chain)}")
