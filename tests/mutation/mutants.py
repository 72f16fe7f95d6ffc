"""The mutants of a module: copies of its source with one change each, made by cosmic-ray."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.operators import (
    binary_operator_replacement,
    boolean_replacer,
    break_continue,
    comparison_operator_replacement,
    exception_replacer,
    number_replacer,
    unary_operator_replacement,
    zero_iteration_for_loop,
)
from cosmic_ray.operators.operator import Operator

if TYPE_CHECKING:
    from collections.abc import Iterator

# Statements that do nothing, or only name things.
_INERT: Final = {
    "pass_stmt",
    "import_name",
    "import_from",
    "global_stmt",
    "nonlocal_stmt",
    "string",
}


class DeleteStatement(Operator):
    """Delete a simple statement.

    `if 0` before it keeps the lines of the module, and the cells of the function, as they are.
    """

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        """Yield the position of a statement that does something."""
        if node.type != "simple_stmt":
            return
        statement = node.children[0]
        inert = statement.type in _INERT or statement.get_code().strip() == "pass"
        if not inert and not _is_declaration(statement):
            yield statement.start_pos, statement.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        """Put `if 0` before the statement."""
        leaf = node.get_first_leaf()
        leaf.value = f"if 0: {leaf.value}"
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


class AddNot(boolean_replacer.AddNot):
    """Negate a condition, unless it is an assignment, which `not` can't precede."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        """Yield the position of a condition."""
        for first, last in super().mutation_positions(node):
            if node.children[1].type != "namedexpr_test":
                yield first, last


def _named(module: Any, *names: str) -> list[Operator]:
    return [getattr(module, name)() for name in names]


# One or two replacements for each operator: the others of cosmic-ray's fail the same tests. Its
# operators for variables invent noise, and RemoveDecorator changes the import only.
_OPERATORS: Final = [
    DeleteStatement(),
    AddNot(),
    *_named(
        comparison_operator_replacement,
        *("ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_LtE_Lt"),
        *("ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_GtE_Gt"),
        *("ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq"),
        *("ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is"),
    ),
    *_named(
        binary_operator_replacement,
        *("ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add"),
        *("ReplaceBinaryOperator_Mul_Add", "ReplaceBinaryOperator_FloorDiv_Mul"),
        *("ReplaceBinaryOperator_BitOr_BitAnd", "ReplaceBinaryOperator_BitAnd_BitOr"),
    ),
    *_named(
        unary_operator_replacement,
        *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_USub_UAdd"),
    ),
    *_named(
        boolean_replacer,
        *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
        *("ReplaceAndWithOr", "ReplaceOrWithAnd"),
    ),
    *_named(break_continue, "ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    exception_replacer.ExceptionReplacer(),
    number_replacer.NumberReplacer(),
    zero_iteration_for_loop.ZeroIterationForLoop(),
]


class Function(NamedTuple):
    """A function of a module, as its code object names it."""

    qualname: str
    first_line: int


class Mutant(NamedTuple):
    """A module with one change."""

    # The name of the module after `iobatch.`.
    module: str
    # The outermost function that has the change.
    function: Function
    # The lines of the statement that has the change.
    lines: range
    # The changed lines, as `before => after`, without comments. If a function has the same change
    # twice, the line before them is added.
    change: str
    # The changed source of the module.
    source: str

    @property
    def name(self) -> str:
        """What identifies the mutant, wherever its line moves."""
        return f"{self.module}.{self.function.qualname}: {self.change}"


def _is_declaration(statement: Any) -> bool:
    """Return whether a statement is a name with its type and no value."""
    second = statement.children[1:2] if statement.type == "expr_stmt" else ()
    return any(each.type == "annassign" and len(each.children) == 2 for each in second)


def path_of(module: str) -> Path:
    """Return the path of a module of iobatch."""
    folder = Path(__file__).parents[2] / "iobatch"
    return folder.joinpath(*module.split(".")).with_suffix(".py")


def mutants_of(module: str) -> list[Mutant]:
    """Return the mutants of a module, in the order of their lines."""
    source = path_of(module).read_text()
    tree = get_ast(source)
    mutants: list[Mutant] = []
    for node in list(ast_nodes(tree)):
        function = _function_of(node)
        for operator in _OPERATORS if function else ():
            for index, position in enumerate(list(operator.mutation_positions(node))):
                mutated = _mutate(tree, node, operator, index)
                (first, _), (last, _) = position
                lines = _lines_of_statement(node) or range(first, last + 1)
                change = _change(source, mutated)
                mutants.append(Mutant(module, function, lines, change, mutated))
    names = Counter(mutant.name for mutant in mutants)
    lines_before = ["", *map(_without_comment, source.splitlines())]
    unique = [
        mutant._replace(change=f"{mutant.change} (after {lines_before[mutant.lines.start - 1]!r})")
        if names[mutant.name] > 1
        else mutant
        for mutant in mutants
    ]
    return sorted(unique, key=lambda mutant: mutant.lines.start)


def _mutate(tree: Any, node: Any, operator: Operator, index: int) -> str:
    """Return the source of a tree in which an operator has changed a node; restore the tree."""
    nodes = list(ast_nodes(node))
    saved = [list(each.children) if hasattr(each, "children") else each.value for each in nodes]
    siblings = node.parent.children
    place = siblings.index(node)
    siblings[place] = operator.mutate(node, index)
    source: str = tree.get_code()
    siblings[place] = node
    for each, before in zip(nodes, saved, strict=True):
        setattr(each, "children" if hasattr(each, "children") else "value", before)
    return source


def _without_comment(line: str) -> str:
    return line.partition("  # ")[0].strip()


def _change(source: str, mutated: str) -> str:
    both = zip(source.splitlines(), mutated.splitlines(), strict=True)
    changed = zip(*(pair for pair in both if pair[0] != pair[1]), strict=True)
    return " => ".join(" ".join(map(_without_comment, lines)) for lines in changed)


def _function_of(node: Any) -> Function | None:
    """Return the outermost function that runs a node; None if there is none."""
    names: list[str] = []
    function: Any = None
    for each in reversed(list(_ancestors(node))):
        if _without_effect(each):
            return None
        if function is None and each.type in {"classdef", "funcdef"}:
            names.append(each.name.value)
            function = each if each.type == "funcdef" else None
    if function is None or function is node:
        return None
    while function.parent.type in {"decorated", "async_stmt", "async_funcdef"}:
        function = function.parent
    return Function(".".join(names), function.start_pos[0])


def _ancestors(node: Any) -> Iterator[Any]:
    while node is not None:
        yield node
        node = node.parent


def _without_effect(node: Any) -> bool:
    """Return whether a node is an annotation, or runs only while the module is imported."""
    parent = node.parent
    if parent is None:
        return False
    annotation = (parent.type == "annassign" and node is parent.children[1]) or (
        parent.type == "funcdef" and node is parent.annotation
    )
    return annotation or node.type in {"parameters", "decorator", "decorators"}


def _lines_of_statement(node: Any) -> range | None:
    """Return the lines of the simple statement that has a node; None for another statement."""
    for each in _ancestors(node):
        if each.type == "simple_stmt":
            return range(each.start_pos[0], each.end_pos[0])
        if each.type == "suite":
            break
    return None
