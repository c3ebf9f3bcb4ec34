"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from vivace.data import Rows, Source, minibatches
from vivace.errors import TrainingError, warn
from vivace.nn import VAE
from vivace.nn.layers import BatchNorm
from vivace.ops.runtime.threads import Pace, adapted_threads
from vivace.seeds import numpy_generator, torch_generator
from vivace.state import Convergence, Status
from vivace.train.activity import count_active_dimensions
from vivace.train.checkpoint import Checkpoints
from vivace.train.flat import FlatWeights, flat_weights
from vivace.train.initialise import initialise_from_data
from vivace.train.recipe import Recipe
from vivace.train.schedule import Schedule
from vivace.train.step import Step, choose_step
from vivace.train.stopping import Judge, Patience, PlateauCounter

if TYPE_CHECKING:
    from vivace.progress import TrainingBar

_VALIDATION_SHARE = 0.1  # validation cells read in each epoch, as a share of the training cells
_VALIDATION_FLOOR = 512
_VALIDATION_BATCH = 1024
_MAX_HALVINGS = 6  # of the learning rate, if the loss stops being finite
_COOLDOWN = 0.25  # steps of the decay after an early stop, as a share of those before it


@dataclass(frozen=True)
class TrainOptions:
    """Options of one call of ``train``.

    Parameters
    ----------
    recipe
        Schedules and optimiser settings.
    epochs
        Passes over the training cells; None lets the recipe choose.
    max_steps
        Maximum number of minibatches; None for no limit.
    batch_size
        Cells per minibatch; None lets the recipe choose.
    patience
        When to stop early; None for never.
    continues
        Whether the network was trained before.
    seed
        Random seed of initialisation, order and noise.
    accelerator
        Lightning Fabric's name of a kind of device, or "auto".
    progress
        Whether a bar is shown.
    """

    recipe: Recipe
    epochs: int | None
    max_steps: int | None
    batch_size: int | None
    patience: Patience | None
    continues: bool
    seed: int
    accelerator: str
    progress: bool


@dataclass(frozen=True)
class FitResult:
    """The result of training so far.

    Parameters
    ----------
    history
        One row per epoch of this call, with the keys of :data:`vivace.state.COLUMNS`.
    convergence
        How it ended, or its current state.
    """

    history: tuple[dict[str, float], ...]
    convergence: Convergence


class Observer(Protocol):
    """Follows training while it runs."""

    def start(self) -> None:
        """Before the first step."""

    def epoch(self, result: FitResult) -> bool:
        """After each epoch; True stops the training."""

    def interrupted(self, result: FitResult) -> None:
        """After an error or Ctrl-C, once the weights are consistent again."""


def fit(
    network: VAE,
    source: Source,
    train_rows: Rows,
    watched_rows: Rows,
    options: TrainOptions,
    observer: Observer,
) -> FitResult:
    """Train ``network`` in place.

    Parameters
    ----------
    network
        VAE; it ends in evaluation mode, on the device that it was trained on.
    source
        Cells.
    train_rows, watched_rows
        Rows of the source to train on, and to judge each epoch by
        (:func:`choose_watched_rows`).
    options
        How to train.
    observer
        Notified at the start, after each epoch and on interruption.

    Returns
    -------
    History and convergence of this call.

    Raises
    ------
    TrainingError
        If the loss stops being finite and smaller steps do not help. The network
        then has the weights of the last epoch that was finite, or the best ones.
    """
    # lazy: importing Numba takes a second
    from vivace.progress import TrainingBar

    recipe = options.recipe.for_further_training() if options.continues else options.recipe
    batch_size = options.batch_size or recipe.choose_batch_size(len(train_rows))
    usual_epochs = recipe.choose_epochs(source.n_cells, len(train_rows))
    epochs, n_steps = _budget(train_rows, batch_size, options, usual_epochs)
    if options.patience is not None:
        recipe = recipe.for_early_stopping(epochs, usual_epochs)
    order = numpy_generator(options.seed)
    with adapted_threads(), TrainingBar(epochs, n_steps, options.progress) as bar:
        if recipe.from_data and not options.continues and network.surgery is None:
            initialise_from_data(network, source, train_rows, order)
        make_step = choose_step(network, options.accelerator)  # moves the network to its device
        for module in network.modules():
            if isinstance(module, BatchNorm):
                module.momentum = recipe.momentum
        with flat_weights(network) as weights:
            training = _Training(
                network=network,
                source=source,
                watched_rows=watched_rows,
                weights=weights,
                recipe=recipe,
                schedule=Schedule(recipe, n_steps),
                make_step=lambda: make_step(weights, recipe, recipe.betas(n_steps)),
                batch_size=batch_size,
                options=options,
                bar=bar,
            )
            try:
                training.run(train_rows, order, observer)
            except BaseException as error:
                training.checkpoints.restore_interrupted()
                network.eval()
                observer.interrupted(training.result("interrupted"))
                if isinstance(error.__cause__, KeyboardInterrupt):
                    raise KeyboardInterrupt from error  # Numba makes a SystemError of it
                raise
            network.eval()
        result = training.result(n_active=count_active_dimensions(network, source, train_rows))
        bar.conclude(result.convergence.describe())
    return result


class _Training:
    """The state of one call of :func:`fit`."""

    def __init__(
        self,
        *,
        network: VAE,
        source: Source,
        watched_rows: Rows,
        weights: FlatWeights,
        recipe: Recipe,
        schedule: Schedule,
        make_step: Callable[[], Step],
        batch_size: int,
        options: TrainOptions,
        bar: TrainingBar,
    ) -> None:
        self.network, self.source, self.watched_rows = network, source, watched_rows
        self.weights, self.recipe, self.schedule = weights, recipe, schedule
        self.make_step, self.batch_size, self.bar = make_step, batch_size, bar
        self.continues, self.seed = options.continues, options.seed
        self.device = network.device
        self.step = make_step()
        self.noise = torch_generator(options.seed, self.device)
        self.pace = Pace("training", batch_size, network.dims.n_genes, network.config)
        self.checkpoints = Checkpoints(weights, keep_best=recipe.keep_best)
        self.judge = Judge(
            options.patience,
            keep_best=recipe.keep_best,
            max_kl_weight=recipe.max_kl_weight,
            judge_warmup=recipe.judge_warmup,
        )
        self.history: list[dict[str, float]] = []
        self.stopped_by_callback = False

    def run(self, train_rows: Rows, order: np.random.Generator, observer: Observer) -> None:
        """Train for all epochs; the weights that stay are those of the best one, if it is kept."""
        schedule, judge = self.schedule, self.judge
        lr_plateau = PlateauCounter(self.recipe.lr_threshold)
        if self.continues and len(self.watched_rows):
            # the weights as they are compete with those of every epoch
            judge.start_from(self.validate(self.recipe.max_kl_weight)["elbo_validation"])
            self.checkpoints.mark_best()
        observer.start()
        step = halvings = 0  # step: minibatches that are done
        while step < schedule.n_steps:
            batches = list(minibatches(train_rows, self.batch_size, order))
            batches = batches[: schedule.n_steps - step]  # the last epoch may be cut short
            row = self.run_epoch(batches, step)
            if row is None:
                # A loss or weight is not finite: do the epoch again from its start, with half the
                # learning rate and with an optimiser that has forgotten the bad gradients.
                self.checkpoints.restore_last()
                halvings += 1
                _report_divergence(len(self.history) + 1, halvings, self.recipe)
                self.step = self.make_step()
                schedule.halve()
                self.bar.rewind(step)
                continue
            step += len(batches)
            self.history.append(row)
            self.bar.show_epoch(len(self.history), row)
            self.checkpoints.save()
            if judge.add(row):
                self.checkpoints.mark_best()
            self.stopped_by_callback = observer.epoch(self.result("running"))
            if self.stopped_by_callback:
                break
            if self.recipe.reduce_lr_on_plateau and judge.judges(row):
                waited = lr_plateau.epochs_without_fall(row[self.recipe.lr_scheduler_metric])
                if waited > self.recipe.lr_patience:
                    schedule.reduce()
                    lr_plateau.reset()
            if not schedule.is_decaying(step) and judge.patience_is_over(row):
                # early stopping: at once, or after a decay of the learning rate
                if not schedule.decays:
                    break
                schedule.decay_from(step, round(_COOLDOWN * step))
                self.bar.shorten(schedule.n_steps)
        self.checkpoints.restore_best()

    def result(self, status: Status | None = None, n_active: int | None = None) -> FitResult:
        """The result so far; ``status=None`` means that training has ended."""
        convergence = self.judge.convergence(
            status, stopped_by_callback=self.stopped_by_callback, n_active=n_active
        )
        return FitResult(tuple(self.history), convergence)

    def run_epoch(self, batches: list[Rows], step: int) -> dict[str, float] | None:
        """Train on the minibatches and validate; returns a row of the history.

        None if a loss or a weight is not finite.
        """
        start, compiled = time.perf_counter(), self.bar.compilation.seconds
        self.network.train()
        is_cpu = self.device.type == "cpu"
        sums = torch.zeros(3, dtype=torch.float32, device=self.device)
        lr = kl_weight = 0.0
        for rows in batches:
            self.pace.begin()
            batch = self.source.gather(rows).to(self.device)
            lr = self.schedule.learning_rate(step)
            kl_weight = self.schedule.kl_weight(step, epoch=len(self.history))
            losses = self.step(batch, kl_weight, lr, self.noise)
            if is_cpu and not math.isfinite(losses[0].item()):  # on a GPU this would wait for it
                return None
            sums.add_(losses, alpha=len(rows))
            step += 1
            self.bar.advance()
            self.pace.end(judge=len(rows) == self.batch_size)
        row = _losses_row(sums / sum(map(len, batches)), "train")
        row |= self.validate(kl_weight)
        compiled = self.bar.compilation.seconds - compiled
        row |= {"lr": lr, "kl_weight": kl_weight}
        row |= {"seconds": time.perf_counter() - start - compiled, "compile_seconds": compiled}
        judged = row if len(self.watched_rows) else self.validate(kl_weight, batches[-1])
        losses_are_finite = math.isfinite(row["train_loss"] + judged["validation_loss"])
        return row if losses_are_finite and self.weights.all_finite() else None

    @torch.no_grad()
    def validate(self, kl_weight: float, rows: Rows | None = None) -> dict[str, float]:
        """Mean losses over the watched cells, or others, with the same noise each time."""
        watched = self.watched_rows if rows is None else rows
        self.network.eval()
        noise = torch_generator(self.seed, self.device)
        sums = torch.zeros(3, dtype=torch.float32, device=self.device)
        for part in minibatches(watched, _VALIDATION_BATCH):
            batch = self.source.gather(part).to(self.device)
            losses = self.network(batch, kl_weight, noise)
            sums += len(part) * torch.stack(losses)
        n = len(watched)
        return _losses_row(sums / n if n else sums.fill_(math.nan), "validation")


def choose_watched_rows(train_rows: Rows, validation_rows: Rows) -> Rows:
    """Validation cells that are read in each epoch: all, or few enough to cost little.

    They are the same in every call of ``train``, so their ELBOs can be compared.
    """
    most = max(_VALIDATION_FLOOR, int(_VALIDATION_SHARE * len(train_rows)))
    if len(validation_rows) <= most:
        return validation_rows
    return np.sort(numpy_generator(0).choice(validation_rows, most, replace=False))


def _budget(
    train_rows: Rows, batch_size: int, options: TrainOptions, usual_epochs: int
) -> tuple[int, int]:
    """Epochs, the last of which may be cut short, and steps."""
    per_epoch = sum(1 for _ in minibatches(train_rows, batch_size))
    epochs = options.epochs
    if epochs is None and options.max_steps is not None:
        epochs = math.ceil(options.max_steps / per_epoch)
    elif epochs is None:
        epochs = usual_epochs
    n_steps = min(per_epoch * epochs, options.max_steps or per_epoch * epochs)
    return math.ceil(n_steps / per_epoch), n_steps


def _report_divergence(epoch: int, halvings: int, recipe: Recipe) -> None:
    """Warn that an epoch is repeated, or give up after several halvings."""
    if halvings > _MAX_HALVINGS:
        raise TrainingError(
            f"The loss stopped being finite in epoch {epoch}, and smaller steps did not help; "
            "the weights are those from before it; train a new model with a lower learning rate, "
            f"for example plan_kwargs={{'lr': {recipe.lr / 2**_MAX_HALVINGS:g}}}."
        )
    warn(
        f"The loss stopped being finite in epoch {epoch}; the epoch is repeated with half "
        "the learning rate.",
        RuntimeWarning,
    )


def _losses_row(means: Tensor, part: str) -> dict[str, float]:
    """Mean loss, reconstruction and KL under the names of scvi-tools."""
    loss, reconstruction, kl = means.tolist()
    return {
        f"{part}_loss": loss,
        f"elbo_{part}": reconstruction + kl,
        f"reconstruction_loss_{part}": reconstruction,
        f"kl_local_{part}": kl,
    }
