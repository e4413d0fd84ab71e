"""YAML as people write it: safe, bounded, every value with its line, every mistake one sentence.

Only plain data comes out (YAML 1.2 core: `on` is text, `1e-3` is a number, keys are text); no
tag constructs anything. Top-level keys that begin with `x-` only hold anchors, and are left out.
Sizes are bounded before anything grows: bytes, depth, and the number of
values after aliases are followed (a kilobyte of nested aliases can stand for a billion values).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_VALUES = 200_000
ANCHORS = "x-"  # how a top-level key begins that only holds anchors

Key = tuple[Any, ...]  # where a value stands: ("training", "epochs"), ("seeds", 2)
Checked = TypeVar("Checked", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A YAML file that was read: plain data, and the line of every value in it."""

    path: Path
    text: str
    data: Any
    lines: dict[Key, int] = field(repr=False)

    def line(self, at: Key) -> int:
        """Line of the value at `at`, or of the nearest thing around it that the file has."""
        while at not in self.lines:
            at = at[:-1]
        return self.lines[at]

    def error(self, at: Key, problem: str) -> UserError:
        """The sentence `FILE:LINE: key.path: problem`."""
        where = f"{self.path}:{self.line(at)}: "
        return UserError(where + (f"{dotted(at)}: " if at else "") + problem)

    def check(self, at: Key, model: type[Checked], value: Any, name_keys: bool = True) -> Checked:
        """`value`, which stands at `at`, as a `model`; raises the first error as a UserError.

        Validated as JSON and strictly: a list may become a tuple, but "0" never becomes 0.
        `name_keys=False`: the keys of `value` do not stand in the file; an error names `at` only.
        """
        try:
            return model.model_validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            every = error.errors(include_url=False)
            first = min(every, key=lambda item: self.line(at + tuple(item["loc"])))
            first = _misspelt(first, every) or first
            loc, problem = _sentence(first, model)
            if first["type"] == "extra_forbidden":
                problem = _also(first, every) + problem
            raise self.error(at + loc if name_keys else at, problem) from None


def read(path: Path, text: str | None = None) -> Document:
    """Read the mapping in the YAML file `path`; raises UserError for whatever is not one.

    text: what the file held when it was read before; it is not read again, and need not be there.
    """
    if text is None:
        text = _text(path)
    try:
        _check_depth(text, path)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = " ".join(f"{error.problem or error.context}".split())
        raise UserError(f"{path}:{line}: not valid YAML: {problem}") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(f"{path}:1: not valid YAML: {problem}") from None
    if root is None:
        raise UserError(f"{path}:1: the file is empty; expected `key: value` lines")
    if not isinstance(root, yaml.MappingNode):
        line = root.start_mark.line + 1
        raise UserError(
            f"{path}:{line}: expected a mapping (`key: value` lines), got {_kind(root)}"
        )
    walk = _Walk(path)
    data = walk.value(root, ())
    own = {key: value for key, value in data.items() if not key.startswith(ANCHORS)}
    return Document(path, text, own, walk.lines)


def dotted(at: Key) -> str:
    """('seeds', 2) -> 'seeds[2]', as an error names it; counted from 0 like YAML tools do."""
    keys = (part if isinstance(part, int) or part.isprintable() else shown(part) for part in at)
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def shown(value: Any) -> str:
    """A value for an error sentence: one line, escaped, and never long."""
    text = json.dumps(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(word: Any, valid: Iterable[str]) -> str:
    """'did you mean X?', or the list of what is valid where nothing is near."""
    import difflib  # here: what is valid needs none

    options = sorted(valid)
    folded, lower = {option.lower(): option for option in options}, str(word).lower()
    begun = [option for option in folded if len(lower) > 1 and option.startswith(lower)]
    close = begun if len(begun) == 1 else difflib.get_close_matches(lower, folded, 1, 0.55)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    more = f", ... ({len(options)} in all)" if len(options) > 16 else ""
    return "valid: " + (", ".join(options[:16]) or "none") + more


# --- reading ---------------------------------------------------------------------------------


if TYPE_CHECKING:
    _SafeLoader = yaml.SafeLoader
else:  # PyYAML may have been built without its parser in C
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    yaml_implicit_resolvers: dict[
        str, Any
    ] = {}  # YAML 1.1's (on -> true, 010 -> 8, dates) are left out


_TAG = "tag:yaml.org,2002:"
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes; a YAML file here is a few lines")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not text in UTF-8; save the file as UTF-8") from None


def _check_depth(text: str, path: Path) -> None:
    """Refuse deep nesting while it is still a flat stream of events: composing recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            assert event.start_mark is not None
            line = event.start_mark.line + 1
            raise UserError(f"{path}:{line}: nested more than {MAX_DEPTH} levels deep")


class _Walk:
    """Nodes to plain data, noting lines, counting what aliases expand to."""

    def __init__(self, path: Path):
        self.path = path
        self.lines: dict[Key, int] = {}
        self.count = 0

    def fail(self, node: yaml.Node, at: Key, problem: str) -> UserError:
        key = f"{dotted(at)}: " if at else ""
        return UserError(f"{self.path}:{node.start_mark.line + 1}: {key}{problem}")

    def value(self, node: yaml.Node, at: Key) -> Any:
        self.count += 1
        if self.count > MAX_VALUES or len(at) > MAX_DEPTH:
            raise self.fail(
                node,
                (),
                f"stands for more than {MAX_VALUES:,} values, or nests "
                f"more than {MAX_DEPTH} deep, once aliases are followed",
            )
        self.lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != _TAG + "seq":
                raise self.fail(node, at, f"tag {shown(node.tag)} is not allowed; plain data only")
            return [self.value(item, (*at, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self.scalar(node, at)

    def mapping(self, node: yaml.MappingNode, at: Key) -> dict[str, Any]:
        if node.tag != _TAG + "map":
            raise self.fail(node, at, f"tag {shown(node.tag)} is not allowed; plain data only")
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.fail(key, at, "a key must be text, not a list or a mapping")
            if key.tag == _TAG + "merge":
                merged = {**self.merge(value, at), **merged}
                continue
            if key.value in own:
                raise self.fail(key, at, f"the key {shown(key.value)} stands here twice; keep one")
            here = (*at, key.value)
            self.lines[here] = key.start_mark.line + 1
            own[key.value] = self.value(value, here)
        return {**merged, **own}

    def merge(self, node: yaml.Node, at: Key) -> dict[str, Any]:
        """What `<<: *name` or `<<: [*first, *second]` brings; of a list the first one that has a
        key wins, and what the mapping itself has wins over all."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        brought: dict[str, Any] = {}
        for i, part in enumerate(parts):
            if not isinstance(part, yaml.MappingNode):
                raise self.fail(
                    part, at, "`<<` takes mappings, such as `<<: *name` or `<<: [*first, *second]`"
                )
            brought = {**self.value(part, (*at, "<<", i)), **brought}
        return brought

    def scalar(self, node: yaml.ScalarNode, at: Key) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind == "str":
            return text
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in ("int", "float"):
            return self.number(node, kind, at)
        raise self.fail(
            node, at, f"{shown(text)} with tag {shown(node.tag)} is not allowed; plain data only"
        )

    def number(self, node: yaml.ScalarNode, kind: str, at: Key) -> int | float:
        try:
            short = node.value if len(node.value) <= 40 else ""
            number = int(short, 10) if kind == "int" else float(short.replace(".inf", "inf"))
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or abs(number) > 1e300:
            raise self.fail(
                node,
                at,
                f"{shown(node.value)} is not a number that can be used here; expected a finite one",
            )
        return number + 0  # -0.0 + 0 is 0.0: one spelling of zero


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else shown(node.value)


# --- pydantic's errors, in a sentence --------------------------------------------------------

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping (`key: value`)",
    "model_type": "a mapping (`key: value`)",
    "model_attributes_type": "a mapping (`key: value`)",
    "dataclass_type": "a mapping",
    "none_required": "nothing",
}
# What it adds to the place of an error: of a key, or by which of several types it was read.
_OF_PYDANTIC = re.compile(
    r"\[(key|one|list)\]|(function-(after|before|plain|wrap)|tuple)\[.*|constrained-str"
)
_BOUND = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _sentence(error: Any, model: type[BaseModel]) -> tuple[Key, str]:
    """(where, what is wrong; what would be right) of one of pydantic's errors on a `model`."""
    kind, loc, value, context = (
        error["type"],
        tuple(part for part in error["loc"] if not _OF_PYDANTIC.fullmatch(str(part))),
        error["input"],
        error.get("ctx", {}),
    )
    if kind == "extra_forbidden":
        keys = {*model.model_fields, *getattr(model, "ALSO", ())}
        hint = nearest(loc[-1], keys) if len(loc) == 1 else "remove it"
        return loc, f"unknown key; {hint}"
    if kind == "missing":
        return loc[:-1], f"the key {shown(str(loc[-1]))} is missing; add it"
    if kind in _EXPECTED:
        return loc, f"expected {_EXPECTED[kind]}, got {described(value)}"
    if kind in _BOUND:
        return (
            loc,
            f"{shown(value)} is out of range; expected {' and '.join(_bounds(loc, model, error))}",
        )
    if kind == "literal_error":
        valid = re.findall(r"'([^']*)'", context["expected"])
        close = f"; {nearest(value, valid)}" if isinstance(value, str) else ""
        return loc, f"{described(value)} is not valid; expected {context['expected']}{close}"
    if kind == "string_pattern_mismatch":
        return loc, f"{shown(value)} cannot be used as a name; {NAME_RULE}"
    return loc, error["msg"].removeprefix("Value error, ")


def _misspelt(first: Any, every: Sequence[Any]) -> Any | None:
    """Where a key is missing: the error of an unknown one beside it that is probably meant for it,
    whose line says what to correct."""
    if first["type"] != "missing":
        return None
    *place, name = first["loc"]
    unknown = [e for e in every if e["type"] == "extra_forbidden" and [*e["loc"][:-1]] == place]
    return next((e for e in unknown if nearest(e["loc"][-1], [name]).startswith("did")), None)


def _also(first: Any, every: Sequence[Any]) -> str:
    """The next two keys that are not known either, and how many more there are."""
    others = [item["loc"][-1] for item in every if item["type"] == first["type"]]
    others.remove(first["loc"][-1])
    if not others:
        return ""
    more = f" and {len(others) - 2} more" if len(others) > 2 else ""
    return f"as well as {', '.join(map(shown, others[:2]))}{more}: "


NAME_RULE = "expected 1 to 64 of A-Z a-z 0-9 . _ - and not . or - as the first"


def _bounds(loc: Key, model: type[BaseModel], error: Any) -> Iterator[str]:
    """All bounds of the field, not only the one that was hit: 'more than 0', 'at most 1'."""
    info = model.model_fields.get(str(loc[-1])) if len(loc) == 1 else None
    stated = {
        name: getattr(item, name)
        for item in (info.metadata if info else ())
        for name, _ in _BOUND.values()
        if getattr(item, name, None) is not None
    }
    for name, words in _BOUND.values():
        bound = (stated or error["ctx"]).get(name)
        if bound is not None:
            yield f"{words} {bound:g}" if isinstance(bound, float) else f"{words} {bound}"


def described(value: Any) -> str:
    """A value with its type, where the type is what is wrong: `the text '0'`."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text {shown(value)}"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    return shown(value)
