"""What a query's network inherits from its reference, and which parts are frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from typing import Any, Protocol, Self, runtime_checkable


class Role(Enum):
    """The role of a layer in the network, which determines the flag that freezes it."""

    ENCODER_INPUT = "first layer of an encoder"
    ENCODER_NORM = "batch norm of an encoder"
    DECODER_INPUT = "first layer of the decoder"
    DECODER_NORM = "batch norm of the decoder"


@dataclass(frozen=True)
class Surgery:
    """The categories that a query's network inherits, and the flags that freeze parts of it.

    Parameters
    ----------
    n_batches, n_categories, n_labels
        Numbers of categories of the reference.
    unfrozen
        Train everything, whatever the other flags say.
    freeze_dropout
        Train without dropout.
    freeze_expression
        Freeze the first layer of the encoders, except for new categories.
    freeze_decoder_first_layer
        Freeze the first layer of the decoder, except for new categories.
    freeze_batchnorm_encoder, freeze_batchnorm_decoder
        Freeze batch norm, which then uses its running statistics.

    Examples
    --------
    >>> surgery = Surgery(n_batches=2, n_categories=(3,), n_labels=1)
    >>> surgery.trains(Role.DECODER_NORM), surgery.trains(Role.ENCODER_INPUT)
    (True, False)
    """

    n_batches: int
    n_categories: tuple[int, ...]
    n_labels: int
    unfrozen: bool = False
    freeze_dropout: bool = False
    freeze_expression: bool = True
    freeze_decoder_first_layer: bool = True
    freeze_batchnorm_encoder: bool = True
    freeze_batchnorm_decoder: bool = False

    def __post_init__(self) -> None:
        numbers = (self.n_batches, self.n_labels, *self.n_categories)
        if any(type(n) is not int or n < 1 for n in numbers):
            raise ValueError(f"the numbers of categories {numbers} are not all positive integers")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool) and not isinstance(value, bool):
                raise ValueError(f"{field.name} is {value!r}, not true or false")

    @property
    def n_known(self) -> tuple[int, ...]:
        """Categories of the reference per covariate that may be one-hot, the batch first."""
        return (self.n_batches, *self.n_categories)

    @property
    def keeps_encoder(self) -> bool:
        """Whether the latent representation of cells of the reference stays the same."""
        return not self.unfrozen and self.freeze_expression and self.freeze_batchnorm_encoder

    def trains(self, role: Role | None) -> bool:
        """Whether all parameters of a layer with this role are trained."""
        if self.unfrozen:
            return True
        frozen = {
            Role.ENCODER_INPUT: self.freeze_expression,
            Role.ENCODER_NORM: self.freeze_batchnorm_encoder,
            Role.DECODER_INPUT: self.freeze_decoder_first_layer,
            Role.DECODER_NORM: self.freeze_batchnorm_decoder,
        }
        return role is not None and not frozen[role]

    def as_dict(self) -> dict[str, Any]:
        """The fields as types that JSON can hold."""
        return asdict(self) | {"n_categories": list(self.n_categories)}

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Self:
        """Create from the result of :meth:`as_dict`."""
        return cls(**{**parts, "n_categories": tuple(parts["n_categories"])})


@runtime_checkable
class HasRole(Protocol):
    """A layer whose own parameters are frozen or trained together."""

    role: Role | None


@runtime_checkable
class Freezable(Protocol):
    """A layer whose computation changes when something is frozen."""

    def freeze(self, surgery: Surgery) -> None:
        """Apply the flags."""
        ...
