"""What a model prints."""

from __future__ import annotations


def test_repr_names_options_data_and_training(trained, ready):
    text = repr(trained)
    for part in ("zinb", "3 latent", "1 layer of 16", "60 cells x 30 genes", "obs['batch']"):
        assert part in text
    for part in ("2 epochs", "54 cells", "'fast'", "KL weight", "validation"):
        assert part in text
    assert text == trained.summary
    new = repr(ready(n_layers=2))
    assert "2 layers" in new
    assert "not trained: call train()" in new
