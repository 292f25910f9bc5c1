"""Reading recipes: what a `fit.py` states of itself, without running it.

A recipe's docstring and constants are read from its source, so that listing, describing and choosing one imports
neither torch nor a model. A constant is a literal, a dictionary with others unpacked into it (`**PLAN_ARGS`), or the
name of such a constant of another module of `submissions`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import InputError

_ROOT = Path(__file__).resolve().parents[1]
_SHARED = "submissions"


@dataclass(frozen=True)
class Recipe:
    """A recipe as its `fit.py` states it.

    Args:
        name: of its folder.
        source: its `fit.py`.
        description: the docstring; the first line is a summary.
        needs_base: whether it changes a submission (`NEEDS_BASE`), or makes one from nothing.
        version: raised when the same inputs give other weights (`VERSION`).
        method: for the manifest (`METHOD`); empty where the recipe writes its own.
        args: what `--recipe-arg` can set, with defaults (`ARGS`).
        model_args: what `--model-arg` can set of a fitted submission, with defaults (`MODEL_ARGS`).
        requires: distributions that a fitted submission needs besides its base's (`REQUIRES`).
        takes_generic: whether `--generic` may name a second collection, not to be forgotten (`TAKES_GENERIC`).
        shares_out: whether what its frozen base makes of items can be shared out to a cluster (`SHARES_OUT`).
        search: values that `--search` tries, by argument (`SEARCH`); empty where it has none to try.
    """

    name: str
    source: Path
    description: str
    needs_base: bool
    version: int
    method: str
    args: Mapping[str, str]
    model_args: Mapping[str, str]
    requires: Sequence[str]
    takes_generic: bool = False
    shares_out: bool = False
    search: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.description.partition("\n")[0]


def read_recipe(source: Path) -> Recipe:
    """The recipe in the file `source`.

    Raises:
        InputError: it has no docstring, or a constant is not of the kind that can be read.
    """
    module = _Module(source)
    description = ast.get_docstring(module.tree) or ""
    if not description:
        raise InputError(f"{source} has no docstring; expected one whose first line says what the recipe does.")
    args = _checked_args(source, "ARGS", module.constant("ARGS", {}))
    return Recipe(
        name=source.parent.name,
        source=source,
        description=description,
        needs_base=module.constant("NEEDS_BASE", False),
        version=module.constant("VERSION", 1),
        method=module.constant("METHOD", ""),
        args=args,
        model_args=_checked_args(source, "MODEL_ARGS", module.constant("MODEL_ARGS", {})),
        requires=module.constant("REQUIRES", []),
        takes_generic=module.constant("TAKES_GENERIC", False),
        shares_out=module.constant("SHARES_OUT", False),
        search=_checked_search(source, args, module.constant("SEARCH", {})),
    )


def _checked_args(source: Path, name: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise InputError(f"{source}: {name} is {value!r}; expected strings by name, such as {{'rank': '2'}}.")
    return value


def _checked_search(source: Path, args: Mapping[str, str], value: object) -> dict[str, list[str]]:
    if not isinstance(value, dict) or not all(_is_choice(key, values, args) for key, values in value.items()):
        raise InputError(
            f"{source}: SEARCH is {value!r}; expected a list of strings for some of its ARGS, such as "
            "{'rank': ['2', '4']}."
        )
    return value


def _is_choice(key: object, values: object, args: Mapping[str, str]) -> bool:
    return key in args and isinstance(values, list) and bool(values) and all(isinstance(text, str) for text in values)


class _Module:
    """A Python file, of which module-level constants can be evaluated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path}: {error}.") from None

    def constant(self, name: str, default: Any) -> Any:
        """The value of a constant; `default` where the module does not have it."""
        return self._find(name) if name in self._assigned() or name in self._imported() else default

    def _find(self, name: str) -> Any:
        if name in (assigned := self._assigned()):
            return self._evaluate(assigned[name])
        if name not in (imported := self._imported()):
            raise InputError(f"{self.path} defines no {name}, which a constant of a recipe is made from.")
        module, original = imported[name]
        return _Module(_file_of(module))._find(original)

    def _assigned(self) -> dict[str, ast.expr]:
        found: dict[str, ast.expr] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign):
                found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                found[node.target.id] = node.value
        return found

    def _imported(self) -> dict[str, tuple[str, str]]:
        """Names that come from other modules of `submissions`, each with its module and its name there."""
        return {
            alias.asname or alias.name: (node.module, alias.name)
            for node in self.tree.body
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == _SHARED
            for alias in node.names
        }

    def _evaluate(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.List() | ast.Tuple():
                return [self._evaluate(item) for item in node.elts]
            case ast.Dict():
                return self._merge(node)
            case ast.Name():
                return self._find(node.id)
            case ast.Call(func=ast.Name(id="dict"), args=[copied], keywords=[]):
                return self._evaluate(copied)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in (imported := self._imported()):
                return _Module(_file_of(".".join(imported[name])))._find(attribute)
        raise InputError(
            f"{self.path}, line {node.lineno}: `{ast.unparse(node)}` cannot be read without running it; "
            "expected a literal, or the name of one in a module of submissions."
        )

    def _merge(self, node: ast.Dict) -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            part = self._evaluate(value)
            merged |= part if key is None else {self._evaluate(key): part}
        return merged


def _file_of(module: str) -> Path:
    return _ROOT.joinpath(*module.split(".")).with_suffix(".py")
