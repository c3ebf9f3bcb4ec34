"""The command line: each command is an ordinary function, and its docstring is its help.

``training.py`` (demo, train), ``mapping.py`` (map), ``questions.py`` (embed, express, sample, de),
``models.py`` (info, convert); ``common.py`` has what they share.  What is slow to import, they
import when called, so that help is quick.
"""

from __future__ import annotations

import sys

import typer

from vivace.cli.common import bound_waiting
from vivace.cli.mapping import map_query
from vivace.cli.models import convert, info
from vivace.cli.questions import de, embed, express, sample
from vivace.cli.training import demo, train
from vivace.errors import VivaceError

app = typer.Typer(
    help="Probabilistic analysis of single-cell RNA-seq counts (scVI).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# In the order in which ``vivace --help`` lists them.
app.command()(demo)
app.command()(train)
app.command()(embed)
app.command(name="map")(map_query)
app.command()(express)
app.command()(sample)
app.command()(de)
app.command()(info)
app.command()(convert)


def main() -> None:
    """Run the command line; what vivace refuses becomes one sentence and exit code 2."""
    bound_waiting()
    try:
        app(prog_name="vivace")  # however Python was started
    except (VivaceError, OSError) as error:  # OSError: a full disk, a folder without permission
        print(f"vivace: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
