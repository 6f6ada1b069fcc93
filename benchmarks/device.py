"""Everything that needs an accelerator, in one go of at most eight minutes: tests, steps, memory, a few epochs.

    python benchmarks/device.py [--device cuda] [--seconds 2] [--epochs 10] [--out benchmarks]

Needs torch, this package with what it requires (pyro-ppl, safetensors, tqdm, numpy), and for the tests pytest. A part that
cannot be run says so and does not stop the rest. Writes results-gpu.json and RESULTS-gpu.md to the folder.

- The tests marked `gpu`.
- Milliseconds a step of step.py's networks: hand-written torch, and ours recorded and compiled, on the device and on its CPU.
- ResNet-20 (128 images) with one and four particles against deterministic training, in float32 and bfloat16.
- Ten chains of the sampler on energy's network. Peak memory of a fit of a 4096 x 4096 layer.
- Epochs of ResNet-20 on CIFAR-10 (`PYRO_SPS_DATA`'s images) with one particle, if the data is there.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

from common import arguments

BEGUN, LIMIT = time.monotonic(), 480.0


def settled(device):
    """Wait until the device has done all."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def milliseconds(block, device, seconds, repeats=5):
    """Median over blocks of so many seconds in all."""
    block(3)
    settled(device)
    begun = time.perf_counter()
    block(3)
    settled(device)
    steps = max(1, int(seconds / repeats * 3 / (time.perf_counter() - begun)))
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        block(steps)
        settled(device)
        found.append((time.perf_counter() - begun) / steps * 1e3)
    return statistics.median(found)


def tests(device, seconds):
    """The tests that need it."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_device.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    return {"tests": done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]}


def steps(device, seconds):
    """The step table."""
    import step

    found = {}
    for name, job in step.JOBS.items():
        for place in dict.fromkeys((device, "cpu")):
            own = {**job, "device": place}
            found[f"{name}, hand-written, {place}"] = milliseconds(step.hand_written(own), place, seconds)
            for label, compile in (("recorded", False), ("compiled", True)):
                found[f"{name}, pyro_sps {label}, {place}"] = milliseconds(step.ours(own, compile), place, seconds)
    return found


def resnet(device, seconds):
    """ResNet-20 against deterministic training."""
    import resnet as networks
    import torch

    import pyro_sps as sps

    options, found = SimpleNamespace(rows=128, width=16, device=device), {}
    base = networks.deterministic(options)
    found["ResNet-20, deterministic"] = milliseconds(base, device, seconds)
    if device == "cuda":

        def mixed(count):
            with torch.autocast("cuda", torch.bfloat16):
                base(count)

        found["ResNet-20, deterministic, bfloat16"] = milliseconds(mixed, device, seconds)
    for particles in (1, 4):
        for precision in (None, "bf16-mixed") if device == "cuda" else (None,):
            block, mode = networks.ours(options, sps.Unmasked(), particles, device == "cuda", precision)
            label = f"ResNet-20, {particles} particles, {precision or 'float32'} ({mode})"
            found[label] = milliseconds(block, device, seconds)
    return found


def chains(device, seconds):
    """Ten chains as one program."""
    import step

    import pyro_sps as sps

    job = {**step.JOBS["energy"], "device": device}
    begun, count = time.perf_counter(), 100
    sps.sample(step.network(job), *step.data(job), chains=10, num_samples=count, starts="prior", progress=False)
    settled(device)
    return {f"ten chains, {count} draws each, s": time.perf_counter() - begun}


def memory(device, seconds):
    """Peak memory of a large layer."""
    import torch

    import pyro_sps as sps

    if device != "cuda":
        raise RuntimeError("only of an accelerator")
    torch.cuda.reset_peak_memory_stats()
    bnn = sps.BNN(sps.mlp([4096, 4096, 1], device=device), sps.Unmasked(), sps.Zero())
    x = torch.randn(64, 4096)
    sps.fit(bnn, x, x[:, :1], num_steps=3, num_particles=1, progress=False, compile=False)
    return {"peak memory of a 4096 x 4096 layer, GB": torch.cuda.max_memory_allocated() / 1e9}


def epochs(device, seconds, count=10):
    """Some epochs on CIFAR-10 with one particle and without."""
    import torch

    import pyro_sps as sps

    if not hasattr(sps.datasets, "images"):
        raise RuntimeError("this version has no loader of images")
    train = sps.datasets.images("cifar10")
    net = sps.networks.resnet20(10, norm="group").to(device)
    bnn = sps.BNN(net, sps.Unmasked(), sps.Zero(), sps.Categorical(), example=torch.zeros(2, 3, 32, 32, device=device))
    begun = time.perf_counter()
    fit = sps.fit(bnn, train, num_steps=count * 390, num_particles=1, batch_size=128, progress=False, device=device)
    return {f"ResNet-20, {count} epochs, s": time.perf_counter() - begun, "last losses": fit.losses[-390:].mean()}


PARTS = (tests, steps, resnet, chains, memory, epochs)


def main():
    """Run the parts that there is time for."""
    options = arguments(__doc__, {"--device": "cuda", "--seconds": 2.0, "--epochs": 10, "--parts": ["all"]})
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("not run: there is no accelerator")
        return
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "CPU"
    results = {}
    for part in PARTS:
        if options.parts != ["all"] and part.__name__ not in options.parts:
            continue
        if time.monotonic() - BEGUN > LIMIT - 60:
            results[part.__name__] = {"not run": "no time left"}
            continue
        more = {"count": options.epochs} if part is epochs else {}
        try:
            results[part.__name__] = part(options.device, options.seconds, **more)
        except Exception as error:
            traceback.print_exc()
            results[part.__name__] = {"not run": f"{type(error).__name__}: {str(error)[:200]}"}
        print(part.__name__, results[part.__name__], flush=True)
    about = f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}"
    command = " ".join(["python", "benchmarks/device.py", *sys.argv[1:]])
    lines = ["# On an accelerator", "", f"`{command}`", "", about, ""]
    for part, found in results.items():
        lines += [f"## {part}", "", "| | |", "| --- | ---: |"]
        lines += [f"| {key} | {value if isinstance(value, str) else f'{value:.3g}'} |" for key, value in found.items()]
        lines.append("")
    out = options.out or Path(__file__).parent
    os.makedirs(out, exist_ok=True)
    (out / "results-gpu.json").write_text(
        json.dumps({"command": command, "machine": about, "results": results}, indent=1)
    )
    (out / "RESULTS-gpu.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
