# SPDX-License-Identifier: Apache-2.0
"""Everything before the weights: arguments, tokenizer, config, rows, method and loss, checked."""

from collections.abc import Sequence
from functools import partial
from typing import cast

from datasets import Dataset
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from hftune.core.console import say
from hftune.core.errors import RecipeError
from hftune.data.sampling import DIFFICULTIES
from hftune.data.sampling.row_sampler import RowSampler
from hftune.data.section import CurriculumChoice
from hftune.distillation.checks import (
    check_labels,
    check_layers,
    check_rows,
    check_tokens,
)
from hftune.distillation.distillation_loss import Distillation
from hftune.distillation.teachers import find_teachers
from hftune.evaluation.external import Metric
from hftune.initialization.initialize import check_initialization
from hftune.losses.loss import LabelStats, Loss
from hftune.models.keep_layers import check_kept, shallow_config
from hftune.models.load import load_config, load_tokenizer, pretrained_path
from hftune.models.meta_model import check_liger
from hftune.models.structure import num_positions
from hftune.recipe.recipe import Recipe
from hftune.regularization.adversarial import Adversarial
from hftune.regularization.regularizers import Regularization
from hftune.tasks import TASKS
from hftune.tasks.preprocess import preprocess_split
from hftune.training.distributed.launcher import check_launch
from hftune.training.plan.arguments import for_device, training_arguments
from hftune.training.plan.choose_sampler import build_drawing, drawn_counts
from hftune.training.plan.examples import read_examples
from hftune.training.plan.objective import (
    build_loss,
    build_method,
    build_task,
    loss_choice_of,
    resolve_best_metric,
    resolve_metrics,
)
from hftune.training.plan.optimization import Optimization, scaled_rate
from hftune.training.plan.plan import Plan
from hftune.training.plan.reference_losses import open_reference, reference_losses
from hftune.training.plan.streaming import open_stream, token_stream
from hftune.training.plan.token_budget import token_batches, virtual_tokens

NO_LIMIT = 10**6  # tokenizers without a limit say a number far above this


def prepare(
    recipe: Recipe,
    *,
    train_dataset: Dataset | None = None,
    eval_dataset: Dataset | None = None,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    own_model: nn.Module | None = None,
    sample: int | None = None,
) -> Plan:
    """Turn a recipe into a :class:`Plan`.

    Args:
        recipe: What to do.
        train_dataset: Rows in place of ``data.path``.
        eval_dataset: Rows in place of ``data.validation``.
        loss: A loss of one's own in place of the recipe's.
        metrics: Metrics of the ``evaluate`` library in place of ``evaluation.metrics``.
        own_model: A model of one's own in place of the recipe's and its method.
        sample: Encode so many rows of a large part, for a look that does not train.

    Raises:
        HftuneError: Something in the recipe, the data or the environment does not fit.
    """
    launch = check_launch(recipe, own_model is not None)
    recipe = for_device(recipe, launch)
    arguments = training_arguments(recipe, launch)
    scaled_rate(recipe, arguments)
    teachers = find_teachers(recipe.distillation, TASKS[recipe.task].resolve())
    task = build_task(recipe, teachers)
    location, config, tokenizer = _base(recipe)
    streamed = None
    if recipe.data.streaming and train_dataset is eval_dataset is None:
        parts, streamed = open_stream(recipe, task)
    elif recipe.data.streaming:
        raise RecipeError(["data.streaming: rows handed over in Python are not streamed"])
    else:
        parts = read_examples(recipe, task, train_dataset, eval_dataset)
    guessed = parts.columns.keys() - recipe.data.columns.keys()
    if guessed:
        say(f"columns: {', '.join(f'{r} = {c}' for r, c in parts.columns.items() if r in guessed)}")
    check_rows(task, parts.train, teachers, recipe.data)
    task.fit_labels(parts.train, parts.validation)
    check_labels(task, teachers, recipe.data)
    resolve_metrics(recipe, task, metrics)
    resolve_best_metric(recipe, arguments, task)
    loss_choice = None if loss is not None else loss_choice_of(recipe, task)
    config_changes = task.configure(config, tokenizer)
    config, whole_config = _kept_config(recipe, config)
    limit = longest_row(recipe, config, tokenizer)
    encode = partial(preprocess_split, task, tokenizer=tokenizer, max_length=limit, sample=sample)
    plan = Plan(
        recipe=recipe,
        arguments=arguments,
        task=task,
        location=location,
        config=config,
        config_changes=config_changes,
        tokenizer=tokenizer,
        parts=parts,
        train=encode(parts.train),
        validation=None if parts.validation is None else encode(parts.validation),
        max_length=limit,
        method=build_method(recipe),
        loss=_beside(recipe, loss if loss is not None else build_loss(loss_choice)),
        loss_choice=loss_choice,
        launch=launch,
        optimization=Optimization.of(recipe, arguments),
        regularization=Regularization.of(recipe.regularization, arguments.seed, config),
        teachers=teachers,
        unlabelled=None if parts.unlabelled is None else encode(parts.unlabelled),
        whole_config=whole_config,
    )
    if streamed is not None:
        plan.stream = token_stream(streamed, parts.columns, task, tokenizer, limit, arguments)
    plan.drawing = _drawing(plan, looks=sample is not None)
    plan.token_batches = token_batches(plan, own_model)
    _fit_loss(plan)
    plan.optimization.check_run(arguments, plan.span)
    _check(plan, own_model)
    return plan


def _base(recipe: Recipe) -> tuple[str, PreTrainedConfig, PreTrainedTokenizerBase]:
    """Return where the base model is, its config and its tokenizer."""
    location = pretrained_path(recipe.model.path)
    if recipe.model.revision is not None and location != recipe.model.path:
        raise RecipeError(["model.revision: a demo model has none"])
    config = load_config(location, recipe.model.config, recipe.model.revision)
    tokenizer = load_tokenizer(location, recipe.model.revision)
    if tokenizer.pad_token is None and recipe.task != "text-generation":
        tokenizer.pad_token = tokenizer.eos_token
    return location, config, tokenizer


def _kept_config(
    recipe: Recipe, config: PreTrainedConfig
) -> tuple[PreTrainedConfig, PreTrainedConfig | None]:
    """Return the model's config and, where it keeps some layers, that of the whole model."""
    kept = recipe.model.keep_layers
    return (config, None) if kept is None else (shallow_config(config, kept), config)


def _beside(recipe: Recipe, loss: Loss) -> Loss:
    """Return the loss with a teacher or an adversary beside it, where the recipe says so."""
    if (epsilon := recipe.regularization.adversarial) is not None:
        return Adversarial(loss, epsilon)
    return loss if recipe.distillation is None else Distillation(loss, recipe.distillation)


def _check(plan: Plan, own_model: nn.Module | None) -> None:
    """Try what can be tried without weights."""
    check_tokens(plan.teachers, plan.tokenizer, plan.config, plan.parts.train, _longest(plan))
    optimizer = plan.optimization.optimizer.name
    check_layers(plan.recipe.distillation, plan.teachers, plan.config, optimizer)
    if own_model is None:
        _check_model(plan)
    else:
        _check_own_model(plan, own_model)


def _drawing(plan: Plan, *, looks: bool) -> RowSampler | None:
    """What draws the rows of an epoch; a look has no reference model judge them."""
    parts, chosen = plan.parts, cast("CurriculumChoice | None", plan.recipe.data.curriculum)
    draw = partial(build_drawing, plan.recipe, plan.task, parts.train, parts.drawn_by, plan.train)
    if chosen is None or not DIFFICULTIES[chosen.name].needs_reference:
        return draw()
    reference = open_reference(
        chosen.model,
        plan.task,
        plan.tokenizer,
        location=plan.location,
        revision=plan.recipe.model.revision,
        max_length=plan.max_length,
    )
    if looks:
        return draw()
    return draw(partial(reference_losses, reference, parts.train, plan.train, plan.arguments))


def _check_model(plan: Plan) -> None:
    """Try method, loss and parameter groups on a model without weights."""
    skeleton = plan.skeleton()
    if plan.whole_config is not None:
        check_kept(plan.skeleton(plan.whole_config), skeleton, plan.recipe.model.keep_layers or ())
    if plan.arguments.use_liger_kernel:
        check_liger(skeleton)
    check_initialization(plan.recipe.initialization, skeleton)
    plan.adapted = plan.method.check(skeleton, plan.context())
    changed = skeleton if plan.adapted is None else plan.adapted
    plan.loss.check(changed)
    plan.regularization.check_model(changed)
    if plan.adapted is not None:
        plan.optimization.check_model(plan.adapted)


def _check_own_model(plan: Plan, model: nn.Module) -> None:
    if plan.recipe.initialization.is_said:
        raise RecipeError(["initialization: a model of one's own is taken as it is"])
    plan.regularization.check_own_model(model)
    if plan.whole_config is not None:
        raise RecipeError(["model.keep_layers: a model of one's own is taken as it is"])
    plan.loss.check(model)


def _fit_loss(plan: Plan) -> None:
    """Tell the loss of the labels, and the task of the shares of the classes it was taught."""
    counts = drawn_counts(plan.drawing, plan.task, plan.parts.train, plan.class_counts())
    plan.loss.fit(
        LabelStats(
            classes=plan.task.classes(plan.tokenizer, plan.num_classes()),
            counts=counts.tolist(),
            rows=plan.train.num_rows,
            label_smoothing=plan.arguments.label_smoothing_factor,
            causal=plan.task.causal,
            listed=bool(plan.recipe.data.label_names),
            problem_type=plan.task.problem_type,
        )
    )
    shares = plan.loss.prior()
    plan.task.learn_prior(None if shares is None else shares.tolist())


def _longest(plan: Plan) -> int:
    """Tokens of the longest row that trains."""
    parts = [part for part in (plan.train, plan.unlabelled) if part is not None]
    longest = max(length for part in parts for length in part.sizes)
    return longest if plan.max_length is None else min(longest, plan.max_length)


def longest_row(
    recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> int | None:
    """Return the recipe's limit, or what the model takes; None where positions have no end.

    Raises:
        RecipeError: The recipe asks for more positions than the model has.
    """
    positions = num_positions(config)
    if positions is not None:
        positions -= virtual_tokens(recipe)
    asked = recipe.data.max_length
    if asked is not None:
        if positions is not None and asked > positions:
            raise RecipeError(
                [f"data.max_length: {asked} is beyond the model's {positions} positions"]
            )
        return asked
    takes = [positions, tokenizer.model_max_length]
    known: list[int] = [limit for limit in takes if limit is not None and limit < NO_LIMIT]
    return min(known, default=None)
