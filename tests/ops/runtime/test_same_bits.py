"""No result depends on the number of threads, which changes with the load of the machine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vivace
from vivace import SCVI, LinearSCVI
from vivace.ops.runtime import threads as module
from vivace.ops.runtime.threads import Tuner

MODELS = {
    "zinb": {},
    "nb": {"gene_likelihood": "nb"},
    "poisson": {"gene_likelihood": "poisson"},
    "normal": {"gene_likelihood": "normal"},
    "gene-batch": {"dispersion": "gene-batch"},
    "gene-cell": {"dispersion": "gene-cell"},
    "logistic-normal": {"latent_distribution": "ln"},
    "latent library": {"use_observed_lib_size": False},
    "encoded covariates": {"encode_covariates": True},
    "embedded batch": {"batch_representation": "embedding"},
    "layer norm": {"use_layer_norm": "both", "use_batch_norm": "none"},
    "three layers": {"n_layers": 3},
    "sixty-four units": {"n_hidden": 64},
    "mapping": {"preset": "mapping"},
    "linear": {"kind": LinearSCVI},
}


@pytest.fixture(scope="module")
def cells(tiny):
    """Enough cells and genes that products are cut for several threads."""
    return tiny(330, 640)


@pytest.fixture
def set_threads(monkeypatch):
    """Fixes the number of threads, or changes it for each unit of work."""
    before = torch.get_num_threads()
    # as many cores as are asked for, all of them free
    monkeypatch.setattr(module, "allowed_cores", lambda: 4)
    monkeypatch.setattr(module._cores, "look", lambda: 4.0)
    ran = set()

    def set_threads(number):
        torch.set_num_threads(4 if number == "changing" else number)
        rng = np.random.default_rng(0)

        def threads(tuner, most):
            ran.add(chosen := int(rng.integers(1, 5)) if number == "changing" else number)
            return chosen

        monkeypatch.setattr(Tuner, "threads", threads)
        return ran

    yield set_threads
    torch.set_num_threads(before)


def results(cells, kind=SCVI, **options):
    """All results of a model as bytes, by name."""
    adata = cells.copy()
    covariates = {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]}
    kind.setup_anndata(
        adata,
        batch_key="batch",
        labels_key="cell_type",
        **({} if kind is LinearSCVI else covariates),
    )
    model = kind(adata, **options)
    model.train(2, batch_size=100, seed=1, plan_kwargs={"lr": 1e-3}, progress=False)
    common = {"batch_size": 100, "silent": True}
    some = np.arange(120)
    answers = {
        "weights": np.concatenate([v.numpy().ravel() for v in model.module.state_dict().values()]),
        "history": model.history.drop(columns=["seconds", "compile_seconds"]).to_numpy(),
        "latent": model.get_latent_representation(**common),
        "expression": model.get_normalized_expression(return_numpy=True, **common),
        "elbo": np.array(model.get_elbo(seed=1, **common)),
        "error": np.array(list(model.get_reconstruction_error(seed=1, **common).values())),
        "marginal": np.array(
            model.get_marginal_ll(indices=some, n_mc_samples=20, seed=1, **common)
        ),
        "programs": model.get_gene_programs(**common).effect.to_numpy(),
    }
    if options.get("gene_likelihood") != "normal":
        sample = model.posterior_predictive_sample(indices=some, seed=1, **common)
        answers["samples"] = np.asarray(sample.todense())
    table = model.differential_expression(groupby="cell_type", seed=1, **common)
    numbers = table.select_dtypes("number")
    answers |= {f"DE {name}": numbers[name].to_numpy() for name in numbers}
    return {name: np.ascontiguousarray(a).tobytes() for name, a in answers.items()}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_one_thread_and_others_give_the_same(options, cells, set_threads):
    set_threads(1)
    single = results(cells, **options)
    for number in (2, 3):
        set_threads(number)
        several = results(cells, **options)
        assert [name for name in single if single[name] != several[name]] == []
    ran = set_threads("changing")
    changing = results(cells, **options)
    assert {1, 2, 3, 4} <= ran
    assert [name for name in single if single[name] != changing[name]] == []


def test_a_fixed_number_gives_the_same_as_the_load(cells):
    followed = results(cells)
    try:
        for number in (1, 2):
            vivace.settings.num_threads = number
            assert results(cells) == followed
    finally:
        vivace.settings.num_threads = None
