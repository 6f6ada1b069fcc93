"""`pyro-sps masks` and `pyro-sps symmetry`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..base.text import columns_of
from .options import (
    Command,
    activation_option,
    integers,
    make_scheme,
    make_values_rule,
    plot_option,
    printer,
    quiet_option,
    refuse,
    scheme_options,
    seed_option,
    values_options,
)

#: Those of `pyro_sps.network.architectures`, which needs torch.
NETWORKS = ("resnet20", "lenet5", "vgg11", "mobilenet", "unet", "lstm", "gru", "vit-tiny", "nanogpt")

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@click.command(cls=Command, epilog="\b\nExample:\n  pyro-sps masks 8 50 50 2 --scheme heavy --plot masks.png")
@click.argument("widths", nargs=-1, required=True, callback=integers)
@scheme_options("heavy")
@plot_option
@seed_option
@quiet_option
def masks(widths: list[int], scheme: str, fraction: float | None, plot: Path | None, seed: int, quiet: bool) -> None:
    """Show which weights a scheme fixes in a network of these WIDTHS, inputs first."""
    import torch

    from ..masks.schemes import fixed_count, make_masks
    from ..network.build import mlp
    from ..network.topology import Topology

    topology = Topology.of(mlp(widths, device="meta"))
    chosen = make_masks(make_scheme(scheme, fraction), topology, generator=torch.Generator().manual_seed(seed))
    say = printer(quiet)
    name = "-".join(map(str, widths))
    say(f"{name} network, {scheme}: {fixed_count(chosen):,} of {topology.num_weights:,} weights fixed")
    rows = [("tensor", "shape", "fixed", "of")]
    for tensor in topology.tensors:
        fixed = int((~chosen[tensor.name]).sum())
        rows.append((tensor.name, " x ".join(map(str, tensor.shape)), f"{fixed:,}", f"{tensor.numel:,}"))
    say(columns_of(rows))
    counts = topology.fully_connected(chosen)
    sizes = {group.name: group.size for group in topology.groups}
    if counts:
        say("")
        say(
            columns_of(
                [("layer", "units", "fully connected"), *((n, str(sizes[n]), str(c)) for n, c in counts.items())]
            )
        )
    if plot is not None:
        from ..plots import plot_masks

        _save_figure(plot, plot_masks(topology, chosen), say)


def _networks(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> list[list[int]]:
    """Widths of networks, none if there are none: of one as `8 50 50 2`, of several as `8-50-50-2 1-50-50-1`."""
    if any("-" in text.lstrip("-") for text in texts):
        return [integers(context, parameter, text.split("-")) for text in texts]
    return [integers(context, parameter, texts)] if texts else []


@click.command(
    cls=Command,
    epilog="\b\n"
    "Examples:\n"
    "  pyro-sps symmetry 8 50 50 2 --activation tanh --scheme light --values zero\n"
    "  pyro-sps symmetry 8-50-50-2 1-50-50-1 8-50-2 --table\n"
    "  pyro-sps symmetry --network lenet5 --scheme heavy\n"
    "  pyro-sps symmetry --network all --table",
)
@click.argument("widths", nargs=-1, callback=_networks)
@click.option(
    "--network",
    type=click.Choice([*NETWORKS, "all"]),
    help="A well-known network in place of WIDTHS; with --table also all of them, which takes minutes.",
)
@activation_option
@scheme_options("heavy")
@values_options("zero")
@click.option("--table", is_flag=True, help="Print what every scheme leaves, as a Markdown table.")
@click.option("--time-limit", type=click.FloatRange(0, min_open=True), help="Seconds after which to give up.")
@plot_option
@seed_option
@quiet_option
@click.pass_context
def symmetry(
    context: click.Context,
    widths: list[list[int]],
    network: str | None,
    activation: str,
    scheme: str,
    fraction: float | None,
    values: str,
    scale: float | None,
    table: bool,
    time_limit: float | None,
    plot: Path | None,
    seed: int,
    quiet: bool,
) -> None:
    """Count exactly which symmetries masks leave in a network of these WIDTHS, inputs first, or in a well-known one."""
    say = printer(quiet)
    if (network is None) == (not any(widths)):
        raise click.UsageError("give either the WIDTHS of a fully connected network or --network")
    if network is not None and plot is not None:
        raise click.UsageError("--plot is for fully connected networks, given by their WIDTHS")
    if network == "all" and not table:
        raise click.UsageError("--network all needs --table")
    if network is not None:
        refuse(context, {"activation"}, "with --network, which has its own")
    if table:
        refuse(context, {"scheme", "fraction", "values", "scale", "plot"}, "with --table")
    if table and network is not None:
        from ..symmetry.table import atlas

        for line in atlas(NETWORKS if network == "all" else (network,), seed, time_limit or 60.0):
            say(line)
        return
    if table:
        refuse(context, {"time_limit"}, "with --table, where it is not for --network")
        from ..symmetry.table import scheme_table

        say(scheme_table(widths, activation=activation, seed=seed))
        return
    if len(widths) > 1:
        raise click.UsageError("several networks need --table")
    if values == "map":
        raise click.UsageError("--values map needs data; use bnn.symmetry() in Python")

    import torch

    from ..base.process import silenced
    from ..masks.schemes import make_masks
    from ..masks.values import make_values
    from ..network import architectures
    from ..network.build import mlp
    from ..network.topology import Topology
    from ..symmetry.certificate import certify

    if network is None:
        topology = Topology.of(mlp(widths[0], activation, device="meta"))
    else:
        topology = Topology.of(architectures.NETWORKS[network](), architectures.example_of(network))
    generator = torch.Generator().manual_seed(seed)
    rule = make_values_rule(values, scale)
    with silenced():  # what the masks leave is what the report says
        chosen = make_masks(make_scheme(scheme, fraction), topology, rule, generator)
    fixed = make_values(rule, topology, chosen, generator)
    report = certify(topology, chosen, fixed, time_limit)
    say(str(report))
    if plot is not None:
        from ..plots import plot_symmetry

        _save_figure(plot, plot_symmetry(report, chosen, fixed), say)


def _save_figure(path: Path, axes: Sequence[Axes], say: Callable[[str], None]) -> None:
    figure = axes[0].get_figure(root=True)
    if figure is not None:
        figure.savefig(path, dpi=150)
        say(f"wrote {path}")
