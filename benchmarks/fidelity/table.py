# SPDX-License-Identifier: Apache-2.0
"""Print the table of all methods that the docs show, from the results that are kept.

python benchmarks/fidelity/table.py
"""

import json
from typing import Any

from cells import RESULTS


def main() -> None:
    """Print Markdown, the best first; costs stand there where they were measured."""
    quality, costs = read("fidelity_classification.json")["table"], read("fidelity_costs.json")
    heads = ["Method", "Seeds", "Accuracy", "Macro F1", "Above `full`", "Trained weights", "Saved"]
    heads += ["Peak memory", "A step, of full"] if costs else []
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for method in sorted(quality, key=lambda name: -quality[name]["f1_macro_above_full"]["mean"]):
        row = [method, *of_quality(quality[method])]
        row += of_cost(costs.get(method)) if costs else []
        print(f"| {' | '.join(row)} |")


def read(name: str) -> dict[str, Any]:
    """Return the summary of a file of results; nothing if it is not there."""
    if not (RESULTS / name).exists():
        return {}
    summary: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))["summary"]
    return summary


def of_quality(quality: dict[str, Any]) -> list[str]:
    """Return the columns of quality and size; half the range over seeds stands behind a mean."""
    told = []
    for figure, form in (("accuracy", ".3f"), ("f1_macro", ".3f"), ("f1_macro_above_full", "+.3f")):
        mean, half = quality[figure]["mean"], quality[figure]["range"] / 2
        told.append(f"{mean:{form}}" + (f" ± {half:.3f}" if half else ""))
    trained = quality["trainable_parameters"]
    saved = f"{quality['saved_bytes'] / 2**20:.2f} MiB"
    return [str(quality["seeds"]), *told, f"{trained:,}" if trained else "", saved]


def of_cost(cost: dict[str, Any] | None) -> list[str]:
    """Return the columns of cost."""
    return (
        ["", ""]
        if cost is None
        else [f"{cost['peak_mib']:,.0f} MiB", f"{cost['step_of_full']:.2f}"]
    )


if __name__ == "__main__":
    main()
