"""Arguments of distributions, checked and broadcast to tensors of one shape."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor
from torch.distributions import Distribution

from vivace.errors import ArgumentTypeError, DataError, OptionError, ShapeError


def broadcast_parameters(owner: str, **parameters: Tensor | float) -> list[Tensor]:
    """The parameters as float tensors of one type, shape and device.

    Raises
    ------
    ArgumentTypeError
        If one is neither a tensor nor a number.
    ShapeError
        If their shapes do not broadcast; the message names all of them.
    """
    for name, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, Tensor | int | float):
            raise ArgumentTypeError(
                f"{name} of {owner} must be a tensor or a number, not {type(value).__name__}; "
                "torch.as_tensor makes one."
            )
    given = [v for v in parameters.values() if isinstance(v, Tensor)]
    dtype = reduce(torch.promote_types, (v.dtype for v in given), torch.bool)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    device = given[0].device if given else None
    tensors = [
        v.to(dtype) if isinstance(v, Tensor) else torch.tensor(v, dtype=dtype, device=device)
        for v in parameters.values()
    ]
    try:
        return list(torch.broadcast_tensors(*tensors))  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        shapes = ", ".join(
            f"{name} {tuple(t.shape)}" for name, t in zip(parameters, tensors, strict=True)
        )
        raise ShapeError(
            f"The shapes of {owner}'s parameters do not broadcast: {shapes}; "
            "give each the shape of the counts, or 1 where it repeats."
        ) from error


def expand_expression(
    owner: str, name: str, value: Tensor | None, shape: torch.Size
) -> Tensor | None:
    """The normalised expression that a distribution stores, in its shape; None stays None.

    Raises
    ------
    ShapeError
        If it cannot be expanded to ``shape``.
    """
    if value is None:
        return None
    try:
        return value.expand(shape)
    except RuntimeError as error:
        raise ShapeError(
            f"{name} {tuple(value.shape)} of {owner} does not fit the parameters, "
            f"which have shape {tuple(shape)}; give it that shape."
        ) from error


def check_parameter(owner: str, name: str, value: Tensor, good: Tensor, must: str) -> None:
    """Raise :class:`OptionError` unless ``good`` is True everywhere."""
    if not good.all():
        raise OptionError(
            f"{name} of {owner} must be {must}, but {_describe_first_bad(value, good)}."
        )


def check_shape(owner: Distribution, value: object) -> Tensor:
    """Return ``value``, a tensor whose shape broadcasts with that of ``owner``.

    Raises
    ------
    ArgumentTypeError
        If it is not a tensor.
    ShapeError
        If its shape does not broadcast with that of the distribution.
    """
    name = type(owner).__name__
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(
            f"The value given to {name} must be a tensor, not {type(value).__name__}; "
            "torch.as_tensor makes one."
        )
    try:
        torch.broadcast_shapes(value.shape, owner.batch_shape)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ShapeError(
            f"The value {tuple(value.shape)} does not broadcast with {name} "
            f"{tuple(owner.batch_shape)}; give it that shape, after any sample dimensions."
        ) from error
    return value


def check_value(owner: Distribution, value: object) -> Tensor:
    """Return ``value``, a tensor that broadcasts with ``owner`` and is in its support.

    Raises
    ------
    ArgumentTypeError, ShapeError
        As in :func:`check_shape`.
    DataError
        If an entry is outside the support, and ``validate_args`` is on.
    """
    value = check_shape(owner, value)
    support = owner.support
    if owner._validate_args and support is not None:
        good: Tensor = support.check(value)  # type: ignore[no-untyped-call]
        if not good.all():
            kind = "counts (non-negative integers)" if support.is_discrete else "numbers"
            raise DataError(
                f"{type(owner).__name__} has a density for {kind}, but "
                f"{_describe_first_bad(value, good)}; give such values, or pass validate_args=False "
                "to skip this check."
            )
    return value


def _describe_first_bad(value: Tensor, good: Tensor) -> str:
    if value.dim() == 0:
        return f"it is {value.item():g}"
    position = tuple((~good).nonzero()[0].tolist())
    return f"entry {position if len(position) > 1 else position[0]} is {value[position].item():g}"
