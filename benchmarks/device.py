"""Everything that needs an accelerator, in one go of at most eight minutes: tests, memory, chains, steps, epochs.

    python benchmarks/device.py [--device cuda] [--seconds 1] [--epochs 10] [--parts tests steps] [--images FILE] [--out benchmarks]

Needs, beyond torch and Triton, of packages: pyro-ppl, numpy, tqdm and safetensors; for the tests pytest; for real images
pyarrow and pillow. The package itself is used from where it lies. A part that cannot be run says so and does not stop the
rest; each begins nothing new after its share of the time. With an accelerator it writes results-gpu.json and RESULTS-gpu.md
to the folder, after each part what there is; without one nothing. `--device cpu` runs the same lines, and writes to
`--out` only.

- tests: those marked `gpu`; on a CPU the others of tests/test_device.py.
- memory: peak of a fit of a 4096 x 4096 layer (of a CPU's process all that it ever had).
- chains: milliseconds a step of ten chains of the sampler (chains.py), beside eager torch, on the device and on its CPU.
- steps: milliseconds a step of step.py's networks: hand-written torch with and without CUDA graphs, and ours recorded and
  compiled (which on an accelerator is a CUDA graph), on the device and on its CPU.
- resnet: the same of ResNet-20 (128 images) with one and four particles against deterministic training, in float32 and
  bfloat16.
- epochs: ResNet-20 on CIFAR-10 with one particle and deterministic, as many epochs as there is time for. The images are
  --images or cifar10-train.parquet in PYRO_SPS_DATA or shared/data/images, else random ones, whose time is the same.
"""

import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

from common import arguments

BEGUN, LIMIT = time.monotonic(), 470.0

HERE = Path(__file__).resolve().parent

# Seconds after the beginning at which a part begins nothing new.
SHARES = {"tests": 90.0, "memory": 110.0, "chains": 150.0, "steps": 270.0, "resnet": 370.0, "epochs": 460.0}


class Late(Exception):
    """The time is over."""


def left():
    """Seconds that there are."""
    return LIMIT - (time.monotonic() - BEGUN)


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


def graphed(block):
    """A block of hand-written steps of which each is a replayed CUDA graph."""
    import torch

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        block(3)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        block(1)

    def again(steps):
        for _ in range(steps):
            graph.replay()

    return again


def timed(contenders, device, seconds):
    """Milliseconds of each contender of (name, device, what builds its block); one that fails says why."""
    for name, place, build in contenders:
        try:
            yield f"{name}, {place}", milliseconds(build(), place, seconds)
        except Late:
            raise
        except Exception as error:
            yield f"{name}, {place}", f"failed: {type(error).__name__}: {str(error)[:150]}"


# --- the parts: what gives (name, number or words) as it is found ------------------------------------


def tests(options):
    """The tests that need it."""
    chosen = "gpu" if options.device == "cuda" else "not gpu"
    plain = ["-o", "addopts=--import-mode=importlib", "--noconftest", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-m", chosen, *plain, "tests/test_device.py"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SHARES["tests"] + 60, cwd=HERE.parent, env=environment
        )
    except subprocess.TimeoutExpired as error:
        yield "tests", f"not ended after {error.timeout:.0f} s"
        return
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]]
    for number, line in enumerate(one for one in lines if one.startswith("/")):
        yield f"failure {number + 1}", line[-200:]
    yield "tests", lines[-1]


def memory(options):
    """Peak memory of a large layer."""
    import resource

    import torch

    import pyro_sps as sps

    device = options.device
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    net = torch.nn.Sequential(torch.nn.Linear(4096, 4096, device=device), torch.nn.Tanh())
    net.append(torch.nn.Linear(4096, 1, device=device))
    x = torch.randn(64, 4096)
    told = {"num_steps": 3, "num_particles": 1, "progress": False, "compile": False}
    sps.fit(sps.BNN(net, sps.Unmasked(), sps.Zero()), x, x[:, :1], **told)
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    yield "peak memory of a 4096 x 4096 layer, GB", peak / 1e9


def chains(options):
    """Ten chains as one program."""
    import chains as sampling

    given = {"rows": 691, "hidden": 50, "chains": 10}
    for place in dict.fromkeys((options.device, "cpu")):
        own = SimpleNamespace(**given, device=place)
        yield from timed(
            [
                ("ten chains, eager by hand", place, lambda own=own: sampling.eager(own)),
                ("ten chains, recorded", place, lambda own=own: sampling.ours(own, False)[0]),
                ("ten chains, compiled", place, lambda own=own: sampling.ours(own, True)[0]),
            ],
            options.device,
            options.seconds,
        )


def steps(options):
    """The step table."""
    import step

    for place in dict.fromkeys((options.device, "cpu")):
        for name, job in step.JOBS.items():
            own = {**job, "device": place}
            every = [(f"{name}, hand-written", place, lambda own=own: step.hand_written(own))]
            if place == "cuda":
                graph = f"{name}, hand-written as a CUDA graph"
                every.append((graph, place, lambda own=own: graphed(step.hand_written(own))))
            every.append((f"{name}, recorded", place, lambda own=own: step.ours(own, False)))
            every.append((f"{name}, compiled", place, lambda own=own: step.ours(own, True)))
            yield from timed(every, options.device, options.seconds)


def resnet(options):
    """ResNet-20 against deterministic training."""
    import resnet as networks
    import torch

    import pyro_sps as sps

    def deterministic(own, mixed=False):
        block = networks.deterministic(own)

        def run(count):
            with torch.autocast(own.device, torch.bfloat16, mixed, cache_enabled=False):
                block(count)

        return run

    def ours(own, particles, compile, precision=None):
        return networks.ours(own, sps.Unmasked(), particles, compile, precision)[0]

    given = {"rows": 128, "width": options.width}
    place, own = options.device, SimpleNamespace(**given, device=options.device)
    every = [("deterministic", place, lambda: deterministic(own))]
    if place == "cuda":
        every += [
            ("deterministic as a CUDA graph", place, lambda: graphed(deterministic(own))),
            ("one particle, compiled", place, lambda: ours(own, 1, True)),
            ("deterministic, bfloat16", place, lambda: deterministic(own, True)),
            ("deterministic as a CUDA graph, bfloat16", place, lambda: graphed(deterministic(own, True))),
            ("one particle, compiled, bfloat16", place, lambda: ours(own, 1, True, "bf16-mixed")),
        ]
    every.append(("one particle, recorded", place, lambda: ours(own, 1, False)))
    every.append(("four particles, recorded", place, lambda: ours(own, 4, False)))
    if place == "cuda":
        host = SimpleNamespace(**given, device="cpu")
        every += [
            ("deterministic", "cpu", lambda: deterministic(host)),
            ("one particle, recorded", "cpu", lambda: ours(host, 1, False)),
            ("four particles, compiled", place, lambda: ours(own, 4, True)),
        ]
    yield from timed(every, place, options.seconds)


def epochs(options):
    """Some epochs on CIFAR-10 with one particle and without."""
    import torch

    import pyro_sps as sps

    device = options.device
    (x, y), (x_test, y_test), what = images(options)
    yield "images", what
    x, y = x.to(device), y.to(device)
    in_epoch = max(1, len(x) // 128)

    def network():
        torch.manual_seed(0)
        return sps.networks.resnet20(10, width=options.width, norm="group").to(device)

    bnn = sps.BNN(network(), sps.Unmasked(), sps.Zero(), sps.Categorical(), example=x[:2])
    told = {"num_particles": 1, "batch_size": 128, "progress": False, "compile": device == "cuda"}
    begun = time.perf_counter()
    sps.fit(bnn, x, y, num_steps=1, **told)  # compiles; the next fit finds that
    settled(device)
    yield "one particle, to the first step, s", time.perf_counter() - begun
    begun = time.perf_counter()
    sps.fit(bnn, x, y, num_steps=min(100, in_epoch), **told)
    settled(device)
    epoch = (time.perf_counter() - begun) / min(100, in_epoch) * in_epoch
    count = max(1, min(options.epochs, int((left() - 40) / (2.5 * epoch))))

    net = network()
    optim = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, count * in_epoch)
    mean, scale = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    begun = time.perf_counter()
    for _ in range(count):
        for rows in torch.randperm(len(x), device=device)[: in_epoch * 128].split(128):
            optim.zero_grad()
            torch.nn.functional.cross_entropy(net((x[rows] - mean) / scale), y[rows]).backward()
            optim.step()
            schedule.step()
    settled(device)
    yield f"deterministic, {count} epochs, s", time.perf_counter() - begun
    with torch.no_grad():
        found = [net((part.to(device) - mean) / scale).argmax(1).cpu() for part in x_test.split(1000)]
    yield "deterministic, held-out accuracy", (torch.cat(found) == y_test).double().mean().item()

    begun = time.perf_counter()
    fit = sps.fit(bnn, x, y, num_steps=count * in_epoch, **told)
    settled(device)
    yield f"one particle, {count} epochs, s", time.perf_counter() - begun
    yield "one particle, mode", fit.mode
    prediction = fit.predict(x_test.to(device), 10)
    yield "one particle, held-out accuracy", prediction.accuracy(y_test)
    yield "one particle, held-out LPP", prediction.lpp(y_test)


def images(options):
    """Training and test images with labels, and what they are."""
    import torch

    import pyro_sps as sps

    folders = [os.environ.get("PYRO_SPS_DATA", "."), HERE.parent / "shared" / "data" / "images", "."]
    found = [options.images, *(Path(folder, "cifar10-train.parquet") for folder in folders)]
    path = next((Path(one) for one in found if one and Path(one).is_file()), None)
    if path is None:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(options.rows, 3, 32, 32, generator=generator)
        y = torch.randint(0, 10, (options.rows,), generator=generator)
        held = max(1, options.rows // 10)
        return (x, y), (x[:held], y[:held]), f"{options.rows:,} random ones: accuracies say nothing"
    data = sps.datasets.images(path)
    workers = (os.cpu_count() or 1) if options.device == "cuda" else 0
    loader = torch.utils.data.DataLoader(data, batch_size=500, num_workers=workers)
    parts = [pair for _, pair in zip(range(-(-options.rows // 500)), loader, strict=False)]
    x, y = (torch.cat(one)[: options.rows] for one in zip(*parts, strict=True))
    held = len(x) // 10
    return (x[held:], y[held:]), (x[:held], y[:held]), f"{len(x):,} of {path.name}, a tenth held out"


PARTS = (tests, memory, chains, steps, resnet, epochs)


def run(part, options, found):
    """What a part finds, into a dictionary, until its share of the time is over."""
    begun, every = time.monotonic(), part(options)
    try:
        for name, value in every:
            found[name] = value
            print(f"{part.__name__}: {name}: {value if isinstance(value, str) else f'{value:.3g}'}", flush=True)
            if time.monotonic() - BEGUN > SHARES[part.__name__] or left() < 20:
                every.close()
                found["not all"] = "its share of the time was over"
                break
    except Late:
        found["not all"] = "the time was over"
    except Exception as error:
        traceback.print_exc()
        found["not run" if not found else "ended by"] = f"{type(error).__name__}: {str(error)[:200]}"
    found["seconds"] = time.monotonic() - begun


def write(out, command, about, results):
    """JSON and the page."""
    os.makedirs(out, exist_ok=True)
    content = {"command": command, "machine": about, "results": results}
    (out / "results-gpu.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = ["# On an accelerator", "", f"`{command}`", "", about, ""]
    for part, found in results.items():
        lines += [f"## {part}", "", "| milliseconds, or as it says | |", "| --- | ---: |"]
        lines += [f"| {key} | {value if isinstance(value, str) else f'{value:.3g}'} |" for key, value in found.items()]
        lines.append("")
    (out / "RESULTS-gpu.md").write_text("\n".join(lines))


def main():
    """Run the parts that there is time for."""
    sys.path.insert(0, str(HERE.parent))  # the package from where it lies
    names = [part.__name__ for part in PARTS]
    options = arguments(
        __doc__,
        {"--device": "cuda", "--seconds": 1.0, "--epochs": 10, "--parts": names, "--images": "", "--rows": 50_000}
        | {"--width": 16},
    )
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("not run: there is no accelerator")
        return
    out = options.out or (HERE if options.device == "cuda" else None)
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "CPU"
    about = f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}"
    command = " ".join(["python", "benchmarks/device.py", *sys.argv[1:]])

    def late(*_):
        signal.alarm(10)  # once more, should something have caught the first
        raise Late

    signal.signal(signal.SIGALRM, late)
    signal.alarm(int(left()))
    results = {}
    for part in PARTS:
        if part.__name__ in options.parts and left() > 20:
            run(part, options, results.setdefault(part.__name__, {}))
            if out is not None:
                write(out, command, about, results)
    signal.alarm(0)


if __name__ == "__main__":
    main()
