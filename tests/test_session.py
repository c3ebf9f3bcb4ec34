"""Settings of the rest of a session change no result, end no run and print no foreign warning."""

from __future__ import annotations

import ast
import copy
import gc
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import sklearn
import torch

import vivace
import whole_run
from vivace.errors import TrainingError
from vivace.session import usual_session
from whole_run import make_model, run_everything, simulate

SOURCE = Path(vivace.__file__).parent


# ---- settings that can be undone ----------------------------------------------------


@contextmanager
def setting(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Iterator[None]:
    """Write a setting of the process in the context."""
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def default_type(dtype: torch.dtype) -> Any:
    return setting(torch.get_default_dtype, torch.set_default_dtype, dtype)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


def precision(name: str) -> Any:
    read, write = torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    return setting(read, write, name)


def deterministic() -> Any:
    read = torch.are_deterministic_algorithms_enabled
    return setting(read, torch.use_deterministic_algorithms, True)


@contextmanager
def anomalies() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about the setting itself
        context = torch.autograd.set_detect_anomaly(True)
    with context:
        yield


@contextmanager
def other_seeds() -> Iterator[None]:
    """Global generators that stand elsewhere, and stay there."""
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    random.seed(9)
    drawn = torch.rand(3, dtype=torch.float32, device="cpu"), np.random.rand(3), random.random()  # noqa: NPY002
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    random.seed(9)
    yield
    assert torch.equal(torch.rand(3, dtype=torch.float32, device="cpu"), drawn[0])
    np.testing.assert_array_equal(np.random.rand(3), drawn[1])  # noqa: NPY002
    assert random.random() == drawn[2]
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    random.setstate(state[2])


@contextmanager
def anndata_settings(**values: Any) -> Iterator[None]:
    with anndata.settings.override(**values):
        yield


@contextmanager
def time_zone(name: str) -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    yield
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)
    time.tzset()


@contextmanager
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


STATES: dict[str, Callable[[], Any]] = {
    "float64": lambda: default_type(torch.float64),
    "float16": lambda: default_type(torch.float16),
    "bfloat16": lambda: default_type(torch.bfloat16),
    "meta device": lambda: default_device("meta"),
    "no gradients": lambda: torch.set_grad_enabled(False),
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "bfloat16 products": lambda: precision("medium"),
    "deterministic": deterministic,
    "anomaly detection": anomalies,
    "NumPy raises": lambda: np.errstate(all="raise"),
    "other seeds": other_seeds,
    "copy on write": lambda: pd.option_context("mode.copy_on_write", True),
    "strings": lambda: pd.option_context("future.infer_string", True),
    "chained assignment": lambda: pd.option_context("mode.chained_assignment", "raise"),
    "display": lambda: pd.option_context("display.max_rows", 1, "display.max_columns", 1),
    "NumPy prints": lambda: np.printoptions(legacy="1.13", precision=1, threshold=2),
    "unused categories": lambda: anndata_settings(remove_unused_categories=False),
    "sparse arrays": lambda: anndata_settings(use_sparse_array_on_read=True),
    "scikit-learn": lambda: sklearn.config_context(transform_output="pandas"),
    "time zone": lambda: time_zone("Asia/Kolkata"),
    "no collector": no_collector,
}
ALONE = {"float16", "bfloat16"}  # the others can be set at once


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, np.ndarray]:
    """All answers in the usual session."""
    return run_everything(tmp_path_factory.mktemp("plain"))


def assert_same_answers(
    given: dict[str, Any], expected: dict[str, Any], subnormal: bool = True
) -> None:
    """The same bits; without ``subnormal`` numbers below 1e-37 may be 0."""
    assert sorted(given) == sorted(expected)
    for name, value in expected.items():
        result = given[name]
        if not subnormal and value.dtype.kind == "f":
            value, result = (np.where(np.abs(x) < 1e-37, 0, x) for x in (value, result))
        np.testing.assert_array_equal(result, value, err_msg=name)


def test_every_question_is_asked():
    """So that a new one is tried in all states, too."""
    other = {
        "load", "load_query_data", "minify_adata", "prepare_query_anndata", "save",
        "setup_anndata", "to_device", "train", "transfer_labels",
    }  # fmt: skip
    methods = {
        name
        for cls in (vivace.SCVI, vivace.LinearSCVI)
        for name in dir(cls)
        if not name.startswith("_") and callable(getattr(cls, name))
    }
    assert methods == other | set(whole_run.QUESTIONS)


def test_all_settings_at_once_change_nothing(plain, tmp_path):
    with ExitStack() as stack:
        for name, enter in STATES.items():
            if name not in ALONE:
                stack.enter_context(enter())
        answers = run_everything(tmp_path)
    assert_same_answers(answers, plain)


# those that cannot be set with the others, and those that could hide what another one does
@pytest.mark.slow
@pytest.mark.parametrize("state", sorted(ALONE | {"float64", "meta device", "NumPy raises"}))
def test_a_setting_changes_nothing(plain, tmp_path, state):
    with STATES[state]():
        answers = run_everything(tmp_path)
    assert_same_answers(answers, plain)


@pytest.mark.parametrize("state", ["float64", "meta device", "inference mode", "NumPy raises"])
def test_a_setting_between_the_calls_changes_nothing(state):
    """The model is made and trained without it, and continued with it, or the other way round."""
    result = []
    for first, second in ((False, False), (True, False), (False, True)):
        with STATES[state]() if first else ExitStack():
            model = make_model()
        with STATES[state]() if second else ExitStack():
            model.train(1, seed=3, progress=False, accelerator="cpu")
            result.append(model.get_elbo(seed=0))
    assert result[0] == result[1] == result[2]


def test_what_the_session_has_set_is_there_afterwards(plain):
    model = make_model()
    with torch.inference_mode(), np.errstate(all="raise"), precision("medium"):
        model.get_elbo()
        assert torch.is_inference_mode_enabled()
        assert set(np.geterr().values()) == {"raise"}
        assert torch.get_float32_matmul_precision() == "medium"
    assert not torch.is_inference_mode_enabled()


def test_the_precision_returns_with_the_last_thread():
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    if setting is None:
        pytest.skip("this torch has no precision of its own for oneDNN")
    inside, leave = threading.Barrier(2), threading.Event()

    def stay() -> None:
        with usual_session():
            inside.wait(10)
            leave.wait(10)

    with precision("medium"):
        before = setting.fp32_precision
        thread = threading.Thread(target=stay)
        thread.start()
        with usual_session():
            inside.wait(10)
        assert setting.fp32_precision == "ieee"
        leave.set()
        thread.join()
        assert setting.fp32_precision == before == "bf16"


# ---- settings of a process ----------------------------------------------------------

# every process also takes warnings for errors
PROCESSES: dict[str, tuple[str, dict[str, str]]] = {
    "ASCII": ("", {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}),
    "float64 before the import, workqueue": (
        "import torch; torch.set_default_dtype(torch.float64)",
        {"NUMBA_THREADING_LAYER": "workqueue"},
    ),
    "a disabled compiler, another folder": (
        "import os, tempfile; os.chdir(tempfile.mkdtemp())", {"NUMBA_DISABLE_JIT": "1"}
    ),
    "no assertions, closed streams": (
        "import sys; sys.stdout.close(); sys.stderr.close()", {"PYTHONOPTIMIZE": "1"}
    ),
    "no streams, no subnormal numbers": (
        "import sys, torch; sys.stdout = sys.stderr = None; torch.set_flush_denormal(True)", {}
    ),
}  # fmt: skip


def start(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    folder = str(Path(__file__).parent)
    path = os.pathsep.join([str(SOURCE.parent), folder])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("state", PROCESSES)
def test_a_setting_of_the_process_changes_nothing(plain, tmp_path, state):
    code, environment = PROCESSES[state]
    done = start(
        f"{code}\nimport sys, numpy as np, whole_run\nfrom pathlib import Path\n"
        "np.savez(sys.argv[1] + '/answers.npz', **whole_run.run_everything(Path(sys.argv[1])))",
        tmp_path,
        **environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == done.stdout == ""
    with np.load(tmp_path / "answers.npz") as answers:
        assert_same_answers(dict(answers), plain, subnormal="subnormal" not in state)


def test_models_made_in_threads_are_those_made_alone():
    adata = simulate()
    vivace.SCVI.setup_anndata(adata, batch_key="batch")

    def weights() -> list[torch.Tensor]:
        model = vivace.SCVI(adata, n_hidden=8, batch_representation="embedding")
        return list(model.module.state_dict().values())

    alone, together, interval = weights(), [], sys.getswitchinterval()
    before = torch.get_rng_state()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(10):
            threads = [threading.Thread(target=lambda: together.append(weights())) for _ in "abcd"]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
    finally:
        sys.setswitchinterval(interval)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(together) == 40
    for made in together:
        assert all(map(torch.equal, made, alone))


def test_a_model_that_is_trained_in_one_thread_is_refused_to_others(refused):
    model = make_model()
    begun, asked = threading.Event(), threading.Event()
    rows: list[dict[str, float]] = []

    def wait(model: Any, row: dict[str, float]) -> None:
        rows.append(row | {"asked in the callback": model.get_elbo(seed=0)})
        begun.set()
        asked.wait(60)

    callback = SimpleNamespace(on_epoch_end=wait)
    options = {"callbacks": [callback], "progress": False, "accelerator": "cpu"}
    thread = threading.Thread(target=lambda: model.train(1, **options))
    thread.start()
    assert begun.wait(60)
    with refused(TrainingError, "The model is being trained already; call train() when that has"):
        model.train(1, progress=False)
    with refused(TrainingError, "being trained in another thread; ask it when that train() has"):
        model.get_elbo()
    copied = copy.deepcopy(model)
    asked.set()
    thread.join()
    assert len(rows) == 1
    for free in (model, copied):
        free.train(1, progress=False)
        assert np.isfinite(free.get_elbo(seed=0))


def test_threads_train_with_the_layer_that_takes_one_caller():
    done = start(
        "import threading, vivace, whole_run\n"
        "a = whole_run.simulate(900, 120); vivace.SCVI.setup_anndata(a, batch_key='batch')\n"
        "models = [vivace.SCVI(a, n_hidden=32) for _ in range(4)]\n"
        "ts = [threading.Thread(target=lambda m=m: m.train(10, seed=1, progress=False))\n"
        "      for m in models]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\n"
        "print(len({float(m.history['elbo_train'].iloc[-1]) for m in models}), len(ts))",
        NUMBA_THREADING_LAYER="workqueue",
        OMP_NUM_THREADS="2",
        NUMBA_NUM_THREADS="2",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "4"]


def test_a_fork_after_training_answers_the_same():
    if not hasattr(os, "fork"):
        pytest.skip("this system does not fork")
    done = start(
        "import os, sys, whole_run\n"
        "m = whole_run.make_model(); elbo = m.get_elbo(seed=0); sys.stdout.flush()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    m.train(1, seed=1, progress=False); m.get_latent_representation()\n"
        "    os._exit(0)\n"
        "_, status = os.waitpid(child, 0)\n"
        "print(os.waitstatus_to_exitcode(status), m.get_elbo(seed=0) == elbo)",
        PYTHONWARNINGS="ignore",
    )
    assert done.stdout.split() == ["0", "True"], done.stderr


def test_the_folder_may_change_between_set_up_and_save(tmp_path, monkeypatch):
    model = make_model()
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        model.save("model")
        assert (tmp_path / name / "model" / "model.json").is_file()


# ---- the source ---------------------------------------------------------------------

MAKERS = {"zeros", "ones", "empty", "full", "rand", "randn", "tensor", "linspace", "eye"}


def calls_without_a_type(text: str) -> list[int]:
    """Lines that make a tensor of torch's default type."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in MAKERS
        and "dtype" not in {k.arg for k in node.keywords}
    ]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: p.stem)
def test_tensors_are_made_with_a_type(path):
    assert calls_without_a_type(path.read_text(encoding="utf-8")) == []


def test_a_tensor_without_a_type_is_seen():
    assert calls_without_a_type("x = torch.zeros(2)\ny = torch.ones(2, dtype=z)") == [1]
