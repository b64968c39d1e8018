"""What the domains share: tools that each of them has, and look-ups that may refuse."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from tarl_jax.sandbox.domain import Record, State, ToolError

# --- tools ----------------------------------------------------------------------------------------

CHARACTERS = frozenset("0123456789+-*/(). ")  # of an expression to calculate
_MAX_CHARACTERS = 1000
_MAX_DEPTH = 200
_MAX_DIGITS = 100


def _power(base: float, exponent: float) -> float:
    # 9**9**9 has to be refused before the work: that would not end.
    if base != 0 and exponent * math.log10(abs(base)) > _MAX_DIGITS:
        raise OverflowError
    return base**exponent


_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: _power,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(db: State, expression: str) -> str:
    """Compute the value of an arithmetic expression, rounded to two decimals.

    Args:
        expression: Numbers, the operators + - * /, parentheses and spaces, such as '2 + 2'.
    """
    if not set(expression) <= CHARACTERS:
        raise ToolError("invalid characters in expression")
    if len(expression) > _MAX_CHARACTERS:
        raise ToolError(f"expression longer than {_MAX_CHARACTERS} characters")
    try:
        tree = ast.parse(expression.lstrip(" "), "<string>", "eval")
        return str(round(float(_value(tree.body, 0)), 2))
    except (SyntaxError, ZeroDivisionError) as error:
        raise ToolError(str(error)) from None
    except (MemoryError, OverflowError, RecursionError):
        raise ToolError("expression too large") from None


def _value(node: ast.AST, depth: int) -> int | float:
    if depth > _MAX_DEPTH:
        raise ToolError("expression nested too deeply")
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        value = node.value
    elif isinstance(node, ast.UnaryOp | ast.BinOp) and type(node.op) in _OPERATORS:
        sides = [node.operand] if isinstance(node, ast.UnaryOp) else [node.left, node.right]
        values = [_value(side, depth + 1) for side in sides]
        value = _OPERATORS[type(node.op)](*values)
    else:
        raise ToolError("expression is not arithmetic on numbers")
    if isinstance(value, complex) or abs(value) > 10**_MAX_DIGITS:
        raise ToolError("number too large or not real")
    return value


def think(db: State, thought: str) -> str:
    """Note a thought. It brings no new information and changes nothing; use it to reason.

    Args:
        thought: The thought.
    """
    return ""


def transfer_to_human_agents(db: State, summary: str) -> str:
    """Hand the user over to a human agent: only if they ask for one, or the tools cannot help.

    Args:
        summary: A summary of the user's issue.
    """
    return "Transfer successful"


# --- look-ups -------------------------------------------------------------------------------------


def find_record(db: State, table: str, key: str) -> Record:
    """The record, read only. Raises ToolError, such as "user not found" for table "users"."""
    record = db.get(table, key)
    if record is None:
        raise ToolError(f"{table.removesuffix('s')} not found")
    return record


def find_payment_method(db: State, user_id: str, method_id: str) -> Record:
    """A payment method of the user, read only. Raises ToolError if they have none of this id."""
    methods = find_record(db, "users", user_id)["payment_methods"]
    if method_id not in methods:
        raise ToolError("payment method not found")
    return methods[method_id]
