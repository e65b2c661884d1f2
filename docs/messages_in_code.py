"""Read the messages that the code gives a user off the code, as docs/messages.py lists them.

What says a message is a call: of an exception, of `log`, `Finding`, `report_error`, a parser's `error`. Its text is followed
through the variables, constants and callers' arguments that it is made of; what is known only when it runs is a placeholder.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vertex_runtime", "vertex_local", "vertex_submit", "data_tools", "templates", "pipelines", "taxifare", "stackoverflow")
# What says a message, and which argument the text is. An exception's is its `message`, or the first.
SAID_BY = {"report_error": 0, "exit": -1, "print": 0, "log": 1, "error": -1, "Finding": 2}
PRINTED = ("UserError", "ApiError", "OSError", "CsvError", "ArgumentTypeError")  # with what is derived; others end up inside a message
PART = "part of another message"
LEVELS = {"ERROR": "error", "WARNING": "warning", "MISSING": "missing", "SKIPPED": "not looked at", "OK": "", "NOTE": "", "INFO": ""}
PLACES = ("at", "in_file")  # calls that put file, line and field before a text
# Functions whose texts stand in messages, such as what is wrong with a machine.
RETURNING = (
    "problem", "_n1_problem", "_tpu_problem", "warning", "clashes", "decide", "_unknown", "must_be", "_batch_problem", "_others", "remedy",
    "_fault", "last_error", "_failure", "_unmeasured", "_refusal", "_cost", "_why", "_notes", "_stopping_rule", "why_dead", "tells",
)  # fmt: skip
PASSING = ("quoted", "first_line", "dumps", "relpath", "basename", "_line")  # calls that show their argument
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Scope(NamedTuple):
    """Where an expression stands: its file, the function around it, and what that function's caller gave it."""

    module: Module
    function: Function | None = None
    given: Mapping[str, tuple[ast.expr, Scope]] = {}


class Message(NamedTuple):
    """A message: its file, what it is (error, warning, an API status, …), and its text with ‹placeholders›."""

    path: str
    kind: str
    text: str


class Module:
    """One file: its tree, and the parent of each node."""

    def __init__(self, path: Path):
        self.name, self.tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}
        calls = [node for node in self.parents if isinstance(node, ast.Call)]
        self.calls = [(call, next((node for node in self.above(call) if isinstance(node, Function)), None)) for call in calls]

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield a node, its parent, and so on to the file."""
        while node in self.parents:
            yield node
            node = self.parents[node]

    def surrounds(self, statement: ast.stmt, node: ast.AST) -> bool:
        """Tell whether a statement stands in a block around `node`, and so has always run before it."""
        blocks = [block for _, block in ast.iter_fields(self.parents[statement]) if isinstance(block, list) and statement in block]
        return any(each in blocks[0] for each in self.above(node))


class Code:
    """All files, their classes, and who calls whom."""

    def __init__(self) -> None:
        self.modules = [Module(path) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
        self.classes = {node.name: node for module in self.modules for node in module.tree.body if isinstance(node, ast.ClassDef)}

    def bases(self, name: str) -> set[str]:
        """Return a class's name and those of all that it is derived from; none where it is no class."""
        if name in self.classes:
            return {name}.union(*(self.bases(name_of(base)) for base in self.classes[name].bases if name_of(base) != name))
        known = getattr(builtins, name, None)
        return {kind.__name__ for kind in known.__mro__} if isinstance(known, type) else {name} & {"ArgumentTypeError"}

    def said(self, call: ast.Call, scope: Scope) -> tuple[str, ast.expr] | None:
        """Return what kind of message a call makes and which of its arguments is the text, or None where it makes none."""
        name, count = name_of(call.func), len(call.args)
        bases, first = self.bases(name), call.args[0] if count else None
        if bases & {"Exception", "ArgumentTypeError"} and count:
            bodies = (node for base in (name, *sorted(bases)) for node in getattr(self.classes.get(base), "body", ()))
            init = next((node for node in bodies if getattr(node, "name", "") == "__init__"), None)
            place = next((i for i, arg in enumerate(init.args.args[1:]) if arg.arg == "message"), 0) if init else 0
            kind = "error" if bases & {*PRINTED} else PART
            kind = first.value if place and isinstance(getattr(first, "value", None), str) else kind  # the API's status
            return (kind, call.args[place]) if place < count else None
        if name not in SAID_BY or count <= SAID_BY[name] or not count:
            return None
        text = call.args[SAID_BY[name]]
        if name in ("print", "exit"):
            found = re.match("(error|warning|note): ", render(text, scope))
            return (found[1], text) if found else None
        level = LEVELS.get(getattr(first, "value", "") or name_of(first), "warning") if name in ("log", "Finding") else "error"
        if name == "Finding" and count > 3:
            text = ast.BinOp(text, ast.Add(), ast.BinOp(ast.Constant(" -> "), ast.Add(), call.args[3]))
        return (level, text) if level else None

    def messages(self) -> list[Message]:
        """Return every message that has words of its own, each once."""
        found: set[Message] = set()
        for module in self.modules:
            for call, around in module.calls:
                scope = Scope(module, around)
                said = self.said(call, scope) if getattr(around, "name", "") not in PLACES else None
                for text in self.expand(said[1], scope) if said else ():
                    text = re.sub("^(error|warning|note): ", "", " ".join(text.split()))
                    found |= {Message(module.name, said[0], text)} if words(text) > 1 else set()
            for node in module.parents:
                around = next((each for each in module.above(node) if isinstance(each, Function)), None)
                if isinstance(node, (ast.Return, ast.Yield)) and node.value is not None and name_of(around) in RETURNING:
                    texts = [render(each, Scope(module, around)) for each in getattr(node.value, "elts", [node.value])]
                    found |= {Message(module.name, PART, " ".join(text.split())) for text in texts if words(text) > 2}
        whole = [(each.path, each.text) for each in found]  # a helper's text is said once, with what the helper puts around it
        found -= {each for each in found for path, text in whole if path == each.path and text != each.text
                  and (text.startswith(each.text) or text.endswith(f": {each.text}"))}  # fmt: skip
        return sorted(found, key=lambda message: (re.sub(r"‹[^›]*›|\W+", " ", message.text).strip().lower(), message))

    def expand(self, text: ast.expr, scope: Scope) -> Iterator[str]:
        """Yield a text; one that callers of its function in this file give words for, once for each of them."""
        free: set[str] = set()
        rendered, spread, function = render(text, scope, free), [], scope.function
        for call, around in scope.module.calls if free else ():
            if name_of(call.func) == function.name and around is not function:
                names = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args) if arg.arg not in ("self", "cls")]
                values = [*zip(names, call.args), *((keyword.arg, keyword.value) for keyword in call.keywords)]
                given = {name: (value, Scope(scope.module, around)) for name, value in values}
                if any(words(render(*given[name])) > 1 for name in free & set(given)):
                    spread.append(render(text, Scope(scope.module, function, given)))
        yield from spread or [rendered]


def name_of(node: ast.AST | None) -> str:
    """Return the last name of `a.b.c`, or of what is called or looked up."""
    if isinstance(node, ast.Attribute):
        return node.attr if not node.attr.startswith("__") else name_of(node.value)
    if isinstance(node, (ast.Call, ast.Subscript)):
        return name_of(node.func if isinstance(node, ast.Call) else node.value)
    return getattr(node, "id", "") or getattr(node, "name", "")


def words(text: str) -> int:
    """Count the words of a text that are no placeholder's."""
    return len(re.findall(r"[^\W\d_]{2,}", re.sub("‹[^›]*›", "", text)))


def render(node: ast.expr, scope: Scope, free: set[str] | None = None) -> str:
    """Return a text as a reader sees it: ‹name› for a value, [x] for what may be missing, (x | y) for one of two.

    Args:
        free: gets those parameters of the function around it that the text takes.
    """
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(render(part, scope, free) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return render(node.value, scope, free)
    if isinstance(node, ast.IfExp):
        return choice(render(node.body, scope, free), render(node.orelse, scope, free))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        both = render(node.left, scope, free) + render(node.right, scope, free)
        return both if words(both) or "->" in both else f"‹{label(node)}›"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and isinstance(node.left, (ast.Constant, ast.JoinedStr)):
        return choice(render(node.left, scope, free), "")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in PLACES and len(node.args) > 1:
            return f"‹file:line›: ‹field›: {render(node.args[-1], scope, free)}"
        if node.func.attr != "join" and hasattr(str, node.func.attr) and words(text := render(node.func.value, scope, free)):
            return text
    if isinstance(node, ast.Name):
        return choice(*(render(value, where, free) for value, where in values(node, scope, free))) or f"‹{plain(node.id)}›"
    return f"‹{label(node)}›"


def choice(*texts: str) -> str:
    """Return one of several texts as the page shows it."""
    filled = [text for text in dict.fromkeys(texts) if text not in ("", "None")]
    if len(filled) < 2:
        return f"[{filled[0]}]" if filled and len({*texts}) > 1 else "".join(filled)
    return f"({' | '.join(filled)})"


def values(name: ast.Name, scope: Scope, free: set[str] | None) -> list[tuple[ast.expr, Scope]]:
    """Return the texts that a name may stand for where it is used; none where it is a value."""
    if name.id in scope.given:
        return [scope.given[name.id]]
    function, found = scope.function, []
    if function and name.id in (arg.arg for arg in function.args.args) and free is not None:
        free.add(name.id)
    made = [each for each in ast.walk(function) if isinstance(each, ast.Assign) and each.lineno < name.lineno] if function else []
    for each in sorted(made, key=lambda each: -each.lineno):
        if isinstance(each.targets[0], ast.Name) and each.targets[0].id == name.id:
            found.append((each.value, scope))
            if scope.module.surrounds(each, name):
                break
    if not found:
        own = [each for each in scope.module.tree.body if isinstance(each, ast.Assign) and name_of(each.targets[0]) == name.id]
        return [(each.value, Scope(scope.module)) for each in own if isinstance(each.value, (ast.Constant, ast.JoinedStr))]
    return found if any(words(render(*each)) for each in found) else []


def label(node: ast.AST) -> str:
    """Return a name for a value, from the code that makes it."""
    if isinstance(node, ast.Call):
        name, of = name_of(node.func), getattr(node.func, "value", None)
        if name == "join":
            return label(node.args[0]) + ", …" * (getattr(of, "value", "") != " ")
        if node.args and (name in PASSING or hasattr(builtins, name)):
            return label(node.args[-1])
        return label(of) if of is not None and hasattr(str, name) else plain(name)
    if isinstance(node, ast.Subscript):
        key = getattr(node.slice, "value", None)
        return plain(key) if isinstance(key, str) else label(node.value)
    if isinstance(node, ast.Attribute) and node.attr in ("name", "id", "uri", "path", "number"):
        return f"{plain(name_of(node.value))} {node.attr}" if name_of(node.value) not in ("self", "args", "") else node.attr
    if isinstance(node, (ast.Name, ast.Attribute)):
        return plain(name_of(node))
    return next((name for child in ast.iter_child_nodes(node) if (name := label(child)) != "…"), "…")


def plain(name: str) -> str:
    """Return a name of the code as words."""
    return name.strip("_").replace("_", " ").lower()
