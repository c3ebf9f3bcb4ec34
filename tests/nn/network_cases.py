"""A small network with random weights, and cells for it."""

from __future__ import annotations

import torch

from vivace.config import ModelConfig
from vivace.data.batch import CountBatch
from vivace.nn import VAE, Dimensions
from vivace.ops.csr import SparseCounts

N, G = 12, 9
DIMS = Dimensions(n_genes=G, n_batches=3, n_categories=(1, 2), n_continuous=2, n_labels=2)


def network(dims=DIMS, *, seed=0, backend="reference", dtype=torch.float64, **options) -> VAE:
    """Every parameter and running statistic random, so that a test sees each of them."""
    options = {"n_hidden": 7, "n_latent": 4, "dropout_rate": 0.0} | options
    net = VAE(ModelConfig(**options), dims, backend)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_(std=0.5, generator=gen)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return net.to(dtype)


def cells(n=N, *, seed=1, dtype=torch.float64, size_factor=False) -> CountBatch:
    gen = torch.Generator().manual_seed(seed)
    x = torch.poisson(torch.full((n, G), 2.0), generator=gen)
    x[:, 0] += 1  # no cell is empty
    return CountBatch(
        counts=SparseCounts.from_dense(x.to(dtype)),
        library=x.sum(1).to(dtype),
        batch=torch.randint(3, (n,), generator=gen),
        labels=torch.arange(n) % 2,
        categorical=torch.stack([torch.zeros(n).long(), torch.arange(n) % 2], 1),
        continuous=torch.randn(n, 2, generator=gen).to(dtype),
        size_factor=torch.rand(n, generator=gen).to(dtype) + 0.5 if size_factor else None,
    )
