"""What the commands share: how they read options, how they fail, and the options that several of them have."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

SCHEMES = ("none", "light", "heavy", "random", "rigid", "rigid-signs")
VALUES = ("zero", "constant", "learned-constant", "normal", "learned-normal", "ladder", "learned-ladder", "map")

#: What the values of an option with several of them look like: numbers, or any text that is no option.
NUMBERS = r"\d+(,\d+)*,?"
NAMES = r"(?!-).*"

seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all randomness."
)
device_option = click.option("--device", help="Where it is computed: cpu, cuda, cuda:1, ...  [default: cpu]")
quiet_option = click.option("--quiet", is_flag=True, help="Print errors only.")
force_option = click.option("--force", is_flag=True, help="Overwrite what is there.")
plot_option = click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the masks to this file."
)
activation_option = click.option("--activation", default="tanh", show_default=True, help="tanh, relu, gelu, silu, ...")


def _choices(default: str, names: Sequence[str]) -> tuple[str, ...]:
    """Names that may be chosen, of which `auto` is one only where it is the default."""
    return (default, *names) if default == "auto" else tuple(names)


def scheme_options(default: str) -> Callable[[Any], Any]:
    """The options `--scheme` and `--fraction`."""

    def decorate(function: Any) -> Any:
        function = click.option(
            "--fraction",
            type=click.FloatRange(0, 1),
            help="Share of each weight matrix that --scheme random fixes.  [default: 0.85]",
        )(function)
        return click.option(
            "--scheme",
            type=click.Choice(_choices(default, SCHEMES)),
            default=default,
            show_default=True,
            help="What picks the masks.",
        )(function)

    return decorate


#: Options of `pyro_sps.data.mixed.read_mixed`, with their defaults.
_READING = {"header": True, "decimal": ".", "thousands": None, "encoding": None, "missing": ()}


def reading_options(function: Any) -> Any:
    """Options of how a file is read."""
    for option in (
        click.option("--missing", multiple=True, help="What stands for a gap, beside nothing, ?, -, NA, null, ..."),
        click.option("--encoding", help="Of a text file.  [default: UTF-8, or UTF-16 where it says so]"),
        click.option("--thousands", help="What separates groups of three digits.  [default: nothing]"),
        click.option(
            "--decimal", type=click.Choice([".", ","]), default=".", show_default=True, help="The decimal sign."
        ),
        click.option("--no-header", "header", flag_value=False, default=True, help="Columns are named x1, x2, ..."),
    ):
        function = option(function)
    return function


def reading_of(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `reading_options` that differ from their defaults, taken out of all options."""
    found = {name: options.pop(name) for name in _READING}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in found.items()
        if value != _READING[name]
    }


class Command(click.Command):
    """A command whose options are in groups, where `several` take any number of values, and whose errors are one line.

    `--hidden 50 50`, `--hidden 50,50` and `--hidden 50 --hidden 50` mean the same. Click knows the last form only,
    so the others are turned into it.
    """

    def __init__(
        self,
        *args: Any,
        several: Mapping[str, str] | None = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.several, self.groups = several or {}, groups or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options in the groups that they belong to, those of no group last."""
        group_of = {option: group for group, options in self.groups.items() for option in options}
        sections: dict[str, list[tuple[str, str]]] = {group: [] for group in (*self.groups, "Options")}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                found = [group_of[option] for option in parameter.opts if option in group_of]
                sections[found[0] if found else "Options"].append(record)
        for group, records in sections.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its values."""
        return super().parse_args(ctx, list(self._repeat(args)))

    def _repeat(self, args: Sequence[str]) -> Iterator[str]:
        option: str | None = None
        for index, arg in enumerate(args):
            if arg == "--":
                yield from args[index:]
                return
            if option and re.fullmatch(self.several[option], arg):
                yield from (option, arg)
                continue
            option = arg if arg in self.several else None
            if option is None:
                yield arg
            elif index + 1 == len(args) or not re.fullmatch(self.several[option], args[index + 1]):
                yield arg  # click says what is missing or wrong

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors that name what was wrong become one line without a traceback."""
        try:
            with _warnings_as_lines(quiet=bool(ctx.params.get("quiet"))):
                return super().invoke(ctx)
        except click.exceptions.Exit:
            raise
        except ValueError as error:
            raise _WrongInput(error) from error
        except (OSError, ArithmeticError, MemoryError) as error:
            raise _Failure(error) from error


class _Failure(click.ClickException):
    """The work failed: exit code 1."""

    def __init__(self, error: Exception) -> None:
        super().__init__(" ".join(str(error).split()) or type(error).__name__)


class _WrongInput(_Failure):
    """What was asked for, or the data, is wrong: exit code 2, as for wrong options."""

    exit_code = 2


@contextlib.contextmanager
def _warnings_as_lines(quiet: bool) -> Iterator[None]:
    from ..base.terminal import emit

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning | RuntimeWarning) and not quiet:
            emit(f"warning: {' '.join(str(message).split())}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show
        yield


def values_options(default: str) -> Callable[[Any], Any]:
    """The options `--values` and `--c`."""

    def decorate(function: Any) -> Any:
        function = click.option(
            "--c", "scale", type=float, help="Size of the fixed values, where they have one.  [default: 1.0]"
        )(function)
        return click.option(
            "--values",
            type=click.Choice(_choices(default, VALUES)),
            default=default,
            show_default=True,
            help="What the fixed weights are set to.",
        )(function)

    return decorate


def integers(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> list[int]:
    """Integers of `50 50` or `50,50`."""
    parts = [part for text in texts for part in text.split(",") if part]
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers):
        raise click.BadParameter(f"these must be positive integers: {' '.join(texts)}")
    return numbers


def given_of(context: click.Context, names: Collection[str]) -> list[str]:
    """Options, as they are written, of those names that were given on the command line."""
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]


def refuse(context: click.Context, names: Collection[str], why: str) -> None:
    """Raise `UsageError` if one of some options was given, which has no effect."""
    if given := given_of(context, names):
        raise click.UsageError(f"{' and '.join(given)} {'have' if len(given) > 1 else 'has'} no effect {why}")


def printer(quiet: bool, err: bool = False) -> Callable[[str], None]:
    """What prints a line, or nothing."""
    from ..base.terminal import emit

    def say(text: str) -> None:
        if not quiet:
            emit(text, err)

    return say


def make_scheme(name: str, fraction: float | None = None) -> Any:
    """The scheme of that name.

    Raises:
        UsageError: If a fraction is given and the scheme has none.
    """
    import pyro_sps as sps

    if fraction is not None and name not in ("random", "auto"):
        raise click.UsageError(f"--fraction is for --scheme random, not {name}")

    rules: dict[str, Callable[[], Any]] = {
        "none": sps.Unmasked,
        "light": sps.Light,
        "heavy": sps.Heavy,
        "random": lambda: sps.Random(like=0.85 if fraction is None else fraction),
        "rigid": sps.Rigid,
        "rigid-signs": lambda: sps.Rigid(signs=True),
    }
    return rules[name.replace("auto", "none" if fraction is None else "random")]()


def make_values_rule(name: str, scale: float | None) -> Any:
    """What sets the constants, by name.

    Raises:
        UsageError: If the scale is no positive finite number, or the values have none.
    """
    import pyro_sps as sps

    if name in ("zero", "map", "auto"):
        if scale is not None:
            raise click.UsageError(f"--c has no meaning with --values {name}")
        return sps.MAP() if name == "map" else sps.Zero()
    if scale is not None and not 0 < scale < float("inf"):
        raise click.UsageError(f"--c must be a positive finite number, got {scale}")
    rules = {"constant": sps.Constant, "normal": sps.RandomConstant, "ladder": sps.Ladder}
    return rules[name.removeprefix("learned-")](1.0 if scale is None else scale, learn=name.startswith("learned"))
