"""Cells of separated labels in two latent dimensions, for labels by neighbours alone."""

from __future__ import annotations

import numpy as np

from vivace.transfer import Labelled, LabelOptions, LatentCells, transfer_labels


def blobs(n, batch, seed, shift=0.0, labels=3):
    """Cells of well separated labels in two latent dimensions, without genes."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, labels, n)
    centre = 6.0 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])[label]
    mean = (centre + rng.normal(size=(n, 2)) + shift).astype(np.float32)
    cells = LatentCells(mean, np.full((n, 2), 0.01, np.float32))
    return cells, label, np.full(n, batch)


def transferred(reference, query):
    """Labels by neighbours alone."""
    return transfer_labels(reference, reference, query, LabelOptions(), np.random.default_rng(0))


def two_batches(*sizes):
    """A reference of as many cells in each."""
    one, other = sizes * 2 if len(sizes) == 1 else sizes
    parts = [blobs(n, b, b) for b, n in enumerate((one, other))]
    mean = np.concatenate([p[0].mean for p in parts])
    label, batch = (np.concatenate([p[i] for p in parts]) for i in (1, 2))
    return Labelled(LatentCells(mean, np.full_like(mean, 0.01)), label, batch, 4)
