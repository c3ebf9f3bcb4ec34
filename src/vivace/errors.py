"""Every error that vivace raises on purpose.

All derive from :class:`VivaceError`, and each also from the built-in class that Python users
expect: ``except ValueError`` works. A message is one sentence: what is wrong, where, and the fix.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = str(Path(__file__).parent) + os.sep
_WIDTH = 60  # characters of a value in a message
_MESSAGE = 600  # characters of a message, whatever is in it
_LONG = 10_000  # characters that are looked at to shorten a text
_LONG_NUMBER = 10_000  # bits
_LONG_NAME = 300  # characters
_SENTENCE_END = re.compile(r"[.?!]\s+(?=[A-Z])")


class VivaceError(Exception):
    """Base of every error that vivace raises on purpose."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message, _MESSAGE))


class DataError(VivaceError, ValueError):
    """The counts, or a column that describes the cells, cannot be used."""


class MissingColumnError(DataError, KeyError):
    """A named column, layer or gene is not in the data."""

    __str__ = Exception.__str__  # KeyError would show the message in quotes


class OptionError(VivaceError, ValueError):
    """An argument has a value that is not allowed, or that contradicts another argument."""


class ArgumentTypeError(VivaceError, TypeError):
    """An argument has the wrong type, or a name that no argument has."""


class MissingNameError(VivaceError, AttributeError):
    """A module, a model or the settings have no such name."""


class ShapeError(VivaceError, ValueError):
    """Arrays that must agree in shape do not."""


class ModelFileError(VivaceError, OSError):
    """A model folder is missing, damaged or of an unknown format."""


class WriteError(VivaceError, OSError):
    """A file or folder cannot be written."""


class TrainingError(VivaceError, RuntimeError):
    """Training cannot go on."""


class MissingExtraError(VivaceError, ImportError):
    """An optional dependency is not installed."""


class NotTrainedError(VivaceError, RuntimeError):
    """A question was asked of a model that has not been trained."""


class VivaceWarning(UserWarning):
    """Something that is allowed, but probably not intended."""


def warn(message: str, kind: type[Warning] = VivaceWarning) -> None:
    """Warn, pointing at the line outside vivace that made the call."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(one_line(message, _MESSAGE), kind, stacklevel=level)


def require_extra(module: str, extra: str, purpose: str, alternative: str = "") -> None:
    """Refuse to go on without an optional dependency.

    Parameters
    ----------
    module
        Name that the dependency is imported by.
    extra
        Extra of vivace that installs it.
    purpose
        What it is for, with its verb: "Figures need".
    alternative
        What would do without it, as a clause.
    """
    if find_spec(module) is None:
        package = {"sklearn": "scikit-learn"}.get(module, module)
        raise MissingExtraError(
            f"{purpose} {package}, which is not installed; run pip install 'vivace[{extra}]'"
            f"{', ' * bool(alternative)}{alternative}."
        )


def brief(value: object) -> str:
    """``repr(value)`` on one line, shortened in the middle to at most 60 characters.

    Examples
    --------
    >>> brief("slow")
    "'slow'"
    >>> brief(list(range(100)))
    '[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,...95, 96, 97, 98, 99]'
    """
    if isinstance(value, int) and value.bit_length() > _LONG_NUMBER:
        return "a number of thousands of digits"  # Python refuses to print it
    if isinstance(value, str) and len(value) > _LONG:  # a repr of megabytes takes long
        value = value[:_WIDTH] + value[-_WIDTH:]
    try:
        text = repr(value)
    except Exception:  # of a class that is not ours
        text = f"<{type(value).__name__}>"
    if len(text[:_LONG].splitlines()) > 1:  # an array or a table
        shape = getattr(value, "shape", None)
        of_shape = f" of shape {shape}" if isinstance(shape, tuple) else ""
        kind = type(value).__name__
        article = "an" if kind == "ndarray" or kind[0] in "AEIOU" else "a"
        return one_line(f"{article} {kind}{of_shape}", _WIDTH)
    return one_line(text, _WIDTH)


def one_line(text: object, width: int = 200) -> str:
    """A text on one line, shortened in the middle; of another library's error, its first sentence.

    Examples
    --------
    >>> one_line(ValueError("the column" + chr(10) + "is missing. Use another."))
    'the column is missing'
    """
    is_error = isinstance(text, Exception)
    text = str(text)
    if len(text) > _LONG:
        text = text[:width] + text[-width:]
    if is_error:
        text = _SENTENCE_END.split(text, maxsplit=1)[0].rstrip(".")
    if len(text.splitlines()) > 1:  # arrays and frames
        text = " ".join(text.split())
    if len(text) <= width:
        return text
    tail = (width - 3) // 3
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


def list_names(
    names: Sequence[object], most: int = 5, form: Callable[[object], str] = brief
) -> str:
    """The first ``most`` names, and "..." if there are more.

    Examples
    --------
    >>> list_names(["CD4", "CD8A", "NKG7"], most=2)
    "'CD4', 'CD8A', ..."
    """
    return ", ".join(map(form, names[:most])) + ", ..." * (len(names) > most)


# what takes the place of names that scvi-tools has or had, by argument or by place and name
_REPLACED = {
    "use_gpu": "choose the device with train(accelerator=...)",
    "use_cuda": "choose the device with train(accelerator=...)",
    "accelerator": "move the model with model.to_device('cpu')",
    "device": "move the model with model.to_device('cpu')",
    "devices": "choose one device with train(accelerator=...)",
    "dataloader": "pass the cells as adata=",
    "datamodule": "pass the cells as adata=",
    "registry": "pass the data as adata=",
    "prefix": "make it a part of dir_path",
    "copy": "copy the data with adata = adata.copy()",
    "unlabeled_category": "leave it out, because only scvi-tools' SCANVI reads it",
    "X_layers_key": "name the layer as layer=",
    "n_epochs": "pass max_epochs=",
    "epochs": "pass max_epochs=",
    "use_early_stopping": "pass early_stopping=",
    "enable_progress_bar": "pass progress=",
    "progress_bar_refresh_rate": "pass progress=",
    "plan_config": "pass plan_kwargs=",
    "lr": "pass plan_kwargs={'lr': 1e-3}",
    "weight_decay": "pass plan_kwargs={'weight_decay': 1e-6}",
    "n_epochs_kl_warmup": "pass plan_kwargs={'n_epochs_kl_warmup': 400}",
    "n_steps_kl_warmup": "pass plan_kwargs={'n_steps_kl_warmup': 400}",
    "check_val_every_n_epoch": "leave it out, because every epoch is validated",
    "frequency": "leave it out, because every epoch is validated",
    "vivace.data.setup_anndata": "use SCVI.setup_anndata(adata, ...)",
    "vivace.data.transfer_anndata_setup": "pass the data to the model's methods as adata=",
    "vivace.data.view_anndata_setup": "use model.view_anndata_setup()",
    "vivace.data.read_h5ad": "use anndata.read_h5ad",
    "vivace.data.synthetic_iid": "use vivace.datasets.pbmc3k()",
    "vivace.settings.verbosity": "leave it out, and pass progress=False to train for silence",
    "vivace.settings.dl_num_workers": "leave it out, because no worker processes are used",
    "model.history_": "use model.history",
    "model.is_trained_": "use model.is_trained",
    "model.adata_manager": "use model.view_anndata_setup()",
    "model.registry": "use model.view_anndata_setup()",
    "model.posterior": "use model.get_latent_representation()",
}


def instead(name: str, known: Iterable[str], place: str = "") -> str:
    """A clause that says what takes the place of a name of scvi-tools, or else as :func:`near`.

    Examples
    --------
    >>> instead("use_gpu", ["adata"])
    'choose the device with train(accelerator=...).'
    >>> instead("adatas", ["adata"])
    "did you mean 'adata'?"
    """
    found = _REPLACED.get(f"{place}.{name}" if place else name)
    return near(name, known) if found is None else f"{found}."


def near(name: object, known: Iterable[object]) -> str:
    """A clause that suggests names similar to ``name``, or lists the known ones.

    Examples
    --------
    >>> near("donnor", ["donor", "cell_type"])
    "did you mean 'donor'?"
    >>> near("x", ["donor", "cell_type"])
    "available: 'cell_type', 'donor'."
    >>> near("x", [])
    'there are none.'
    """
    names = sorted({str(k) for k in known})
    wanted = str(name)
    # a name of another length is not similar, and comparing long ones takes long
    similar = [k for k in names if len(k) <= 3 * len(wanted) and len(wanted) <= 3 * len(k)]
    short = [k for k in similar if len(k) <= _LONG_NAME and k != wanted]
    close = difflib.get_close_matches(wanted, short, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(map(brief, close))}?"
    if not names:
        return "there are none."
    return f"available: {list_names(names, most=10)}."
