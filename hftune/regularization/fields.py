# SPDX-License-Identifier: Apache-2.0
"""What configs of Transformers call their dropout; imports nothing heavy."""

#: Key of ``regularization`` -> fields of configs, of which a model has one or a few.
FIELDS: dict[str, tuple[str, ...]] = {
    "dropout": (
        "hidden_dropout_prob",
        "hidden_dropout",
        "hidden_dropout_rate",
        "dropout",
        "dropout_rate",
        "resid_pdrop",
        "resid_dropout",
        "residual_dropout",
        "embd_pdrop",
        "emb_pdrop",
        "embed_dropout",
        "embedding_dropout",
        "mlp_dropout",
        "ff_dropout",
    ),
    "attention_dropout": ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"),
    "drop_path": ("drop_path_rate",),
}
