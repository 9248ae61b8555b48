# SPDX-License-Identifier: Apache-2.0
"""A custom loss and a custom dataset: label-distribution-aware margins on handmade rows.

    python recipes/custom/own_loss.py [MODEL]
    accelerate launch --config_file accelerate_configs/multi_cpu.yaml recipes/custom/own_loss.py

Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", 2019,
arXiv:1906.07413: the logit of the true class is lowered by a margin that grows as its class gets
rarer, ``C / count ** 0.25``, so that rare classes are pushed further from the border.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

import hftune
from hftune.losses import Batch, LabelStats, aligned, forward


# Data: any `datasets.Dataset` with a text and a label column.
def rows() -> Dataset:
    """Return 240 short texts about the weather, one in six of them about storms."""
    calm = [
        f"{sky} skies over the {place}"
        for sky in ("clear", "blue", "grey", "bright", "mild")
        for place in ("bay", "hills", "town", "lake", "coast", "moor", "plain", "dales")
    ]
    storm = [f"{wind} winds tear the {thing}" for wind in ("gale", "wild")
             for thing in ("roofs", "trees", "sails", "flags")]  # fmt: skip
    texts = calm * 5 + storm * 5
    return Dataset.from_dict(
        {
            "text": [f"{text}, day {day}" for day, text in enumerate(texts)],
            "label": ["calm"] * len(calm * 5) + ["storm"] * len(storm * 5),
        }
    )


# Loss: a sum and its denominator. The Trainer divides once, for any split into batches.
class MarginLoss(hftune.Loss):
    """Cross-entropy after lowering the true logit by the margin of its class.

    Args:
        largest: Margin of the rarest class; 0.5 as in the paper.
    """

    def __init__(self, largest: float = 0.5) -> None:
        self.largest = largest
        self.margins = torch.zeros(0)

    def fit(self, stats: LabelStats) -> None:
        """Set the margins from the number of training rows of each class."""
        super().fit(stats)
        margins = torch.tensor(stats.counts, dtype=torch.float32).pow(-0.25)
        self.margins = self.largest * margins / margins.max()

    def denominator(self, batch: Batch) -> Tensor:
        """Return the number of rows with a label."""
        return batch["labels"].ne(-100).sum()

    def total(self, model: nn.Module, inputs: Batch) -> tuple[Tensor, Any]:
        """Return the summed loss and the model's outputs."""
        outputs = forward(model, inputs)
        logits, labels = aligned(outputs.logits, inputs["labels"], causal=False)
        margins = F.one_hot(labels, logits.shape[-1]) * self.margins.to(logits)
        return F.cross_entropy(logits - margins, labels, reduction="sum"), outputs


def main(model: str = "demo:minilm") -> None:
    """Train and report."""
    recipe = hftune.Recipe(
        task="text-classification",
        model=model,
        data={"max_length": 32},
        method={"name": "lora", "r": 8},
        training={"learning_rate": 1e-3, "num_train_epochs": 2},
    )
    run = hftune.train(recipe, train_dataset=rows(), loss=MarginLoss())
    print(f"macro F1 {run.metrics['eval_f1_macro']:.3f}, model in {run.model_path}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
