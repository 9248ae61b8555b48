# SPDX-License-Identifier: Apache-2.0
"""A custom schedule in a Trainer built by hftune: the rate goes up and down in triangles.

    python recipes/custom/own_schedule.py [MODEL]

Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, arXiv:1506.01186: the rate goes
up and down in triangles. Here each triangle is half as high as the one before.

``prepare`` checks the recipe and reads the rows, ``load_model`` loads the weights and applies the
method, ``build_trainer`` creates a ``transformers.Trainer``. Replace its optimizer or schedule as
in any Trainer. No run folder is written.
"""

import sys

from torch.optim.lr_scheduler import LambdaLR

import hftune
from hftune.training.build import build_trainer
from hftune.training.load_model import load_model
from hftune.training.plan.prepare import prepare

FOLDER = "runs/own_schedule"


def triangles(step: int, half: int = 10, lowest: float = 0.1) -> float:
    """Return the factor of the rate after ``step`` optimizer steps.

    Args:
        step: Completed steps.
        half: Steps from the lowest to the highest rate of a triangle.
        lowest: Factor at the lowest rate.

    Example:
        >>> [round(triangles(step), 3) for step in (0, 5, 10, 20, 30, 40)]
        [0.1, 0.55, 1.0, 0.1, 0.55, 0.1]
    """
    number, place = divmod(step, 2 * half)
    height = (1 - lowest) / 2**number
    return lowest + height * (1 - abs(place / half - 1))


def main(model: str = "demo:minilm") -> None:
    """Train and report."""
    recipe = hftune.Recipe(
        task="text-classification",
        model=model,
        data={"path": "demo:docstrings", "max_train_samples": 400, "max_length": 32},
        method={"name": "lora", "r": 8},
        training={
            "output_dir": FOLDER,
            "learning_rate": 2e-3,
            "num_train_epochs": 2,
            "save_strategy": "no",
        },
    )
    plan = prepare(recipe)
    trainer = build_trainer(plan, load_model(plan))
    trainer.lr_scheduler = LambdaLR(trainer.create_optimizer(), triangles)
    trainer.train()
    trainer.model.save_pretrained(f"{FOLDER}/model")
    metrics = trainer.evaluate()
    print(f"macro F1 {metrics['eval_f1_macro']:.3f}, model in {FOLDER}/model")


if __name__ == "__main__":
    main(*sys.argv[1:2])
