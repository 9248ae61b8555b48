# SPDX-License-Identifier: Apache-2.0
"""Print the table of all methods that the docs show, from the results that are kept.

python benchmarks/fidelity/table.py
"""

import json
from typing import Any

from cells import RESULTS


def main() -> None:
    """Print Markdown: the best macro F1 first."""
    quality = read("fidelity_classification.json")["table"]
    costs = read("fidelity_costs.json")
    print("| Method | Accuracy | Macro F1 | Trained weights | Saved | Peak memory | A step |")
    print("|---|---|---|---|---|---|---|")
    for method in sorted(quality, key=lambda name: -quality[name]["f1_macro"]["mean"]):
        print("| " + " | ".join([method, *columns(quality[method], costs.get(method))]) + " |")


def read(name: str) -> dict[str, Any]:
    """Return the summary of a file of results."""
    summary: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))["summary"]
    return summary


def columns(quality: dict[str, Any], cost: dict[str, Any] | None) -> list[str]:
    """Return the columns after the name; the range over seeds stands behind the mean."""
    told = [
        f"{quality[figure]['mean']:.3f} ± {quality[figure]['range'] / 2:.3f}"
        for figure in ("accuracy", "f1_macro")
    ]
    trained = quality["trainable_parameters"]
    told += [f"{trained:,}" if trained else "", f"{quality['saved_bytes'] / 2**20:.2f} MiB"]
    if cost is None:
        return [*told, "", ""]
    return [*told, f"{cost['peak_mib']:,} MiB", f"{cost['step_of_full']:.2f}"]


if __name__ == "__main__":
    main()
