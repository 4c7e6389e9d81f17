"""Every error code in the source, to be compared with the table in `app/api/documents/error_codes.toml`.

A code is a string literal given to one of the error classes, so the source is read as a syntax tree and
nothing is imported.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from app.api.documents.error_codes import documented

__all__ = ["documented", "used", "used_statuses"]

ROOT = Path(__file__).parents[2]
# The class, and which of its positional arguments is the code.
HTTP_ERRORS = {
    "Problem": 1,
    **dict.fromkeys(("ImageRejected", "LoraRefused", "PydanticCustomError", "WebhookRefused"), 0),
}
JOB_ERRORS = {"JobFailure": 0, "JobError": 0, "LoraNotApplied": 0}


def used(kind: str) -> set[str]:
    """The codes that the source uses; a code with a part that varies has `FIELD` in its place."""
    errors = HTTP_ERRORS if kind == "request" else JOB_ERRORS
    return {code for path in sorted((ROOT / "app").rglob("*.py")) for code in _in_file(path, errors, kind)}


def used_statuses() -> set[tuple[str, int]]:
    """Each code with the status that is written beside it, where both are literals."""
    found = set()
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _name(node.func) == "Problem" and len(node.args) > 1:
                status, code = node.args[:2]
                if isinstance(status, ast.Constant) and isinstance(status.value, int):
                    found |= {(text, status.value) for text in _strings(code, {})}
    return found


def _in_file(path: Path, errors: dict[str, int], kind: str) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        values = {
            target.id: node.value
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(scope):
            if isinstance(node, ast.Call) and _name(node.func) in errors:
                position = errors[_name(node.func)]
                if len(node.args) > position:
                    yield from _strings(node.args[position], values)
            elif isinstance(node, ast.Dict) and kind == "job":
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "code":
                        yield from _strings(value, {})
            elif isinstance(node, ast.Return) and kind == "request" and scope.name.endswith("_code"):
                yield from _strings(node.value, {})


def _name(function: ast.expr) -> str:
    return getattr(function, "id", getattr(function, "attr", ""))


def _strings(node: ast.expr | None, values: dict[str, ast.expr]) -> Iterator[str]:
    """The strings an expression can be, as far as it is written out; variables are looked up in `values`."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "FIELD" for part in parts)
        case ast.IfExp(body=one, orelse=other):
            yield from _strings(one, values)
            yield from _strings(other, values)
        case ast.Name(id=name) if name in values:
            yield from _strings(values[name], {})
