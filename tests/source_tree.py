"""Read modules, imports and classes from the source files of a package.

Files are parsed and not imported, so a file that needs a library missing on this machine (a GPU
kernel) is checked too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One imported name: ``from module import name``, or ``import module`` with no name."""

    module: str
    name: str | None
    bound_as: str  # the name that the importing file uses
    line: int
    in_function: bool
    for_types_only: bool  # under ``if TYPE_CHECKING:``


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    place: str  # the path to show, relative to the package's parent
    imports: tuple[Import, ...] = field(repr=False)
    classes: tuple[ast.ClassDef, ...] = field(repr=False)
    aliases: dict[str, str] = field(repr=False)  # ``Name = other.name`` at the top of the file


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def _is_import_call(call: ast.Call) -> bool:
    return ast.unparse(call.func) in {"import_module", "importlib.import_module", "__import__"}


def _aliases(tree: ast.Module) -> dict[str, str]:
    return {
        target.id: ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _imports(
    node: ast.AST, package: str, in_function: bool = False, for_types_only: bool = False
) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        where = (child.lineno, in_function, for_types_only) if hasattr(child, "lineno") else ()
        match child:
            case ast.Import():
                for alias in child.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    yield Import(alias.name, None, bound, *where)
            case ast.ImportFrom():
                source = child.module or ""
                if child.level:
                    parts = package.split(".")
                    base = parts[: len(parts) - child.level + 1]
                    source = ".".join([*base, source]).strip(".")
                for alias in child.names:
                    yield Import(source, alias.name, alias.asname or alias.name, *where)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from _imports(child, package, True, for_types_only)
            case ast.Call(args=[ast.Constant(value=str(module)), *_]) if _is_import_call(child):
                yield Import(module, None, module.split(".")[0], *where)
            case ast.If() if _is_type_checking(child.test):
                body = ast.Module(child.body, [])
                yield from _imports(body, package, in_function, True)
                yield from _imports(ast.Module(child.orelse, []), package, in_function)
            case _:
                yield from _imports(child, package, in_function, for_types_only)


class SourceTree:
    """The modules of the package in folder ``root``, by their dotted names."""

    def __init__(self, root: Path) -> None:
        self.package = root.name
        self.modules: dict[str, Module] = {}
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root.parent).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            tree = ast.parse(path.read_text(encoding="utf-8"))
            self.modules[name] = Module(
                name,
                path,
                path.relative_to(root.parent).as_posix(),
                tuple(_imports(tree, name if is_package else name.rpartition(".")[0])),
                tuple(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)),
                _aliases(tree),
            )

    def target(self, imported: Import) -> str | None:
        """The module of this package that an import reads; None for another library's."""
        if imported.name and f"{imported.module}.{imported.name}" in self.modules:
            return f"{imported.module}.{imported.name}"
        return imported.module if imported.module in self.modules else None

    def _at_import(self, module: Module) -> list[Import]:
        """The imports that run when ``module`` itself is imported."""
        return [i for i in module.imports if not i.in_function and not i.for_types_only]

    @cached_property
    def needs_numba(self) -> set[str]:
        """Modules whose import brings Numba with it, directly or through others."""
        result = {
            name
            for name, module in self.modules.items()
            if any(i.module.split(".")[0] == "numba" for i in self._at_import(module))
        }
        grown = True
        while grown:
            more = {
                name
                for name, module in self.modules.items()
                if any(
                    target in result or self._parents(target) & result
                    for i in self._at_import(module)
                    if (target := self.target(i))
                )
            }
            grown = not more <= result
            result |= more
        return result

    @staticmethod
    def _parents(name: str) -> set[str]:
        """The packages that Python imports on the way to ``name``."""
        parts = name.split(".")
        return {".".join(parts[:n]) for n in range(1, len(parts))}

    def circle(self) -> list[str]:
        """One circle of imports at module level as ``file:line imports module``; else empty.

        Imports for type checkers count as well. The parent packages that Python imports
        implicitly are not edges; only the modules that a file names are.
        """
        lines: dict[tuple[str, str], int] = {}
        for name, module in self.modules.items():
            for i in (i for i in module.imports if not i.in_function):
                if (target := self.target(i)) and target != name:
                    lines.setdefault((name, target), i.line)
        graph: dict[str, set[str]] = {name: set() for name in self.modules}
        for name, target in lines:
            graph[name].add(target)
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            nodes = error.args[1][::-1]  # graphlib lists predecessors first
            return [
                f"{self.modules[a].place}:{lines[a, b]} imports {b}" for a, b in pairwise(nodes)
            ]
        return []

    def imported_rooms(self, name: str) -> dict[str, int]:
        """The rooms (first name below the package) that a module imports, with a line of each.

        Imports in functions and for types count. The package itself, whose lazy names can be any
        room, is the room "".
        """
        rooms: dict[str, int] = {}
        for i in self.modules[name].imports:
            target = self.target(i)
            if target is not None:
                parts = target.split(".")
                rooms.setdefault(parts[1] if len(parts) > 1 else "", i.line)
        return rooms

    def late_imports(self, allowed: dict[str, set[str]]) -> list[str]:
        """Imports inside functions, except of modules that need Numba and of allowed libraries.

        ``allowed`` has the files in which functions may import a library.
        """
        bad = []
        for module in self.modules.values():
            for i in module.imports:
                if not i.in_function or i.for_types_only:
                    continue
                if module.place in allowed.get(i.module.split(".")[0], set()):
                    continue
                if self.target(i) in self.needs_numba:
                    continue
                what = f"from {i.module} import {i.name}" if i.name else f"import {i.module}"
                bad.append(f"{module.place}:{i.line} {what}")
        return bad

    def repeated_names(self, allowed: dict[str, str]) -> list[str]:
        """Files and folders that share their name with another, wherever that is.

        ``allowed`` has names that every subfolder of a folder may use.
        """
        places: dict[str, list[str]] = {}
        for module in self.modules.values():
            is_package = module.path.stem == "__init__"
            name = module.path.parent.name if is_package else module.path.stem
            folder = Path(module.place).parent.parent.as_posix()
            if allowed.get(name) != folder:
                places.setdefault(name, []).append(module.place)
        return [f"{p}:1 named {n}" for n, ps in places.items() if len(ps) > 1 for p in ps]

    def _base(self, module: Module, name: str, depth: int = 0) -> tuple[str, ast.ClassDef] | None:
        """Where the class that ``module`` calls ``name`` is defined, re-exports followed."""
        if depth > 20:
            return None
        for node in module.classes:
            if node.name == name:
                return module.name, node
        if name in module.aliases:
            return self._base(module, module.aliases[name], depth + 1)
        first, _, rest = name.partition(".")
        for i in module.imports:
            if i.bound_as != first:
                continue
            target = self.target(i)
            if target is None:
                continue
            is_module = i.name is None or target == f"{i.module}.{i.name}"
            if is_module and not rest:
                continue
            inner = rest if is_module else (i.name or "")
            return self._base(self.modules[target], inner, depth + 1)
        return None

    def _ancestors(self, module: Module, node: ast.ClassDef) -> dict[str, ast.ClassDef]:
        """The ancestors of ``node`` within this package, without protocols."""
        result: dict[str, ast.ClassDef] = {}
        for base in node.bases:
            expression = base.value if isinstance(base, ast.Subscript) else base
            where = self._base(module, ast.unparse(expression))
            if where is None or where[1] is node:
                continue
            if not _is_protocol(where[1]):
                result[f"{where[0]}.{where[1].name}"] = where[1]
            result |= self._ancestors(self.modules[where[0]], where[1])
        return result

    def tall_classes(self, most: int, except_in: set[str]) -> list[str]:
        """Classes with more than ``most`` ancestors within the package."""
        bad = []
        for module in self.modules.values():
            if module.name in except_in:
                continue
            for node in module.classes:
                above = list(self._ancestors(module, node))
                if len(above) > most:
                    names = ", ".join(a.removeprefix(f"{self.package}.") for a in above)
                    bad.append(f"{module.place}:{node.lineno} {node.name} inherits from {names}")
        return bad


def _is_protocol(node: ast.ClassDef) -> bool:
    bases = (b.value if isinstance(b, ast.Subscript) else b for b in node.bases)
    return any(ast.unparse(b) in {"Protocol", "typing.Protocol"} for b in bases)
