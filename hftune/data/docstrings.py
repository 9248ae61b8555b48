# SPDX-License-Identifier: Apache-2.0
"""``demo:docstrings``: real text that every installation has.

Collects the docstring summaries of the scientific packages beside hftune. As classification the
task is to tell which package a summary comes from, naturally imbalanced; with several labels also
whether it is of a class, a method or a function; with a number how long the code is; as generation
to write the summary from the signature; as tagging it is to find parameters, types, defaults and
base classes in the signature. Source files are parsed and never imported, so collecting runs no
foreign code.

Docstrings of one module resemble each other to the word, so a fair validation part holds modules
that training has not seen; the ``module`` column is there to split by.
"""

import ast
import hashlib
import inspect
import io
import json
import math
import tokenize
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hftune.core import cache

#: What is running, even if the file changes meanwhile.
SOURCE = Path(__file__).read_bytes()
#: Distribution name -> import name. All are dependencies of hftune, direct or through these.
PACKAGES = {
    "matplotlib": "matplotlib",
    "networkx": "networkx",
    "numpy": "numpy",
    "pandas": "pandas",
    "scikit-learn": "sklearn",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}
ROWS_PER_PACKAGE = 400
ROWS_FILE = "rows.jsonl"
QUESTION = "Write the one-sentence docstring summary of this Python definition:\n\n"
SUMMARY_CHARACTERS = range(30, 401)
NOT_PUBLIC = {"tests", "test", "testing", "conftest", "externals", "vendored", "benchmarks"}


def conversation(row: dict[str, Any]) -> list[dict[str, str]]:
    """Return a row as a question about its signature, and the summary as the answer."""
    return [
        {"role": "user", "content": QUESTION + row["signature"]},
        {"role": "assistant", "content": row["summary"]},
    ]


def tagged_signature(signature: str) -> dict[str, list[str]]:
    """Return the Python tokens of a signature and their tags, as the parser understands them.

    The kinds are ``parameter``, ``type``, ``default`` and ``base``, tagged in IOB2.
    """
    (node,) = ast.parse(f"{signature}: ...").body
    spans = [
        (kind, len(signature.encode()[:start].decode()), len(signature.encode()[:stop].decode()))
        for kind, start, stop in _parts(node)
    ]
    tokens, tags = [], []
    open_span = None
    for token in tokenize.generate_tokens(io.StringIO(signature).readline):
        start = token.start[1]
        if token.start[0] > 1 or not token.string.strip():
            continue  # the end
        span = next((span for span in spans if span[1] <= start < span[2]), None)
        tokens.append(token.string)
        tags.append("O" if span is None else f"{'I' if span == open_span else 'B'}-{span[0]}")
        open_span = span
    return {"tokens": tokens, "tags": tags}


def _parts(node: ast.stmt) -> Iterator[tuple[str, int, int]]:
    """Yield the kind, first byte and end of each part of a signature."""
    if isinstance(node, ast.ClassDef):
        for base in node.bases:
            yield "base", base.col_offset, base.end_col_offset or 0
    elif isinstance(node, ast.FunctionDef):
        arguments = node.args
        many = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *many]:
            name_end = argument.col_offset + len(argument.arg.encode())
            yield "parameter", argument.col_offset, name_end
            if argument.annotation is not None:
                kind = argument.annotation
                yield "type", kind.col_offset, kind.end_col_offset or 0
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            if default is not None:
                yield "default", default.col_offset, default.end_col_offset or 0


def docstring_rows() -> list[dict[str, Any]]:
    """Return rows, cached while they are current.

    Each has ``module``, ``name``, ``signature``, ``summary``, ``package``, ``kind`` (class, method
    or function), ``topics`` (package and kind), and ``log2_statements`` of the code beneath. The
    same installed versions give the same rows in the same order. At most ``ROWS_PER_PACKAGE`` rows
    come from one package; no summary stands twice.
    """
    versions = {distribution: version(distribution) for distribution in PACKAGES}
    key = cache.digest(hashlib.sha256(SOURCE).hexdigest(), versions)

    def fill(folder: Path) -> None:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in collect_rows())
        (folder / ROWS_FILE).write_text("".join(lines), encoding="utf-8")

    with cache.until_read(cache.found_or_written("docstrings", key, fill)) as folder:
        lines = (folder / ROWS_FILE).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def collect_rows() -> list[dict[str, Any]]:
    """Parse the packages' public modules into the rows of :func:`docstring_rows`."""
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for distribution, package in PACKAGES.items():
        taken = 0
        for row in _package_rows(package):
            if taken == ROWS_PER_PACKAGE:
                break
            if row["summary"].casefold() not in seen:
                seen.add(row["summary"].casefold())
                topics = [distribution, row["kind"]]
                rows.append({**row, "package": distribution, "topics": topics})
                taken += 1
    return rows


def _package_rows(package: str) -> Iterator[dict[str, Any]]:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is a dependency"
    root = Path(spec.origin).parent
    modules = [path for path in root.rglob("*.py") if _is_public(path.relative_to(root))]
    # By hash, so that a capped package is sampled over its whole breadth, always the same way.
    modules.sort(key=lambda path: hashlib.sha256(str(path.relative_to(root)).encode()).digest())
    for path in modules:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        module = ".".join((package, *path.relative_to(root).with_suffix("").parts))
        module = module.removesuffix(".__init__")
        for row in _definition_rows(tree, module):
            yield {"module": module, **row}


def log2_statements(node: ast.FunctionDef | ast.ClassDef) -> float:
    """Return how much code stands beneath a definition line, docstrings left out.

    It is the logarithm to base 2 of one more than the statements, so that no code is 0, rounded to
    four decimals.
    """
    inside = [inner for statement in node.body for inner in ast.walk(statement)]
    statements = sum(isinstance(inner, ast.stmt) and not _is_text(inner) for inner in inside)
    return round(math.log2(1 + statements), 4)


def _is_text(node: ast.AST) -> bool:
    """Tell whether this is a docstring, or another text that does nothing."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_public(path: Path) -> bool:
    *folders, stem = path.with_suffix("").parts
    parts = folders if stem == "__init__" else [*folders, stem]
    return not any(part.startswith(("_", "test_")) or part in NOT_PUBLIC for part in parts)


def _definition_rows(scope: ast.Module | ast.ClassDef, prefix: str) -> Iterator[dict[str, Any]]:
    for node in scope.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        name = f"{prefix}.{node.name}"
        summary = _summary(node)
        if len(summary) in SUMMARY_CHARACTERS:
            yield {
                "name": name,
                "signature": _signature(node),
                "summary": summary,
                "kind": _kind(node, scope),
                "log2_statements": log2_statements(node),
            }
        if isinstance(node, ast.ClassDef):
            yield from _definition_rows(node, name)


def _kind(node: ast.AST, scope: ast.AST) -> str:
    if isinstance(node, ast.ClassDef):
        return "class"
    return "method" if isinstance(scope, ast.ClassDef) else "function"


def _summary(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return the docstring's first paragraph on one line."""
    return " ".join(inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n")[0].split())


def _signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.FunctionDef):
        return f"def {node.name}({ast.unparse(node.args)})"
    return f"class {node.name}({', '.join(ast.unparse(base) for base in node.bases)})"
