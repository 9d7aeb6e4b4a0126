"""Threshold expressions: a few operators over columns, parsed once, evaluated by polars.

Promises: nothing is executed, only the node kinds below are known, and a column that does not exist is refused with the
nearest one named. Refuses: calls other than `abs`, `min`, `max`, strings, subscripts, attributes other than
`baseline.<column>`, and mixing numbers with truth values.

    latency_p99_ns > 2 * baseline.latency_p99_ns and lost > 0
"""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from t2s.errors import ExpressionError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import polars as pl

Kind = Literal["number", "truth"]

BASELINE = "baseline"
"""The name under which the baseline's row stands in an expression."""

MAX_LENGTH = 1_000
"""Characters of an expression; bounds the parser's recursion too."""

MAX_NUMBER = 1e18
"""Largest literal; a nanosecond count of 30 years is below it, and a 64-bit integer holds it."""

_ARITHMETIC: dict[type[ast.operator], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
}
_COMPARISON: dict[type[ast.cmpop], tuple[str, Callable[[pl.Expr, pl.Expr], pl.Expr]]] = {
    ast.Gt: (">", lambda left, right: left > right),
    ast.GtE: (">=", lambda left, right: left >= right),
    ast.Lt: ("<", lambda left, right: left < right),
    ast.LtE: ("<=", lambda left, right: left <= right),
    ast.Eq: ("==", lambda left, right: left == right),
    ast.NotEq: ("!=", lambda left, right: left != right),
}
_ARITY = {"abs": (1, 1), "min": (2, 8), "max": (2, 8)}


def baseline_name(column: str) -> str:
    """Return the name of a baseline's column in the frame that an expression is evaluated on."""
    return f"{BASELINE}.{column}"


@dataclass(frozen=True)
class Expression:
    """A checked expression over columns."""

    text: str
    tree: ast.expr
    kind: Kind
    columns: frozenset[str]
    """Columns of the scenario's own row."""
    baseline_columns: frozenset[str]
    """Columns of the baseline's row."""

    def to_polars(self) -> pl.Expr:
        """Return the polars expression over `<column>` and `baseline.<column>`."""
        return _polars(self.tree)

    def comparison(self) -> tuple[Expression, str, Expression] | None:
        """Split a single comparison in its two sides and its sign; None for anything else."""
        match self.tree:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._part(left), _COMPARISON[type(op)][0], self._part(right)
            case _:
                return None

    def _part(self, tree: ast.expr) -> Expression:
        return parse(ast.unparse(tree), self.columns | self.baseline_columns, "number")


def parse(text: str, columns: Collection[str], kind: Kind = "truth") -> Expression:
    """Parse an expression and check every name in it.

    Raises:
        ExpressionError: it does not parse, uses more than is known here, or names an unknown column.

    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"longer than {MAX_LENGTH} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "cannot be parsed"
        raise ExpressionError(f"not an expression: {reason}") from None
    checker = _Checker(frozenset(columns))
    found = checker.kind_of(tree)
    if found != kind:
        raise ExpressionError(f"gives a {found} where a {kind} is needed")
    return Expression(text.strip(), tree, found, frozenset(checker.own), frozenset(checker.baseline))


class _Checker:
    """Types of all nodes, and the names met on the way."""

    def __init__(self, known: frozenset[str]) -> None:
        self.known = known
        self.own: set[str] = set()
        self.baseline: set[str] = set()

    def kind_of(self, node: ast.expr) -> Kind:
        match node:
            case ast.Constant(value=bool()):
                return "truth"
            case ast.Constant(value=int() | float() as value):
                if abs(value) > MAX_NUMBER:
                    raise ExpressionError(f"`{node.value!r:.20}` is beyond {MAX_NUMBER:g}")
                return "number"
            case ast.Name(id=name):
                self.own.add(self.column(name))
                return "number"
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner == BASELINE:
                self.baseline.add(self.column(name))
                return "number"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.all_of([operand], "truth")
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                return self.all_of([operand], "number")
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                return self.all_of([left, right], "number")
            case ast.BoolOp(values=values):
                return self.all_of(values, "truth")
            case ast.Compare(left=left, ops=ops, comparators=rights) if all(type(op) in _COMPARISON for op in ops):
                self.all_of([left, *rights], "number")
                return "truth"
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _ARITY:
                least, most = _ARITY[name]
                if not least <= len(args) <= most:
                    raise ExpressionError(f"`{name}` takes {least} to {most} values, not {len(args)}")
                return self.all_of(args, "number")
            case _:
                raise ExpressionError(
                    f"`{ast.unparse(node)}` is not known here: columns, `baseline.<column>`, numbers, + - * /, "
                    "comparisons, and, or, not, abs, min, max"
                )

    def all_of(self, nodes: list[ast.expr], kind: Kind) -> Kind:
        for node in nodes:
            if self.kind_of(node) != kind:
                raise ExpressionError(f"`{ast.unparse(node)}` is not a {kind}")
        return kind

    def column(self, name: str) -> str:
        if name in self.known:
            return name
        near = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise ExpressionError(f'no column "{name}"{hint}')


def _polars(node: ast.expr) -> pl.Expr:
    """Build the polars expression of a node that `_Checker` has accepted."""
    import polars as pl  # noqa: PLC0415 - heavy, and only the lab evaluates thresholds

    match node:
        case ast.Constant(value=value):
            return pl.lit(value)
        case ast.Name(id=name):
            return pl.col(name)
        case ast.Attribute(attr=name):
            return pl.col(baseline_name(name))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _polars(operand).not_()
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_polars(operand)
        case ast.UnaryOp(operand=operand):
            return _polars(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_polars(left), _polars(right))
        case ast.BoolOp(op=op, values=values):
            parts = [_polars(value) for value in values]
            joined = parts[0]
            for part in parts[1:]:
                joined = joined & part if isinstance(op, ast.And) else joined | part
            return joined
        case ast.Compare(left=left, ops=ops, comparators=rights):
            operands = [_polars(side) for side in (left, *rights)]
            links = [_COMPARISON[type(op)][1](operands[index], operands[index + 1]) for index, op in enumerate(ops)]
            chained = links[0]
            for link in links[1:]:
                chained = chained & link
            return chained
        case ast.Call(func=ast.Name(id="abs"), args=[argument]):
            return _polars(argument).abs()
        case ast.Call(func=ast.Name(id=name), args=args):
            arguments = [_polars(argument) for argument in args]
            extreme = pl.min_horizontal(arguments) if name == "min" else pl.max_horizontal(arguments)
            # polars skips nulls here; an unknown side must make the whole unknown, as it does in arithmetic.
            return (
                pl.when(pl.any_horizontal([argument.is_null() for argument in arguments])).then(None).otherwise(extreme)
            )
        case _:
            raise AssertionError(f"unchecked node {ast.dump(node)}")
