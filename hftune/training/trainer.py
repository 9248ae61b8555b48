# SPDX-License-Identifier: Apache-2.0
"""The Trainer of hftune: the differences from ``transformers.Trainer``.

A test checks the signature of each override:

- ``get_batch_samples`` sums the loss's denominators over the accumulation group and all ranks.
- ``compute_loss`` divides the loss's sum by that denominator.
- ``training_step`` may add noise to the weights while it computes the gradient.
- ``compute_loss_context_manager`` computes the whole loss in the model's precision.
- ``prediction_step`` keeps only the few numbers of each row that the task's metrics need.
- ``get_train_dataloader`` does not divide a stream among the processes again.
- ``_get_train_sampler`` orders rows by seed and epoch, equally on every process, or returns whole
  batches; ``get_total_train_batch_size`` then returns the average number of rows of a step.
- ``create_optimizer`` and ``create_scheduler`` add optimizers and schedules that Transformers
  lacks; the second also applies the method's factor to the rate.
- ``floating_point_ops`` counts the weights once, not in every step.
- ``_get_grad_norm`` measures parts of the gradient before clipping, and ``log`` logs them.
- ``evaluate`` uses the average of the weights, if the run keeps one.
- ``_load_from_checkpoint`` and ``_load_best_model`` also restore method, average and loss.
- ``_run_epoch`` does nothing if the interrupted run had already taken all its steps.
- ``extra_checkpoint_files`` returns the tensors that Transformers does not save.
- ``_issue_warnings_after_load`` does not report tied weights as missing: they are saved once.
"""

from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments

from hftune.data.sampling.row_sampler import RowSampler
from hftune.losses.loss import ROW, Loss
from hftune.methods.method import Method
from hftune.optimization.schedule_factors import TrainingSteps
from hftune.regularization.noise import WeightNoise
from hftune.regularization.penalties import WeightPenalty
from hftune.regularization.sharpness import SharpnessAware
from hftune.regularization.weight_averaging import Averaging
from hftune.tasks.task import Task
from hftune.training.callbacks.auxiliary_layers import AuxiliaryLayers
from hftune.training.callbacks.set_epoch import SetEpoch
from hftune.training.callbacks.throughput import Throughput
from hftune.training.checkpoints import (
    AtomicCheckpoints,
    RelocateBestCheckpoint,
    read_checkpoint_file,
)
from hftune.training.plan.optimization import Optimization
from hftune.training.plan.streaming import TokenStream
from hftune.training.plan.training_steps import batches_per_epoch, count_training_steps
from hftune.training.sampling.seeded_sampler import DatasetWithBlankRow, SeededSampler, Strategy
from hftune.training.sampling.token_batches import TokenBatches

#: The state of a method in a checkpoint.
METHOD_FILE = "method.safetensors"
#: The average of the weights in a checkpoint.
AVERAGE_FILE = "average.safetensors"
#: The layers of a loss in a checkpoint.
LOSS_FILE = "loss.safetensors"
#: Rows whose generated texts each evaluation shows.
SAMPLES = 10


class HftuneTrainer(AtomicCheckpoints):
    """A Trainer whose gradients do not depend on how a batch is split.

    Args:
        task: Decides the outputs that an evaluation keeps, and the metrics.
        loss: Sum and denominator; see :class:`hftune.losses.loss.Loss`.
        method: May add a penalty to the loss and a factor to the rate.
        optimization: Optimizer, schedule and logged gradients.
        averaging: Keeps the average of the weights that is evaluated and saved, if any.
        row_sampler: Chooses the rows of an epoch or of each batch; None if each row comes once and
            batches have a fixed number of rows.
        penalty: The penalty on the weights that is added to the loss of a step, if any.
        weight_noise: The noise on the weights while a gradient is computed, if any.
        options: Arguments of :class:`transformers.Trainer`.

    Attributes:
        samples: First rows of the latest evaluation with the model's texts.
    """

    def __init__(
        self,
        *,
        task: Task,
        loss: Loss,
        method: Method,
        optimization: Optimization,
        averaging: Averaging | None = None,
        row_sampler: RowSampler | TokenBatches | None = None,
        penalty: WeightPenalty | None = None,
        weight_noise: WeightNoise | None = None,
        **options: Any,
    ) -> None:
        self.task, self.loss, self.method = task, loss, method
        self.optimization, self.averaging = optimization, averaging
        self.row_sampler, self.epochs = row_sampler, SetEpoch()
        self.penalty, self.weight_noise = penalty, weight_noise
        twice = [c for c in options.get("callbacks") or () if isinstance(c, SharpnessAware)]
        for sharpness in twice:
            sharpness.again = self._gradient_again
        self.computes_again = optimization.computes_again or bool(twice)
        self.gradient_log = optimization.gradient_log(options["model"])
        self._group: tuple[list[Any], Tensor] | None = None
        self.throughput = Throughput()
        self.samples: list[dict[str, str]] = []
        self._ops_per_token: int | None = None
        super().__init__(compute_metrics=self._metrics, **options)
        self.loss_is_scaled_for_ga = True
        self.label_names = ["labels", ROW]  # columns that the Trainer keeps
        layers = loss.layers()
        self.auxiliary_layers = None if layers is None else AuxiliaryLayers(layers)
        own = (self.throughput, self.auxiliary_layers, RelocateBestCheckpoint(), self.epochs)
        for callback in filter(None, own):
            self.add_callback(callback)
        if self.args.world_size > 1 and not isinstance(self.train_dataset, TokenStream):
            self.train_dataset = DatasetWithBlankRow(self.train_dataset)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches; a stream is divided among the processes already."""
        if not isinstance(self.train_dataset, TokenStream):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """Return the batches of one optimizer step and their denominator over all ranks."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self.throughput.begin(batches)
        denominator = torch.zeros((), dtype=_float_of(device), device=device)
        for batch in batches:
            denominator = denominator + self.loss.denominator(batch).to(denominator)
        if self.args.world_size > 1:
            denominator = self.accelerator.reduce(denominator, reduction="sum")
        denominator = torch.where(denominator > 0, denominator, torch.ones_like(denominator))
        if self.computes_again:
            self._group = batches, denominator
        return batches, denominator

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss.

        The share is multiplied by the number of ranks, because gradients are averaged over them.
        """
        assert num_items_in_batch is not None, "get_batch_samples counts every group"
        total, outputs = self.loss.total(model, inputs)
        share = (
            total / num_items_in_batch
        ).sum() * self.args.world_size  # over all parts of the loss
        share = share.to(total.dtype)
        of_weights = None if self.penalty is None else self.penalty()
        for penalty in (self.method.penalty(self.accelerator.unwrap_model(model)), of_weights):
            if penalty is not None:  # counts once a step, for any number of micro-batches
                share = share + penalty / self.current_gradient_accumulation_steps
        return (share, outputs) if return_outputs else share

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Compute the gradient of one micro-batch and return its loss."""
        noise = self.weight_noise
        with nullcontext() if noise is None else noise.in_place(self.state.global_step):
            loss = super().training_step(model, inputs, num_items_in_batch)
        synchronizes = self.args.world_size > 1 and self.accelerator.sync_gradients
        if self.auxiliary_layers is not None and synchronizes:
            self.auxiliary_layers.average_gradients()
        return loss

    def _run_epoch(self, *given: Any, **named: Any) -> None:
        over = self.state.global_step >= self.state.max_steps  # resumed after its last step
        self.control.should_training_stop |= over
        if not self.control.should_training_stop:
            super()._run_epoch(*given, **named)  # type: ignore[no-untyped-call]

    def compute_loss_context_manager(self) -> ExitStack:
        """Return a context that gives heads outside their model the model's precision."""
        stack = super().compute_loss_context_manager()
        stack.enter_context(self.accelerator.autocast())
        return stack

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, Tensor, Tensor]:
        """Return the outputs that the task keeps of each row; they also give the loss."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            kept: Any = self.task.evaluation_step(model, inputs)
        return None, kept, inputs["labels"].reshape(len(inputs["labels"]), -1)[:, 0]

    def _metrics(self, prediction: Any) -> dict[str, float]:
        self.samples = self.task.samples(prediction.predictions, SAMPLES)
        return self.task.all_metrics(prediction.predictions)

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """Return the number of rows of an optimizer step; the average with a token budget."""
        if not isinstance(self.row_sampler, TokenBatches):
            return super().get_total_train_batch_size(args)
        return max(1, round(self.row_sampler.rows / (self._training_steps().per_epoch or 1)))

    def _get_train_sampler(self, train_dataset: Any = None) -> SeededSampler | TokenBatches:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        sampler = self._order_or_batches(rows)
        self.epochs.sampler = sampler
        return sampler

    def _order_or_batches(self, rows: Any) -> SeededSampler | TokenBatches:
        if isinstance(self.row_sampler, TokenBatches):
            return self.row_sampler
        if isinstance(rows, DatasetWithBlankRow):
            rows = rows.rows
        args = self.args
        batch = args.train_batch_size * args.world_size
        by_length = args.train_sampling_strategy == "group_by_length"
        return SeededSampler(
            len(rows),
            cast(Strategy, args.train_sampling_strategy),
            args.seed if args.data_seed is None else args.data_seed,
            multiple=batch if args.world_size > 1 else 1,
            lengths=[len(row) for row in rows[self.task.main_input_name]] if by_length else (),
            group=batch * args.gradient_accumulation_steps,
            row_sampler=self.row_sampler,
            training_steps=self._training_steps(),
        )

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Return the optimizer that the recipe names."""
        fresh = self.optimizer is None
        if fresh:
            target = cast(nn.Module, self.model if model is None else model)
            self.optimizer_cls_and_kwargs = self.optimization.class_and_options(
                self.args,
                target,
                self.get_decay_parameter_names(target),
                self._training_steps().total,
            )
        optimizer: Any = super().create_optimizer(model)
        if fresh and self.auxiliary_layers is not None:
            self.auxiliary_layers.join(optimizer, self.args.device, self.args.learning_rate)
        if self.optimization.computes_again:
            optimizer.closure = self._loss_again
        return optimizer

    def _loss_again(self) -> Tensor:
        """Compute loss and gradients of the current optimizer step once more."""
        assert self._group is not None
        cast(torch.optim.Optimizer, self.optimizer).zero_grad()
        (*others, last), denominator = self._group
        model = self.model_wrapped
        with self.accelerator.no_sync(
            model
        ):  # ranks average gradients only once, with the last batch
            losses = [self.training_step(model, batch, denominator) for batch in others]
        losses.append(self.training_step(model, last, denominator))
        return torch.stack(losses).sum()

    def _gradient_again(self) -> None:
        """Compute the gradient of the current optimizer step once more, and clip it."""
        self._loss_again()
        if self.args.max_grad_norm > 0:
            self._clip_grad_norm(self.model_wrapped)  # type: ignore[no-untyped-call]

    def _training_steps(self, total: int | None = None) -> TrainingSteps:
        """Return the length of the run; a stream has no epochs."""
        return count_training_steps(self.args, self._num_batches(), total)

    def _num_batches(self) -> int | None:
        """Return the number of batches of this process in an epoch; None for a stream."""
        if isinstance(self.row_sampler, TokenBatches):
            return len(self.row_sampler)
        rows: Any = self.train_dataset
        if isinstance(rows, TokenStream):
            return None
        size = len(rows.rows if isinstance(rows, DatasetWithBlankRow) else rows)
        return batches_per_epoch(
            self.args, size if self.row_sampler is None else self.row_sampler.size
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule, multiplied by the method's own factor."""
        fresh = self.lr_scheduler is None
        if fresh:
            self.lr_scheduler = self.optimization.make_schedule(
                self.optimizer if optimizer is None else optimizer,
                self.args,
                self._training_steps(num_training_steps),
            )
            self._created_lr_scheduler = self.lr_scheduler is not None
        schedule: Any = super().create_scheduler(num_training_steps, optimizer)
        factor = self.method.rate_factor()
        if fresh and factor is not None:
            rates: list[Any] = [
                lambda step, rate=rate: rate(step) * factor(step) for rate in schedule.lr_lambdas
            ]
            # A new schedule, since its constructor sets the rate of the first step.
            schedule = self.lr_scheduler = LambdaLR(schedule.optimizer, rates)
        return schedule

    def floating_point_ops(self, inputs: dict[str, Tensor | Any]) -> int:
        """Return Transformers' estimate for a step: six operations for each weight and token."""
        name = self.task.main_input_name
        if self._ops_per_token is None:
            self._ops_per_token = super().floating_point_ops({name: torch.zeros(1)})
        return self._ops_per_token * inputs[name].numel()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if self.gradient_log is not None:
            groups = cast(torch.optim.Optimizer, self.optimizer).param_groups
            self.gradient_log.measure(norm, self.args.max_grad_norm, groups)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the gradient norms and rates of the parts of the model."""
        if self.gradient_log is not None and "loss" in logs:
            logs = {**logs, **self.gradient_log.figures()}
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate the weights that would be saved: the average, if the run keeps one."""
        with self.averaging.in_place() if self.averaging is not None else nullcontext():
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if not self.method.state_is_whole:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._restore_method(resume_from_checkpoint)
        average = read_checkpoint_file(resume_from_checkpoint, AVERAGE_FILE)
        if self.averaging is not None and average:
            self.averaging.restore(average)
        if self.auxiliary_layers is not None:
            self.auxiliary_layers.restore(read_checkpoint_file(resume_from_checkpoint, LOSS_FILE))

    def _load_best_model(self) -> None:
        # Otherwise a schedule-free optimizer would change the loaded weights later.
        cast(Any, self.optimizer).eval()
        if not self.method.state_is_whole:
            super()._load_best_model()
        best = str(self.state.best_model_checkpoint)
        self._restore_method(best)
        if self.averaging is not None:
            self.averaging.settle(read_checkpoint_file(best, AVERAGE_FILE))

    def _restore_method(self, checkpoint: str) -> None:
        if kept := read_checkpoint_file(checkpoint, METHOD_FILE):
            self.method.restore(self.accelerator.unwrap_model(self.model), kept)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        if isinstance(self.model, PreTrainedModel):
            tied = self.model.all_tied_weights_keys
            missing = [key for key in load_result.missing_keys if key not in tied]
            load_result = load_result._replace(missing_keys=missing)
        super()._issue_warnings_after_load(load_result)

    def extra_checkpoint_files(self, model: nn.Module) -> dict[str, dict[str, Tensor]]:
        """Return the state of method, average and loss; see :class:`AtomicCheckpoints`."""
        kept = {METHOD_FILE: self.method.state(self.accelerator.unwrap_model(model))}
        if self.averaging is not None:
            kept[AVERAGE_FILE] = self.averaging.state()
        if self.auxiliary_layers is not None:
            kept[LOSS_FILE] = self.auxiliary_layers.state()
        return kept


def _float_of(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
