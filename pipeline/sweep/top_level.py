"""The names that a Python file has at its top level, found without running it."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

_NAMESPACES = {"globals", "locals", "vars", "exec"}  # what can bind a name that is not written so


class Names(NamedTuple):
    """``made``: its functions and classes; ``bound``: all, also imported and assigned ones, in
    blocks such as `if` and `try` as well."""

    made: frozenset[str]
    bound: frozenset[str]


@lru_cache(maxsize=8)  # several entries of a sweep name one file
def names(source: bytes) -> Names | None:
    """None where only running it tells: `import *`, a `__getattr__` of the module, a namespace
    that is changed by hand. Raises SyntaxError (ValueError for some bytes) where it is no Python.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the source; shown when it is imported
            tree = ast.parse(source)
            compile(tree, "source", "exec", dont_inherit=True)  # `return` outside a function, ...
    except (RecursionError, MemoryError):  # an expression of thousands of terms
        return None
    every = list(ast.walk(tree))
    declared = {name for node in every if isinstance(node, ast.Global) for name in node.names}
    bound = declared.union(_bound(tree))
    if "__getattr__" in bound or any(map(_is_open, every)):
        return None
    defined = (ast.FunctionDef, ast.ClassDef)
    made = {node.name for node in tree.body if isinstance(node, defined)}
    return Names(frozenset(made), frozenset(bound))


def _bound(tree: ast.Module) -> Iterator[str]:
    """In the module's own scope; those of a comprehension, too, which do no harm."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif not isinstance(node, ast.Lambda):
            yield from _of(node)
            nodes.extend(ast.iter_child_nodes(node))


def _of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name


def _is_open(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return any(alias.name in ("*", "modules") for alias in node.names)
    if isinstance(node, ast.Attribute):  # sys.modules[__name__]
        return (
            node.attr == "modules" and isinstance(node.value, ast.Name) and node.value.id == "sys"
        )
    return isinstance(node, ast.Name) and node.id in _NAMESPACES
