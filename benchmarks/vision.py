"""Whether torchvision's networks for classification are taken, and how long it takes to read and to certify them.

    python benchmarks/vision.py [--networks resnet18 ...] [--limit 20] [--threads 1] [--out FOLDER]

Needs torchvision of the same build as torch. Five classes, images of 64 x 64 (75 x 75 for inception_v3), random weights. CPU
seconds of one run for `Topology.of`, and for `certify` of the network without masks, which may take --limit seconds. The
last column: how far outputs of the function that was read are from the network's own, relative to the largest. "Or more":
where units were told apart for want of a rule (`Topology.unfollowed`).
"""

import time
import warnings

from common import arguments, report

NETWORKS = [
    *("squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0"),
    *("regnet_y_400mf", "googlenet", "densenet121", "resnet18", "inception_v3", "swin_t", "convnext_tiny", "alexnet"),
    "vit_b_16",
]


def order(found, limit):
    """log10 of how many symmetries there are, in words; nothing without any."""
    if found is None:
        return ""
    return f"not in {limit:g} s" if found.log10_before is None else f"{found.log10_before:,.0f}"


def build(name):
    """A network with random weights, and images."""
    import torch
    from torchvision import models

    plain = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    size = {"image_size": 64} if name.startswith("vit") else {}
    net = getattr(models, name)(num_classes=5, **plain, **size)
    return net, torch.randn(2, 3, *[75 if name == "inception_v3" else 64] * 2)


def measure(name, build, limit):
    """What a network is like, or why it is not taken."""
    import torch

    import pyro_sps as sps
    from pyro_sps.network.trace import trace

    torch.manual_seed(0)
    net, x = build(name)
    net.eval()
    with torch.no_grad():
        for parameter in net.parameters():  # some begin at zero, and so would all outputs be
            parameter.add_(0.01 * torch.randn_like(parameter))
    millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    begun = time.process_time()
    try:
        topology, function = trace(net, x)
    except sps.UnsupportedLayerError as error:
        return {"network": name, "millions": millions, "why": str(error)[:150]}
    read = time.process_time()
    found = sps.certify(topology, {}, time_limit=limit)
    certified = time.process_time()
    weights = {own: value.detach() for own, value in net.named_parameters() if own in topology}
    with torch.no_grad():
        outputs = net(x)
        off = ((function(weights, x) - outputs).abs().max() / outputs.abs().max()).item()
    return {
        "network": name,
        "millions": millions,
        "read": read - begun,
        "certify": certified - read,
        "permutations": order(found.permutations, limit) + (" or more" if topology.unfollowed else ""),
        "signed": order(found.signed_permutations, limit),
        "scalings": None if found.scalings is None else found.scalings.before,
        "off": off,
    }


def run(doc, name, networks, build):
    """Measure all and write the table."""
    options = arguments(doc, {"--networks": networks, "--limit": 20.0})
    warnings.simplefilter("ignore")
    lines = [
        "| network | million weights | s to read | to certify | permutations, log10 | with signs | scalings | off by |",
        "| --- |" + " ---: |" * 7,
    ]
    results = []
    for network in options.networks:
        row = measure(network, build, options.limit)
        results.append(row)
        if "why" in row:
            lines.append(f"| {network} | {row['millions']:.1f} | *not taken*: {row['why']} |" + " |" * 5)
            continue
        scalings = "" if row["scalings"] is None else f"{row['scalings']:,}"
        cells = [f"{row['read']:.0f}", f"{row['certify']:.0f}", row["permutations"], row["signed"], scalings]
        lines.append(f"| {network} | {row['millions']:.1f} | {' | '.join(cells)} | {row['off']:.0e} |")
        print(lines[-1], flush=True)
    report(name, options, results, lines)


if __name__ == "__main__":
    run(__doc__, "vision", NETWORKS, build)
