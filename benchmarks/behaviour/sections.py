# SPDX-License-Identifier: Apache-2.0
"""The sections of a record: their items, and how these are worked off."""

import multiprocessing
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import commands
import curves
import drafts
import old_runs
import surface

#: Section -> what makes its items, what records one of them.
SECTIONS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., Any]]] = {
    "recipes": (drafts.recipe_items, drafts.record),
    "refusals": (drafts.refusal_items, drafts.record),
    "curves": (curves.items, curves.record),
    "cli": (commands.items, commands.record),
    "old_runs": (old_runs.items, old_runs.record),
}
CHUNK = 8


def items(section: str, place: surface.Place, names: Any) -> dict[str, Any]:
    """Return what a section records, by key."""
    return SECTIONS[section][0](place, names)


def record(
    section: str, place: surface.Place, chosen: list[tuple[str, Any]], jobs: int
) -> Iterable[tuple[str, Any]]:
    """Yield what was recorded, by this process or by several."""
    if jobs < 2:
        yield from record_here(section, place, chosen)
        return
    chunks = [chosen[start : start + CHUNK] for start in range(0, len(chosen), CHUNK)]
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=fresh) as pool:
        pending = [pool.submit(record_here, section, place, chunk) for chunk in chunks]
        for number, done in enumerate(pending, start=1):
            yield from done.result()
            if number % 10 == 0:
                print(f"{section}: {number} of {len(chunks)} parts", file=sys.stderr, flush=True)


def record_here(
    section: str, place: surface.Place, chosen: list[tuple[str, Any]]
) -> list[tuple[str, Any]]:
    """Record some items in this process."""
    surface.quiet_libraries()
    return [(key, _recorded(section, place, key, item)) for key, item in chosen]


def _recorded(section: str, place: surface.Place, key: str, item: Any) -> Any:
    try:
        return SECTIONS[section][1](place, key, item)
    except Exception as error:  # one item that breaks the recorder spoils no other
        return {"broken": f"{type(error).__name__}: {place.plain(str(error))}"}
