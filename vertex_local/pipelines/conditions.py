"""The conditions of `dsl.If`, `Elif` and `Else` as kfp compiles them: a small part of CEL over a task's own inputs."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_TOKEN = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|inputs\.parameter_values|&&|\|\||!(?!=)""", re.DOTALL)
_WORDS = {"inputs.parameter_values": "_inputs", "&&": " and ", "||": " or ", "!": " not "}
_NAMES = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_CASTS: dict[str, Callable[[Any], Any]] = {
    "int": int, "double": float, "float": float, "string": str, "str": str, "bool": bool, "size": len,
}  # fmt: skip
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda part, whole: part in whole,
}  # fmt: skip


class ConditionError(ValueError):
    """A condition cannot be evaluated."""


def holds(condition: str, inputs: Mapping[str, Any]) -> bool:
    """Tell whether a condition holds for a task's inputs.

    Raises:
        ConditionError: it does not have the form that kfp compiles, or it names an input that does not exist.
    """
    text = _TOKEN.sub(lambda match: _WORDS.get(match.group(), match.group()), condition)
    try:
        return bool(_value(ast.parse(text.strip(), mode="eval").body, inputs))
    except ConditionError as error:
        raise ConditionError(f"the condition {condition} cannot be evaluated: {error}") from None
    except (SyntaxError, TypeError, ValueError, LookupError) as error:
        raise ConditionError(f"the condition {condition} cannot be evaluated: {type(error).__name__}: {error}") from None


def _value(node: ast.AST, inputs: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "_inputs":
        name = _value(node.slice, inputs)
        if name not in inputs:
            raise ConditionError(f"there is no input {name}")
        return inputs[name]
    if isinstance(node, ast.BoolOp):
        join = all if isinstance(node.op, ast.And) else any
        return join(_value(each, inputs) for each in node.values)
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, inputs)
        return not value if isinstance(node.op, ast.Not) else -value
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        left, right = _value(node.left, inputs), _value(node.comparators[0], inputs)
        return _COMPARISONS[type(node.ops[0])](left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CASTS and len(node.args) == 1:
        return _CASTS[node.func.id](_value(node.args[0], inputs))
    if isinstance(node, ast.List):
        return [_value(each, inputs) for each in node.elts]
    raise ConditionError(f"{ast.unparse(node)} is not supported here")
