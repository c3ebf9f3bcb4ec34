"""Commands from functions: options that are parameters of the Python API are read from its source."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any

import typer

from vivace.cli.interrupts import ending_on_signals

_PACKAGE = Path(__file__).parents[1]

app = typer.Typer(
    help="Probabilistic analysis of single-cell RNA-seq counts (scVI).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# ---- options that are parameters of the Python API --------------------------------------

Options = dict[str, inspect.Parameter]


def forward(source: str, names: str, **texts: str) -> Options:
    """Options that are parameters of a Python function: name, type, default and help are its own.

    Parameters
    ----------
    source
        Where the function is written, as "file:name"; a class stands for its ``__init__``. It is
        parsed and not imported, because importing it imports torch.
    names
        The parameters, separated by spaces; "gene_list=gene" calls the option --gene.
    **texts
        Help for parameters whose docstring does not suit the command line.

    Returns
    -------
    The options by parameter name, each as a parameter that Typer understands.
    """
    known, described = _read_function(source)
    options = {}
    for name, _, option in (pair.partition("=") for pair in names.split()):
        annotation, default = known[name]
        text = texts.get(name) or described[name]
        # A Literal is read as text; the API refuses invalid words.
        kind: Any = {"int": int, "float": float}.get(annotation.removesuffix(" | None"), str)
        if annotation.startswith("bool"):
            kind = bool
        elif "Sequence[str]" in annotation:
            kind, text = list[str], f"{text} May be repeated."
        elif kind is str and default is not None:
            default = str(default)
        option = option or name
        # Spell out the name; otherwise Typer adds a --no-... variant to a flag.
        declared = typer.Option("--" + option.replace("_", "-"), help=text)
        options[name] = inspect.Parameter(
            option,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=default,
            annotation=Annotated[kind | None, declared],
        )
    return options


def command(name: str | None = None, **groups: Options) -> Callable[[Any], Any]:
    """Register a function as a command that has the forwarded options too.

    The function receives each group as one dictionary of keyword arguments. A signal that asks the
    process to end is answered in one line.
    """

    def register(function: Any) -> Any:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name not in groups]

        @wraps(function)
        def run(**values: Any) -> None:
            for group, options in groups.items():
                values[group] = {key: values[p.name] for key, p in options.items()}
            with ending_on_signals():
                function(**{key: values[key] for key in signature.parameters})

        forwarded = {p.name: p for options in groups.values() for p in options.values()}
        required = [p for p in own if p.default is p.empty]
        optional = [p for p in own if p.default is not p.empty]
        run.__signature__ = inspect.Signature([*required, *forwarded.values(), *optional])  # type: ignore[attr-defined]
        return app.command(name)(run)

    return register


def given_options(options: Options, values: Mapping[str, Any]) -> list[str]:
    """The values that are not the defaults, as they are typed on the command line.

    Examples
    --------
    >>> given_options(forward("train/run.py:train", "batch_size seed"), {"batch_size": 64, "seed": None})
    ['--batch-size', '64']
    """
    words = []
    for key, option in options.items():
        value, flag = values[key], "--" + option.name.replace("_", "-")
        if value is None or value == option.default:
            continue
        if value is True:
            words.append(flag)
        else:
            for one in value if isinstance(value, list) else [value]:
                words += [flag, str(one)]
    return words


def _read_function(source: str) -> tuple[dict[str, tuple[str, Any]], dict[str, str]]:
    """Annotation and default of the optional parameters of a function, and their descriptions."""
    file, _, name = source.partition(":")
    text = (_PACKAGE / file).read_text(encoding="utf-8")
    # To be fast, parse only the definition: up to the next line that is not indented further.
    lines = re.search(rf"^( *)(def|class) {name}\b(.*\n(?!\1?[^\s)]))*.*", text, re.MULTILINE)
    node: Any = ast.parse(dedent(lines[0])).body[0]  # type: ignore[index]
    described = _describe(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        node = next(n for n in node.body if getattr(n, "name", "") == "__init__")
    optional = node.args.args[len(node.args.args) - len(node.args.defaults) :]
    pairs = [
        *zip(optional, node.args.defaults, strict=True),
        *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
    ]
    known = {
        argument.arg: (ast.unparse(argument.annotation), ast.literal_eval(default))
        for argument, default in pairs
        if default is not None
    }
    return known, described


def _describe(docstring: str) -> dict[str, str]:
    r"""The description of each parameter in the "Parameters" section of a numpydoc docstring.

    Examples
    --------
    >>> _describe("Fit.\n\nParameters\n----------\nlayer, key\n    Name of ``x``;\n    None for X.")
    {'layer': 'Name of x; by default X.', 'key': 'Name of x; by default X.'}
    """
    section = re.split(r"\n\n\w.*\n---", docstring.partition("Parameters\n----------\n")[2])[0]
    section = re.sub(r"(:\w+:)?`+[~.]*([^`]+)`+", r"\2", section)  # ``code`` and :meth:`links`
    # An option that is left out becomes None.
    section = section.replace("None for", "by default").replace(". None", ". The default")
    section = section.replace("None", "the default")
    return {
        name: " ".join(text.split())
        for names, text in re.findall(r"^(\w.*)\n((?: .*\n|\n)+)", section + "\n", re.MULTILINE)
        for name in names.split(", ")
    }
