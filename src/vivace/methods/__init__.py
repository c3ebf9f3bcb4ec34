"""The methods of the model classes, each a few lines that call the rooms below.

One class in six files, read in this order: ``base.py`` (set up, save, load),
``training.py`` (train), ``latent.py`` (where cells are, and how likely), ``expression.py``
(what is expressed), ``differential.py`` (what differs), ``transfer.py`` (queries mapped onto a
reference), whose :class:`Model` the final classes complete.
"""

from vivace.methods.base import ARGUMENTS, embedding_dim
from vivace.methods.transfer import Model

__all__ = ["ARGUMENTS", "Model", "embedding_dim"]
