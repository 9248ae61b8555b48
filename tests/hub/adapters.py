# SPDX-License-Identifier: Apache-2.0
"""A LoRA classifier as a run would leave it, without training."""

from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, set_seed

from hftune.models.pooling import pool_by_mean


def lora_classifier(base_model: Path, pooling: str = "cls") -> PeftModel:
    """Return a base with three labels and an adapter whose weights change its answers."""
    set_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=3)
    if pooling == "mean":
        pool_by_mean(base)
    config = LoraConfig(task_type="SEQ_CLS", init_lora_weights=False, target_modules=["query"], r=2)
    return get_peft_model(base, config).eval()
