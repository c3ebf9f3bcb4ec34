"""Loss and gradients of a minibatch by kernels alone; README.md says why and how."""

from vivace.nn.by_hand.step import HandStep, supports

__all__ = ["HandStep", "supports"]
