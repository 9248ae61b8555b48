# SPDX-License-Identifier: Apache-2.0
"""Two recordings beside each other."""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHOWN = 400
ABSENT = "<absent>"


def compare(old: Path, new: Path, only: list[str] | None, match: str | None) -> int:
    """Print every difference, and return 1 if there is one."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (old, new)]
    sections = [record["sections"] for record in records]
    wanted = only or sorted({*sections[0], *sections[1]})
    differences = 0
    for name in wanted:
        left, right = (
            {key: item for key, item in section.get(name, {}).items()
             if match is None or re.search(match, key)}
            for section in sections
        )  # fmt: skip
        different = [key for key in {**left, **right} if left.get(key) != right.get(key)]
        for key in different:
            for path, before, after in _leaves(left.get(key, ABSENT), right.get(key, ABSENT)):
                print(f"--- {' / '.join([name, key, *path])}\n{_shown(before, after)}")
        equal = len({**left, **right}) - len(different)
        values = sum(_size(left[key]) for key in left if left[key] == right.get(key))
        print(f"{name}: {equal} items equal ({values} values), {len(different)} different")
        differences += len(different) + (not left and not right)
    for label, record in zip(("old", "new"), records, strict=True):
        print(f"{label}: {json.dumps(record['of'])}")
    print("no difference" if not differences else f"{differences} items differ")
    return int(bool(differences))


def _leaves(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any, Any]]:
    """Yield path, old and new value of everything that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _leaves(old.get(key, ABSENT), new.get(key, ABSENT), (*path, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _leaves(before, after, (*path, str(index)))
    elif old != new:
        yield path, old, new


def _shown(old: Any, new: Any) -> str:
    if isinstance(old, str) and isinstance(new, str) and "\n" in old + new:
        lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "old", "new", "", "", 1)
        return "\n".join(line.rstrip("\n") for line in list(lines)[2:40])
    return f"  old: {_cut(old)}\n  new: {_cut(new)}"


def _cut(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ... ({len(text)} characters)"


def _size(value: Any) -> int:
    """Return how many plain values there are in one."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 1
