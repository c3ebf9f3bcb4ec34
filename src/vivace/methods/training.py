"""How a model is trained."""

from __future__ import annotations

from typing import Any, cast

from vivace.methods.base import Base
from vivace.train import run


class Trainable(Base):
    """A model that learns from its data."""

    train = cast("Any", run.train)  # whose self is a Core
