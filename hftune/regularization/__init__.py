# SPDX-License-Identifier: Apache-2.0
"""Noise and dropout of every kind, frozen statistics, and sharpness-aware steps.

What happens while a model trains is a ``TrainerCallback``, so that each goes with a plain
``transformers.Trainer``, too; it is taken off the model when training ends.
"""
