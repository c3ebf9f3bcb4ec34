"""The training loop."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vivace.data import CountBatch, Rows, Source, minibatches
from vivace.errors import TrainingError
from vivace.nn import VAE
from vivace.seeds import numpy_generator, torch_generator
from vivace.train.adam import FusedAdam
from vivace.train.initialise import initialise_from_data
from vivace.train.recipes import Recipe
from vivace.train.state import TrainState

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_VALIDATION_SHARE = 0.05  # validation cells looked at each epoch, as a share of the training cells
_VALIDATION_FLOOR = 256
_VALIDATION_BATCH = 512


@dataclass(frozen=True)
class TrainOptions:
    """What one call of ``train`` was asked to do.

    Parameters
    ----------
    recipe : schedules and optimiser settings
    epochs : passes over the training cells
    batch_size : cells of a minibatch
    seed : of initialisation, order and noise
    accelerator : Lightning Fabric's name of a device, or "auto"
    progress : whether a bar is shown
    """

    recipe: Recipe
    epochs: int
    batch_size: int
    seed: int
    accelerator: str
    progress: bool


def fit(network: VAE, source: Source, state: TrainState, options: TrainOptions) -> None:
    """Train ``network`` in place and append one row an epoch to ``state.history``.

    Raises
    ------
    TrainingError
        If the loss stops being finite; the network is then as it was after
        the last epoch that was.
    """
    # seconds of imports: only those who train wait for them
    from lightning_fabric import Fabric

    from vivace.nn.by_hand import HandStep, supports
    from vivace.train.progress import TrainingBar

    fabric = Fabric(accelerator=options.accelerator, devices=1)
    order = numpy_generator(options.seed)
    recipe = options.recipe
    if state.trained:
        recipe = recipe.continued()
    elif recipe.from_data:
        initialise_from_data(network, source, state.train_rows, order)
    network.to(fabric.device)
    optimizer = _optimizer(network, recipe)
    pass_of = HandStep(network) if supports(network) else _AutogradPass(fabric, network, optimizer)
    device = network.device
    noise = torch_generator(options.seed, device)
    watched = _watched(state, order)
    per_epoch = sum(1 for _ in minibatches(state.train_rows, options.batch_size))
    n_steps = per_epoch * options.epochs

    good = _copy(network)

    with TrainingBar(options.epochs, n_steps, options.progress) as bar:
        step = 0
        for epoch in range(options.epochs):
            begun = time.perf_counter()
            network.train()
            sums = torch.zeros(3, device=device)
            lr = kl_weight = 0.0
            for rows in minibatches(state.train_rows, options.batch_size, order):
                batch = source.gather(rows).to(device)
                lr = recipe.learning_rate(step, n_steps)
                kl_weight = recipe.kl_weight(step, n_steps, epoch)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                losses = pass_of(batch, kl_weight, noise)
                optimizer.step()
                sums.add_(losses, alpha=len(rows))
                step += 1
                bar.step()
            row = _row(sums / len(state.train_rows), "train")
            row |= _row(_validate(network, source, watched, kl_weight, options.seed), "validation")
            row |= {"lr": lr, "kl_weight": kl_weight, "seconds": time.perf_counter() - begun}
            if not math.isfinite(row["train_loss"]):
                network.load_state_dict(good)
                network.eval()
                raise TrainingError(
                    f"The loss stopped being finite in epoch {epoch + 1}, and the weights are those "
                    "of before it; train a new model with a lower learning rate, for example "
                    f"plan_kwargs={{'lr': {recipe.lr / 4:g}}}."
                )
            good = _copy(network)
            state.history.append(row)
            bar.epoch(epoch, row)
    network.eval()


class _AutogradPass:
    """Losses of a minibatch, shape (3,), and gradients by autograd: any network, any device."""

    def __init__(self, fabric: Fabric, network: VAE, optimizer: torch.optim.Optimizer) -> None:
        self.fabric = fabric
        self.parameters = list(network.parameters())
        self.wrapped: Any = fabric.setup(network, optimizer)[0]

    def __call__(self, batch: CountBatch, kl_weight: float, noise: torch.Generator) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        losses = self.wrapped(batch, kl_weight, noise)
        self.fabric.backward(losses.loss)
        return torch.stack(losses).detach()


def _optimizer(network: VAE, recipe: Recipe) -> FusedAdam:
    """Adam over the parameters."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return FusedAdam(
        groups if recipe.decay_matrices_only else list(network.parameters()),
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        eps=recipe.eps,
    )


def _copy(network: VAE) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def _watched(state: TrainState, order: np.random.Generator) -> Rows:
    """Validation cells looked at each epoch: all, or so many that they cost little."""
    most = max(_VALIDATION_FLOOR, int(_VALIDATION_SHARE * len(state.train_rows)))
    rows = state.validation_rows
    return rows if len(rows) <= most else np.sort(order.choice(rows, most, replace=False))


@torch.no_grad()
def _validate(network: VAE, source: Source, rows: Rows, kl_weight: float, seed: int) -> Tensor:
    """Loss, reconstruction and KL over the watched cells, with the same noise each epoch."""
    network.eval()
    noise = torch_generator(seed, network.device)
    sums = torch.zeros(3, device=network.device)
    for part in minibatches(rows, _VALIDATION_BATCH):
        losses = network(source.gather(part).to(network.device), kl_weight, noise)
        sums += len(part) * torch.stack((losses.loss, losses.reconstruction, losses.kl))
    return sums / len(rows) if len(rows) else sums.fill_(math.nan)


def _row(means: Tensor, part: str) -> dict[str, float]:
    """Mean loss, reconstruction and KL under scvi-tools' names."""
    loss, reconstruction, kl = means.tolist()
    return {
        f"{part}_loss": loss,
        f"elbo_{part}": reconstruction + kl,
        f"reconstruction_loss_{part}": reconstruction,
        f"kl_local_{part}": kl,
    }
