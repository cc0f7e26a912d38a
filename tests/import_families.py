"""The import-linter contract for DESIGN section 3's rule that no protocol imports another.

In a flat package the first word of a file's name is its family (opcua.py and opcua_decode.py are both opcua's).
"""

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class FamiliesContract(Contract):
    """Modules of one family import no module of another, but for the pairs in `allowed` ("mqtt -> payload")."""

    package = fields.StringField()
    families = fields.ListField(subfield=fields.StringField())
    allowed = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Looks at every direct import between modules of the package."""
        broken = [
            f"{importer} -> {imported}"
            for importer in sorted(graph.find_children(self.package))
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if self._is_forbidden(self._family(importer), self._family(imported))
        ]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Names each import that is not allowed."""
        for line in check.metadata["broken"]:
            output.print_error(line)

    def _family(self, module: str) -> str | None:
        package, _, name = module.rpartition(".")
        family = name.split("_")[0]
        return family if package == self.package and family in self.families else None

    def _is_forbidden(self, importer: str | None, imported: str | None) -> bool:
        if importer is None or imported is None or importer == imported:
            return False
        return f"{importer} -> {imported}" not in self.allowed
