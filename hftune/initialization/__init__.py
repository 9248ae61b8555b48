# SPDX-License-Identifier: Apache-2.0
"""Table of schemes that draw new weights, most of them of ``torch.nn.init``.

Literal and light: a recipe is held against the table without importing torch.
"""

from typing import Literal

from hftune.core.optimization_rows import SchemeRow

Scheme = Literal[
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "lecun_uniform",
    "lecun_normal",
    "orthogonal",
    "lsuv",
    "normal",
    "trunc_normal",
    "uniform",
    "constant",
    "zeros",
    "ones",
    "prior",
]


_TORCH = "torch.nn.init:"
_OWN = "hftune.initialization.schemes:"
_KAIMING = ("a", "mode", "nonlinearity")

SCHEMES: dict[Scheme, SchemeRow] = {
    "xavier_uniform": SchemeRow(
        summary="Glorot: uniform, variance 2 / (fan_in + fan_out); before tanh or softmax.",
        target=f"{_TORCH}xavier_uniform_",
        options=("gain",),
        draws="matrices",
    ),
    "xavier_normal": SchemeRow(
        summary="Glorot: normal, variance 2 / (fan_in + fan_out).",
        target=f"{_TORCH}xavier_normal_",
        options=("gain",),
        draws="matrices",
    ),
    "kaiming_uniform": SchemeRow(
        summary="He: uniform, variance 2 / fan_in; before ReLU.",
        target=f"{_TORCH}kaiming_uniform_",
        options=_KAIMING,
        draws="matrices",
    ),
    "kaiming_normal": SchemeRow(
        summary="He: normal, variance 2 / fan_in; before ReLU.",
        target=f"{_TORCH}kaiming_normal_",
        options=_KAIMING,
        draws="matrices",
    ),
    "lecun_uniform": SchemeRow(
        summary="LeCun: uniform, variance 1 / fan_in; before SELU.",
        target=f"{_OWN}lecun_uniform_",
        draws="matrices",
    ),
    "lecun_normal": SchemeRow(
        summary="LeCun: normal, variance 1 / fan_in; before SELU.",
        target=f"{_OWN}lecun_normal_",
        draws="matrices",
    ),
    "orthogonal": SchemeRow(
        summary="Rows or columns at right angles and of length gain.",
        target=f"{_TORCH}orthogonal_",
        options=("gain",),
        draws="matrices",
    ),
    "lsuv": SchemeRow(
        summary="Orthogonal, then scaled layer by layer to outputs of variance 1 on a batch.",
        target=f"{_TORCH}orthogonal_",
        draws="matrices",
        scales_on_batch=True,
    ),
    "normal": SchemeRow(
        summary="Normal with mean 0 and std 0.02, if nothing else is said.",
        target=f"{_TORCH}normal_",
        options=("mean", "std"),
        settings={"std": 0.02},
    ),
    "trunc_normal": SchemeRow(
        summary="Normal, cut off two standard deviations from the mean.",
        target=f"{_OWN}trunc_normal_",
        options=("mean", "std", "a", "b"),
        settings={"std": 0.02},
    ),
    "uniform": SchemeRow(
        summary="Uniform between a and b, -0.05 and 0.05 if nothing else is said.",
        target=f"{_TORCH}uniform_",
        options=("a", "b"),
        settings={"a": -0.05, "b": 0.05},
    ),
    "constant": SchemeRow(
        summary="One value, val, everywhere.",
        target=f"{_TORCH}constant_",
        options=("val",),
        required=("val",),
        equal_weights=True,
    ),
    "zeros": SchemeRow(summary="0 everywhere.", target=f"{_TORCH}zeros_", equal_weights=True),
    "ones": SchemeRow(summary="1 everywhere; for the scales of norms.", target=f"{_TORCH}ones_"),
    "prior": SchemeRow(
        summary="Log shares of the classes, for the bias of a classification head.",
        draws="vectors",
    ),
}
