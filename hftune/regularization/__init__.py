# SPDX-License-Identifier: Apache-2.0
"""Table of the keys of ``regularization``: dropout, noise, penalties, averages, sharper steps.

Whatever happens while a model trains is a ``TrainerCallback``, so that it works with a plain
``transformers.Trainer``, too; it is taken off the model when training ends.
"""

from hftune.core.optimization_rows import AverageRow, RegularizationRow

REGULARIZATIONS = {
    "weight_averaging": RegularizationRow(
        summary="Evaluate and save an average of the weights over the steps.",
        state_copies=1,
        sharded="refused",
    ),
    "l1": RegularizationRow(
        summary="Add so many times the sum of |w| over weights that train to the loss.",
        penalizes="matrices",
        sharded="refused",
    ),
    "l2": RegularizationRow(
        summary="Add so many times the sum of w² to the loss.",
        penalizes="matrices",
        sharded="refused",
    ),
    "l2_sp": RegularizationRow(
        summary="Add half of so many times the squared distance to the pretrained weights.",
        penalizes="pretrained",
        state_copies=1,
        sharded="refused",
    ),
    "dropout": RegularizationRow(
        summary="Dropout of hidden states, whatever the model's config calls it.",
        config_fields=(
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
        sharded="tested",
    ),
    "attention_dropout": RegularizationRow(
        summary="Dropout of attention weights, whatever the model's config calls it.",
        config_fields=("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop"),
        sharded="tested",
    ),
    "drop_path": RegularizationRow(
        summary="Stochastic depth.",
        config_fields=("drop_path_rate",),
        moves_frozen=True,
    ),
    "drop_connect": RegularizationRow(
        summary="Share of the weights of linear layers that a forward pass drops, or {p, modules}, "
        "modules by regular expression or by names.",
        moves_frozen=True,
    ),
    "weight_noise": RegularizationRow(
        summary="Standard deviation of the noise on weights that train, taken off before the step, "
        "or {std, params}.",
        moves_weights=True,
        moves_frozen=True,
    ),
    "gradient_noise": RegularizationRow(
        summary="Variance of the noise on the gradient of the first step, which fades, or "
        "{eta, gamma}.",
        changes_gradient=True,
    ),
    "sam": RegularizationRow(
        summary="Sharpness-aware minimization.",
        changes_gradient=True,
        moves_weights=True,
    ),
    "adversarial": RegularizationRow(
        summary="Train on the tokens' vectors and on those this far away where the loss is "
        "highest.",
    ),
    "freeze_batch_norm": RegularizationRow(
        summary="Keep the statistics of batch normalization as they were pretrained.",
    ),
}

#: Values of ``regularization.weight_averaging.name``.
AVERAGES = {
    "ema": AverageRow(decay=0.999, start=0.0),
    "swa": AverageRow(decay=None, start=0.75),
}
