# SPDX-License-Identifier: Apache-2.0
"""The quickstart's model against a tuned TF-IDF with logistic regression, on the same rows.

    python benchmarks/quickstart.py [overrides ...] [--seeds 0 1 2] [--name quickstart]

The seed decides the split and the training. The baseline is balanced and tuned on the training rows
alone: words and word pairs, or character n-grams, sublinear or not, five strengths of
regularization, chosen by cross-validation whose folds, like the split, keep modules together.
Results go to benchmarks/results/NAME.json.
"""

import argparse
import json
import platform
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from statistics import mean

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline

import hftune
from hftune.training.plan.plan import Plan
from hftune.training.plan.prepare import prepare

ROOT = Path(__file__).parents[1]
GRID = {
    "tfidfvectorizer__sublinear_tf": [True, False],
    "logisticregression__C": [1, 3, 10, 30, 100],
}
ANALYZERS = [("word", (1, 1)), ("word", (1, 2)), ("char_wb", (2, 5)), ("char_wb", (3, 5))]


def main() -> None:
    """Measure every seed and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", default="quickstart", help="of the file of results")
    parser.add_argument("overrides", nargs="*", help="values laid over the recipe")
    options = parser.parse_args()
    rows = [measure(seed, options.overrides) for seed in options.seeds]
    for row in rows:
        print(row)
    summary = {
        "hftune_f1_macro": round(mean(row["hftune"] for row in rows), 4),
        "tfidf_f1_macro": round(mean(row["tfidf"] for row in rows), 4),
    }
    print(summary)
    packages = ("torch", "transformers", "peft", "scikit-learn", "numpy")
    result = {
        "command": "python benchmarks/quickstart.py",
        "overrides": options.overrides,
        "versions": {name: version(name) for name in packages} | {"machine": platform.machine()},
        "seeds": rows,
        **summary,
    }
    path = ROOT / "benchmarks" / "results" / f"{options.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


def measure(seed: int, overrides: list[str]) -> dict[str, float | int | str]:
    """Train and judge both sides on one split."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = hftune.Recipe.load(
            ROOT / "recipes" / "quickstart.yaml",
            [*overrides, f"training.seed={seed}", f"training.output_dir={folder}/run"],
        )
        start, cpu = time.perf_counter(), time.process_time()
        run = hftune.train(recipe)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        plan, f1 = prepare(recipe), run.metrics["eval_f1_macro"]
    baseline, chosen = tfidf(plan)
    return {
        "seed": seed,
        "train_rows": len(plan.splits.train.dataset),
        "validation_rows": len(plan.splits.validation.dataset),
        "hftune": round(f1, 4),
        "tfidf": round(baseline, 4),
        "tfidf_settings": chosen,
        "hftune_wall_s": round(wall, 1),
        "hftune_cpu_s": round(cpu, 1),
    }


def tfidf(plan: Plan) -> tuple[float, str]:
    """Return the baseline's macro F1 on the validation rows and its settings."""
    search = GridSearchCV(
        make_pipeline(
            TfidfVectorizer(),
            LogisticRegression(class_weight="balanced", max_iter=2000),
        ),
        [
            {**GRID, "tfidfvectorizer__analyzer": [kind], "tfidfvectorizer__ngram_range": [span]}
            for kind, span in ANALYZERS
        ],
        scoring="f1_macro",
        cv=StratifiedGroupKFold(3, shuffle=True, random_state=0),
        n_jobs=2,
    )
    train, held_out = plan.splits.examples.train, plan.splits.examples.validation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(train["text"][:], train["label"][:], groups=np.array(train["group"][:]))
    predicted = search.predict(held_out["text"][:])
    score = f1_score(held_out["label"][:], predicted, average="macro")
    return float(score), ", ".join(
        f"{k.split('__')[1]}={v}" for k, v in search.best_params_.items()
    )


if __name__ == "__main__":
    main()
