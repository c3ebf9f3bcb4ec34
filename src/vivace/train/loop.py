"""The training loop."""

from __future__ import annotations

import math
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vivace.data import CountBatch, Rows, Source, minibatches
from vivace.errors import OptionError, TrainingError
from vivace.nn import VAE, Part, trained_parts
from vivace.nn.layers import BatchNorm
from vivace.ops.runtime.threads import Pace, adapted_threads
from vivace.seeds import numpy_generator, torch_generator
from vivace.state import TrainState
from vivace.train.initialise import initialise_from_data
from vivace.train.options import TrainOptions
from vivace.train.recipes import Recipe, Schedule
from vivace.train.subnormal import FLUSH_EVERY, flush_subnormal
from vivace.train.watch import Waiting, Watch, copy_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from vivace.nn.by_hand import HandStep
    from vivace.progress import TrainingBar

_VALIDATION_SHARE = 0.1  # validation cells looked at each epoch, as a share of the training cells
_VALIDATION_FLOOR = 512
_VALIDATION_BATCH = 1024
_HALVINGS = 6  # of the learning rate, where the loss stops being finite
_COOLDOWN = 0.25  # steps in which the learning rate falls after an early stop, of those before it


def fit(network: VAE, source: Source, state: TrainState, options: TrainOptions) -> None:
    """Train ``network`` in place and append one row an epoch to ``state.history``.

    Raises
    ------
    TrainingError
        If the loss stops being finite and smaller steps do not help; the
        network is then as it was after the last epoch that was.
    """
    from vivace.progress import TrainingBar  # the compiler: only those who train wait

    recipe, watched = options.recipe, _watched(state)
    _check_watched(options, watched)
    if state.trained:
        recipe = recipe.continued()
    batch_size = options.batch_size or recipe.batch_size(len(state.train_rows))
    epochs, n_steps = _budget(source, state, recipe, options, batch_size)
    if options.patience is not None:
        recipe = recipe.held(epochs, recipe.epochs(source.n_cells, len(state.train_rows)))
    with adapted_threads(), TrainingBar(epochs, n_steps, options.progress) as bar:
        order = numpy_generator(options.seed)
        if recipe.from_data and not state.trained and network.surgery is None:
            initialise_from_data(network, source, state.train_rows, order)
        watch = Watch(options.patience, recipe.keep_best)
        run = _Run(network, source, recipe, options, watched, batch_size, recipe.betas(n_steps))
        try:
            verdict = run.train(state, watch, Schedule(recipe, n_steps), order, bar)
        except BaseException:
            verdict = watch.interrupted(network, run.good)
            if state.history:
                options.summarise(verdict)
            options.listeners.close("failed")
            raise
        finally:
            network.zero_grad(set_to_none=True)
            network.eval()
        options.summarise(verdict)
        bar.say(verdict)
    options.listeners.end()


def _check_watched(options: TrainOptions, watched: Rows) -> None:
    """What is to be watched must be measured."""
    asked = []
    if options.patience is not None:
        asked.append(("early_stopping", options.patience.monitor))
    if options.recipe.reduce_lr_on_plateau:
        asked.append(("reduce_lr_on_plateau", options.recipe.lr_scheduler_metric))
    for name, column in asked:
        if "validation" in column and not len(watched):
            raise OptionError(
                f"{name} needs validation cells for {column!r}, and there are none; leave some with "
                f"train_size=0.9, or leave {name} out."
            )


def _budget(
    source: Source, state: TrainState, recipe: Recipe, options: TrainOptions, batch_size: int
) -> tuple[int, int]:
    """Epochs, the last of which may be cut short, and steps."""
    per_epoch = sum(1 for _ in minibatches(state.train_rows, batch_size))
    epochs = options.epochs
    if epochs is None and options.max_steps is not None:
        epochs = math.ceil(options.max_steps / per_epoch)
    elif epochs is None:
        epochs = recipe.epochs(source.n_cells, len(state.train_rows))
    n_steps = min(per_epoch * epochs, options.max_steps or per_epoch * epochs)
    return math.ceil(n_steps / per_epoch), n_steps


def _reached(kl_weight: float, full: float) -> bool:
    return kl_weight >= full or math.isclose(kl_weight, full)


class _Run:
    """What stays the same over the epochs of one call of ``train``."""

    def __init__(
        self,
        network: VAE,
        source: Source,
        recipe: Recipe,
        options: TrainOptions,
        watched: Rows,
        batch_size: int,
        betas: tuple[float, float],
    ) -> None:
        from vivace.nn.by_hand import supports  # compiles: only when it is needed

        self.watched, self.options, self.batch_size = watched, options, batch_size
        self.betas = betas
        self.network, self.source, self.recipe, self.seed = network, source, recipe, options.seed
        self.fabric: Fabric | None = None
        if _on_cpu(options.accelerator):
            network.to("cpu")
        if not (_on_cpu(options.accelerator) and supports(network)):
            from lightning_fabric import Fabric  # a second's import, for those who need it

            self.fabric = Fabric(accelerator=options.accelerator, devices=1)
            network.to(self.fabric.device)
        for module in network.modules():
            if isinstance(module, BatchNorm):
                module.momentum = recipe.momentum
        self.device = network.device
        self.noise = torch_generator(options.seed, self.device)
        self.pace = Pace("training", batch_size, network.dims.n_genes, network.config)
        self.good = copy_weights(network)  # as they were after the last epoch that was finite
        self.start_optimizer()

    def train(
        self,
        state: TrainState,
        watch: Watch,
        schedule: Schedule,
        order: np.random.Generator,
        bar: TrainingBar,
    ) -> str:
        """All epochs; a verdict."""
        network, recipe, options = self.network, self.recipe, self.options
        waiting = Waiting(recipe.lr_threshold)
        if state.trained and len(self.watched):
            watch.before(self.good, self.validate(recipe.max_kl_weight)["elbo_validation"])
        halvings = step = epoch = 0
        options.listeners.start()
        while step < schedule.n_steps:
            batches = list(minibatches(state.train_rows, self.batch_size, order))
            batches = batches[: schedule.n_steps - step]
            row = self.epoch(batches, step, epoch, schedule, bar)
            if row is None:
                halvings += 1
                _undo(network, self.good, halvings, epoch, recipe)
                self.start_optimizer()
                schedule.halve()
                bar.back(step)
                continue
            self.good = copy_weights(network)
            step += len(batches)
            epoch += 1
            state.history.append(row)
            options.summarise("not finished")
            bar.epoch(epoch, row)
            full_kl = recipe.judged_in_warmup or _reached(row["kl_weight"], recipe.max_kl_weight)
            watch.epoch(self.good, row, full_kl)
            watch.by_callback = options.listeners.epoch(row, len(state.history) - 1)
            if watch.by_callback:
                break
            if (
                recipe.reduce_lr_on_plateau
                and full_kl
                and waiting.epochs_without(row[recipe.lr_scheduler_metric]) > recipe.lr_patience
            ):
                schedule.reduce()
                waiting.start_again()
            if not schedule.falling(step) and watch.out_of_patience(row, full_kl):
                if not schedule.decays:
                    break
                schedule.finish(step, round(_COOLDOWN * step))
                bar.ends(schedule.n_steps)
        watch.restore(network)
        return watch.verdict(state.history[-1]["kl_weight"], recipe.max_kl_weight)

    def start_optimizer(self) -> None:
        """Adam without a memory, and what computes the gradients for it."""
        from vivace.nn.by_hand import HandStep

        self.take_step: _HandStep | _AutogradStep = (
            _HandStep(HandStep(self.network), self.recipe, self.betas)
            if self.fabric is None
            else _AutogradStep(self.fabric, self.network, self.recipe, self.betas)
        )

    def epoch(
        self, batches: list[Rows], step: int, epoch: int, schedule: Schedule, bar: TrainingBar
    ) -> dict[str, float] | None:
        """Train on the minibatches and validate; None where a loss is not finite."""
        begun, compiled = time.perf_counter(), bar.compilation.seconds
        self.network.train()
        on_cpu = self.device.type == "cpu"
        sums = torch.zeros(3, device=self.device)
        lr = kl_weight = 0.0
        for rows in batches:
            self.pace.begin()
            batch = self.source.gather(rows).to(self.device)
            lr = schedule.learning_rate(step)
            kl_weight = self.recipe.kl_weight(step, schedule.n_steps, epoch)
            losses = self.take_step(batch, kl_weight, lr, self.noise)
            if on_cpu and not math.isfinite(losses[0].item()):  # a GPU would have to be waited for
                return None
            sums.add_(losses, alpha=len(rows))
            step += 1
            bar.step()
            self.pace.end(judge=len(rows) == self.batch_size)
        row = _row(sums / sum(map(len, batches)), "train")
        row |= self.validate(kl_weight)
        compiled = bar.compilation.seconds - compiled
        seconds = time.perf_counter() - begun - compiled
        row |= {"lr": lr, "kl_weight": kl_weight}
        row |= {"seconds": seconds, "compile_seconds": compiled}
        seen = (row["train_loss"], row["validation_loss"] if len(self.watched) else 0.0)
        weights = [v for v in self.network.state_dict().values() if v.is_floating_point()]
        finite = all(map(math.isfinite, seen)) and all(v.isfinite().all() for v in weights)
        return row if finite else None

    @torch.no_grad()
    def validate(self, kl_weight: float) -> dict[str, float]:
        """Losses over the watched cells, with the same noise each time."""
        self.network.eval()
        noise = torch_generator(self.seed, self.device)
        sums = torch.zeros(3, device=self.device)
        for part in minibatches(self.watched, _VALIDATION_BATCH):
            batch = self.source.gather(part).to(self.device)
            losses = self.network(batch, kl_weight, noise)
            sums += len(part) * torch.stack(losses)
        n = len(self.watched)
        return _row(sums / n if n else sums.fill_(math.nan), "validation")


class _HandStep:
    """One step on the CPU by kernels: losses of a minibatch, shape (3,), and Adam."""

    def __init__(self, gradients: HandStep, recipe: Recipe, betas: tuple[float, float]) -> None:
        from vivace.train.adam import FusedAdam, Group  # compiles: only when it is needed

        self.gradients = gradients
        groups = [
            Group([p.parameter for p in parts], decay, factor)
            for parts, decay, factor in _groups(gradients.network, recipe)
        ]
        self.adam = FusedAdam(groups, lr=recipe.lr, eps=recipe.eps, betas=betas)

    def __call__(
        self, batch: CountBatch, kl_weight: float, lr: float, noise: torch.Generator
    ) -> Tensor:
        losses = self.gradients(batch, kl_weight, noise)
        self.adam.lr = lr
        self.adam.step()
        return losses


class _AutogradStep:
    """The same by autograd and Lightning Fabric: any network, any device, any part of it.

    Where only some rows of a parameter are trained, Adam is given a view of them, and the
    others are out of its reach.
    """

    def __init__(
        self, fabric: Fabric, network: VAE, recipe: Recipe, betas: tuple[float, float]
    ) -> None:
        self.fabric = fabric
        self.network = network
        self.views: list[tuple[Part, Tensor]] = []
        groups = [
            {"params": [self.leaf(p) for p in parts], "weight_decay": decay, "lr_factor": factor}
            for parts, decay, factor in _groups(network, recipe)
        ]
        adam = torch.optim.Adam(groups, lr=recipe.lr, eps=recipe.eps, betas=betas, fused=True)
        self.wrapped, self.adam = fabric.setup(network, adam)
        self.steps = 0

    def leaf(self, part: Part) -> Tensor:
        """What Adam is given: the parameter, or a view of some of its rows."""
        if part.rows is None:
            return part.parameter
        view = part.parameter.detach()[part.rows]
        self.views.append((part, view))
        return view

    def __call__(
        self, batch: CountBatch, kl_weight: float, lr: float, noise: torch.Generator
    ) -> Tensor:
        for group in self.adam.param_groups:
            group["lr"] = lr * group["lr_factor"]
        losses: Any = self.wrapped(batch, kl_weight, noise)
        self.fabric.backward(losses.loss)
        for part, view in self.views:
            gradient = part.parameter.grad
            view.grad = None if gradient is None else gradient[part.rows]
        self.adam.step()
        self.network.zero_grad()
        self.steps += 1
        if self.steps % FLUSH_EVERY == 0:
            for parameter, state in self.adam.state.items():
                flush_subnormal([parameter, state["exp_avg"], state["exp_avg_sq"]])
        return torch.stack(losses).detach()


def _groups(network: VAE, recipe: Recipe) -> list[tuple[list[Part], float, float]]:
    """What is trained, the weight decay it has, and its learning rate as a multiple."""
    parts = trained_parts(network)
    matrices = [p for p in parts if _is_matrix(p.parameter, network)]
    vectors = [p for p in parts if not _is_matrix(p.parameter, network)]
    decay = 0.0 if recipe.decay_matrices_only else recipe.weight_decay
    return [(matrices, recipe.weight_decay, 1.0), (vectors, decay, recipe.vector_lr)]


def _is_matrix(parameter: Tensor, network: VAE) -> bool:
    """Whether it multiplies something; a table of dispersions is a list of vectors."""
    return parameter.ndim > 1 and parameter is not network.log_theta


def _on_cpu(accelerator: str) -> bool:
    """Whether Fabric would take the CPU."""
    there = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or (accelerator == "auto" and not there)


def _undo(network: VAE, good: dict[str, Tensor], halvings: int, epoch: int, recipe: Recipe) -> None:
    """Go back to the last finite epoch, and say so; give up after several halvings."""
    network.load_state_dict(good)
    if halvings > _HALVINGS:
        network.eval()
        raise TrainingError(
            f"The loss stopped being finite in epoch {epoch + 1}, and smaller steps did not help; "
            "the weights are those of before it; train a new model with a lower learning rate, for "
            f"example plan_kwargs={{'lr': {recipe.lr / 2**_HALVINGS:g}}}."
        )
    warnings.warn(
        f"The loss stopped being finite in epoch {epoch + 1}; the epoch is done again with half "
        "the learning rate.",
        RuntimeWarning,
        stacklevel=4,
    )


def _watched(state: TrainState) -> Rows:
    """Validation cells looked at each epoch: all, or so many that they cost little.

    The same in every call of ``train``, so that their ELBOs can be compared.
    """
    most = max(_VALIDATION_FLOOR, int(_VALIDATION_SHARE * len(state.train_rows)))
    rows = state.validation_rows
    if len(rows) <= most:
        return rows
    return np.sort(numpy_generator(0).choice(rows, most, replace=False))


def _row(means: Tensor, part: str) -> dict[str, float]:
    """Mean loss, reconstruction and KL under scvi-tools' names."""
    loss, reconstruction, kl = means.tolist()
    return {
        f"{part}_loss": loss,
        f"elbo_{part}": reconstruction + kl,
        f"reconstruction_loss_{part}": reconstruction,
        f"kl_local_{part}": kl,
    }
