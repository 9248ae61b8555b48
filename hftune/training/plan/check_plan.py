# SPDX-License-Identifier: Apache-2.0
"""Check a plan before weights are loaded: length, teachers, and the model without weights."""

from dataclasses import replace

from torch import nn

from hftune.core.errors import RecipeError
from hftune.distillation.checks import check_layers, check_tokens
from hftune.initialization.initialize import check_initialization
from hftune.models.keep_layers import check_kept
from hftune.models.meta_model import check_liger
from hftune.tasks.processors import as_tokenizer
from hftune.training.plan.plan import Plan
from hftune.training.plan.pretrained import model_without_weights


def checked(plan: Plan, own_model: nn.Module | None = None) -> Plan:
    """Check everything about a plan that can be checked without weights.

    Args:
        plan: The run.
        own_model: The user's own model, which replaces the recipe's.

    Returns:
        The plan, with the model without weights after the method's changes.

    Raises:
        HftuneError: Something does not fit.
    """
    settings = plan.settings
    settings.optimization.check_run(settings.arguments, plan.training_steps)
    _check_teachers(plan)
    if own_model is not None:
        _check_own_model(plan, own_model)
        return plan
    meta_model = _try_without_weights(plan)
    return replace(plan, objective=replace(plan.objective, meta_model=meta_model))


def _check_teachers(plan: Plan) -> None:
    """Check that teachers read the student's tokens and have the mapped layers."""
    settings, pretrained, splits = plan.settings, plan.pretrained, plan.splits
    teachers, config = plan.objective.teachers, pretrained.config
    if not teachers:
        return
    splits_taught = [split for split in (splits.train, splits.unlabelled) if split is not None]
    longest = max(length for split in splits_taught for length in split.sizes)
    if pretrained.max_length is not None:
        longest = min(longest, pretrained.max_length)
    tokenizer = as_tokenizer(pretrained.processor)
    check_tokens(teachers, tokenizer, config, splits.examples.train, longest)
    optimizer = settings.optimization.optimizer.name
    check_layers(settings.recipe.distillation, teachers, config, optimizer)


def _try_without_weights(plan: Plan) -> nn.Module | None:
    """Check method, loss and parameter groups on the model without weights; return it changed."""
    settings, pretrained, objective = plan.settings, plan.pretrained, plan.objective
    recipe, task = settings.recipe, objective.task
    model = model_without_weights(settings, task, pretrained.config)
    if pretrained.full_config is not None:
        full = model_without_weights(settings, task, pretrained.full_config)
        check_kept(full, model, recipe.model.keep_layers or ())
    if settings.arguments.use_liger_kernel:
        check_liger(model)
    check_initialization(recipe.initialization, model)
    meta_model = objective.method.check(model, plan.context())
    changed = model if meta_model is None else meta_model
    objective.loss.check(changed)
    settings.regularization.check_model(changed)
    if meta_model is not None:
        settings.optimization.check_model(meta_model)
    return meta_model


def _check_own_model(plan: Plan, model: nn.Module) -> None:
    settings = plan.settings
    if settings.recipe.initialization.is_set:
        raise RecipeError(["initialization: a model of one's own is taken as it is"])
    settings.regularization.check_own_model(model)
    if plan.pretrained.full_config is not None:
        raise RecipeError(["model.keep_layers: a model of one's own is taken as it is"])
    plan.objective.loss.check(model)
