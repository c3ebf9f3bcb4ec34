from __future__ import annotations

import math

import pytest

from vivace.errors import ArgumentTypeError, OptionError
from vivace.train import RECIPES
from vivace.train.recipe import fast_epochs

FAST, SCVI_TOOLS = RECIPES["fast"], RECIPES["scvi-tools"]


@pytest.mark.parametrize(
    ("n_cells", "epochs"), [(1, 400), (7_104, 400), (20_000, 400), (40_000, 200), (10**8, 1)]
)
def test_epochs_of_the_scvi_tools_recipe(n_cells: int, epochs: int) -> None:
    assert SCVI_TOOLS.choose_epochs(n_cells, n_cells) == epochs


def test_scvi_tools_settings_are_theirs() -> None:
    assert (SCVI_TOOLS.lr, SCVI_TOOLS.eps, SCVI_TOOLS.weight_decay) == (1e-3, 0.01, 1e-6)
    assert not SCVI_TOOLS.decay_matrices_only
    assert not SCVI_TOOLS.from_data
    assert [SCVI_TOOLS.learning_rate(s, 1000) for s in (0, 500, 999)] == [1e-3] * 3
    assert [SCVI_TOOLS.kl_weight(7, 10, e) for e in (0, 100, 400, 500)] == [0.0, 0.25, 1.0, 1.0]
    assert SCVI_TOOLS.for_further_training() == SCVI_TOOLS


def test_fast_learning_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [FAST.learning_rate(s, 1000) for s in range(1000)]
    top = rates.index(FAST.lr)
    assert 0 < rates[0] < FAST.lr / 50
    assert rates[:top] == sorted(rates[:top])
    constant = [r for r in rates if r == FAST.lr]
    assert len(constant) >= 0.2 * len(rates)
    falling = rates[top + len(constant) :]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] < FAST.lr / 1000


def test_fast_kl_weight_is_full_after_a_quarter_of_the_steps() -> None:
    for n_steps in (2, 10, 1000):
        weights = [FAST.kl_weight(s, n_steps, 0) for s in range(n_steps + 1)]
        assert weights[0] == 0.0
        assert weights == sorted(weights)
        assert set(weights[math.ceil(0.25 * n_steps) :]) == {1.0}


def test_continuing_starts_at_full_kl_weight() -> None:
    assert FAST.for_further_training().kl_weight(0, 100, 0) == 1.0


def test_adam_remembers_a_share_of_the_steps_of_a_short_run() -> None:
    assert SCVI_TOOLS.betas(10) == SCVI_TOOLS.betas(10**6) == (0.9, 0.999)
    steps = [10, 500, 1_000, 5_000, 10**5]
    result = [FAST.betas(n)[1] for n in steps]
    assert result == pytest.approx([0.95, 0.95, 0.975, 0.995, 0.999])


def test_fast_visits_fall_with_the_root_of_the_cells() -> None:
    sizes = [round(10 ** (k / 4)) for k in range(15, 29)]
    epochs = [fast_epochs(n, n) for n in sizes]
    assert epochs == sorted(epochs, reverse=True)
    assert min(epochs) >= 2
    visits = [e * n for e, n in zip(epochs, sizes, strict=True)]
    assert visits == sorted(visits)


def test_few_cells_are_not_visited_more_often_in_smaller_minibatches() -> None:
    """A hundred cells seen a hundred times each would be memorised."""
    assert max(fast_epochs(n, n) for n in range(1, 4_000)) <= 16
    assert [FAST.choose_batch_size(n) for n in (1, 3_999, 4_000, 10**7)] == [64, 64, 128, 128]
    assert SCVI_TOOLS.choose_batch_size(10) == SCVI_TOOLS.choose_batch_size(10**7) == 128


@pytest.mark.parametrize(
    ("plan", "weights"),
    [
        ({"n_epochs_kl_warmup": 4}, [0.0, 0.25, 0.5]),
        ({"n_steps_kl_warmup": 40}, [0.0, 0.25, 0.5]),
        ({"n_epochs_kl_warmup": None}, [1.0, 1.0, 1.0]),
        ({"n_epochs_kl_warmup": 4, "max_kl_weight": 0.4}, [0.0, 0.1, 0.2]),
        ({"n_epochs_kl_warmup": 4, "min_kl_weight": 0.5}, [0.5, 0.625, 0.75]),
    ],
)
@pytest.mark.parametrize("recipe", [FAST, SCVI_TOOLS])
def test_plan_kwargs_set_the_kl_warm_up(
    recipe: object, plan: dict[str, float], weights: list[float]
) -> None:
    planned = recipe.with_plan(plan)  # type: ignore[attr-defined]
    got = [planned.kl_weight(10 * e, 1000, e) for e in range(3)]
    assert got == pytest.approx(weights)


def test_wrong_plans_are_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="did you mean 'weight_decay'"):
        FAST.with_plan({"weight_decai": 1})
    with pytest.raises(ArgumentTypeError, match=r"\['lr'\] must be a number, not 'high'"):
        FAST.with_plan({"lr": "high"})
    with pytest.raises(OptionError, match=r"\['lr'\] must be at least 0 and finite, not -1"):
        FAST.with_plan({"lr": -1})


def test_none_leaves_the_warm_up_unchanged() -> None:
    """Because None is scvi-tools' default."""
    for recipe in RECIPES.values():
        assert recipe.with_plan({"n_steps_kl_warmup": None}) == recipe


def test_with_early_stopping_the_kl_weight_is_full_before_the_decay() -> None:
    for epochs in (10, 20, 60, 400):
        held = RECIPES["fast"].for_early_stopping(epochs, usual=20)
        full = min(s for s in range(1000) if held.kl_weight(s, 1000, 0) == 1.0)
        falls = min(s for s in range(full, 1000) if held.learning_rate(s, 1000) < held.lr)
        assert full <= 251
        assert falls >= 749
        if epochs > 20:  # the warm-ups take no longer than in a run of usual length
            assert full * epochs <= 0.25 * 20 * 1000 + epochs
