"""Every shape annotation of the package is checked at run time, in tests only.

jaxtyping's own hook wraps every function of a package, those without an array too, which pyright
checks as well: it took a third of the tests' time. Here only those with an array are wrapped.
"""

import ast
import dataclasses
import inspect
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, get_args

import beartype
import jaxtyping

PACKAGE = "nablaflow"
MARK = "shapes_are_checked"

_typechecker = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def install() -> None:
    """Check whatever of the package is imported from here on."""
    if PACKAGE in sys.modules:
        raise RuntimeError(f"{PACKAGE} is already imported: its shapes would not be checked")
    sys.meta_path.insert(0, _Finder())


def checked(kind: Any) -> Any:
    """A function with an array in its annotations, or a dataclass with one in a field, checked."""
    if not isinstance(kind, type):
        return _checked_function(kind) if _has_array(kind) else kind
    if dataclasses.is_dataclass(kind) and any(_has_array(each) for each in kind.__mro__):
        kind = jaxtyping.jaxtyped(typechecker=_typechecker)(kind)
        _marked(kind.__init__)
    return kind


def _checked_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """With one look at the arguments and the shapes of this call, where jaxtyping's has two.

    But not a generator: beartype looks at its arguments as it begins, among its caller's shapes.
    """
    if inspect.isgeneratorfunction(function):
        return _marked(jaxtyping.jaxtyped(typechecker=_typechecker)(function))
    looked_at = _typechecker(function)

    @wraps(function)
    def found(*args: Any, **kwargs: Any) -> Any:
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        with jaxtyping.jaxtyped("context"):
            return looked_at(*args, **kwargs)

    return _marked(found)


def _marked(function: Any) -> Any:
    setattr(function, MARK, True)
    return function


def _has_array(kind: type | Callable[..., Any]) -> bool:
    scope = vars(sys.modules[kind.__module__])
    annotations = inspect.get_annotations(kind).values()
    return any(_names_array(annotation, scope) for annotation in annotations)


def _names_array(annotation: Any, scope: dict[str, Any]) -> bool:
    """Whether an annotation, as text or evaluated, has an array of jaxtyping's in it."""
    if not isinstance(annotation, str):
        return is_array(annotation)
    names = (node.id for node in ast.walk(ast.parse(annotation)) if isinstance(node, ast.Name))
    return any(is_array(scope.get(name)) for name in names)


def is_array(kind: Any) -> bool:
    """Whether a type is an array of jaxtyping's, its family, or holds one."""
    if isinstance(kind, type) and (kind.__module__ or "").startswith("jaxtyping"):
        return True
    return any(is_array(part) for part in get_args(kind))


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Decorates what is defined; not from the cache of bytecode, which has it undecorated."""

    def get_code(self, fullname: str) -> CodeType | None:
        path = self.get_filename(fullname)
        tree = _Decorator().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class _Decorator(ast.NodeTransformer):
    """Functions below what would hide their annotations; classes as ``dataclass`` left them."""

    def visit_Module(self, node: ast.Module) -> ast.AST:
        self.generic_visit(node)
        first = (i for i, part in enumerate(node.body) if not _comes_first(part))
        node.body.insert(
            next(first, len(node.body)),
            ast.ImportFrom(__name__, [ast.alias("checked", "_checked")], 0),
        )
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list.append(_name_at(node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list.insert(0, _name_at(node))
        return node


def _name_at(node: ast.stmt) -> ast.Name:
    """The decorator's name, at the line of what it decorates."""
    return ast.copy_location(ast.Name("_checked", ast.Load()), node)


def _comes_first(part: ast.stmt) -> bool:
    """Whether nothing may come before it: a docstring, or an import from the future."""
    return isinstance(part, ast.Expr) or (
        isinstance(part, ast.ImportFrom) and part.module == "__future__"
    )
