"""How close a training step comes to the machine's peak: a roofline per layer (Williams et al. 2009), summed.

python benchmarks/roofline.py [key=value of medaug.train ...] [--side 40 56 40] [--modalities 1] [--batch 4] [--profile]

Hooks count, for every call of a layer of the network, the operations and the bytes that it must at least move: its
input, output and weights, in the type that it works in. A layer takes at least the larger of operations / peak and
bytes / bandwidth; peak (a square matrix product in the network's precision) and bandwidth (a copy) are measured in the
same run. Backward, a convolution or linear layer is done twice more (gradients of its input and of its weights), any
other layer reads two tensors and writes one. The optimiser, clipping and averaging move every weight and their states.
Additions, concatenations, casts and the process's arithmetic count as time that the roofline does not have. Runs on the
CPU or, where there is one, a CUDA device. Weights and volumes are random.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from common import arguments, machine, save_result, spread
from plain import Training
from torch import Tensor, nn

from medaug.config import load_options, part
from medaug.networks.layers import SelfAttention, UpsampledConv
from medaug.train import MODEL_NODES
from medaug.training.model import DiffusionModel, Dropout, has_bf16

TARGET = 0.7
STATE_BYTES = 4 * (7 + 3 + 3)
"""Per weight, float32: AdamW reads 4 and writes 3 tensors, averaging reads 2 and writes 1, clipping 2 and 1."""


@dataclass(frozen=True)
class Pass:
    """One call of a layer, forward or backward: its kind, operations, and bytes moved."""

    kind: str
    operations: float
    bytes: float


def main() -> None:
    """Print and write the summed roofline and the measured time of a training step."""
    parser = arguments(__doc__ or "", "roofline")
    parser.add_argument("--experiment", default="hippocampus")
    parser.add_argument("--side", type=int, nargs=3, default=[40, 56, 40], help="voxels along each axis")
    parser.add_argument("--modalities", type=int, default=1)
    parser.add_argument("--classes", type=int, default=3, help="of the label map, with background")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print which operations take the time of a step")
    parser.add_argument("words", nargs="*", help="key=value of medaug.train")
    options = parser.parse_intermixed_args()
    settings = load_options("train", [f"experiment={options.experiment}", *options.words])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    precision = settings.trainer.precision
    model = DiffusionModel(part(settings, *MODEL_NODES), options.modalities, options.classes, precision).to(device)
    training = Training(model, lambda batch: model.loss(batch, Dropout(0.1)), settings.trainer)
    batch = random_batch(options.batch, options.modalities, options.classes, options.side, device)
    half = precision == "bf16" or (precision == "auto" and has_bf16(device))
    dtype = torch.bfloat16 if half else torch.float32

    with counted(model.network) as passes:
        training(batch)
    weights = sum(p.numel() for p in model.network.parameters())
    peak, bandwidth = measured_peak(device, dtype), measured_bandwidth(device)
    step = seconds(lambda: training(batch), options.repeats, device)

    table = least_times(passes, weights, peak, bandwidth)
    least = sum(row["seconds"] for row in table.values())
    operations = sum(row["operations"] for row in table.values())
    took = statistics.median(step)
    share, of_peak = least / took, operations / took / peak
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None

    name = torch.cuda.get_device_name() if device.type == "cuda" else machine()
    print(f"{name}; {weights / 1e6:.1f} M weights, {options.batch} x {options.modalities} x {options.side}")
    print(f"measured: {peak / 1e12:.3f} T operations/s in {dtype}, {bandwidth / 1e9:.1f} GB/s")
    for kind, row in sorted(table.items(), key=lambda item: -item[1]["seconds"]):
        numbers = f"{row['operations'] / 1e9:10.1f} G operations{row['bytes'] / 1e9:9.3f} GB"
        print(f"  {kind:26}{row['calls']:5.0f} calls{numbers}{1e3 * row['seconds']:10.2f} ms at least")
    print(f"a step takes {1e3 * took:.1f} ms (of {len(step)}: {1e3 * min(step):.1f} to {1e3 * max(step):.1f})")
    print(f"summed roofline {1e3 * least:.1f} ms: {share:.0%} of the step; {of_peak:.0%} of the peak reached")
    if memory is not None:
        verdict = "met" if share >= TARGET else "missed"
        print(f"{memory:.2f} GiB of memory; target: {TARGET:.0%} of the roofline; {verdict}")
    if options.profile:
        print_profile(lambda: training(batch))
    figures = {
        "device": name,
        "dtype": str(dtype),
        "volume": [options.modalities, *options.side],
        "batch_size": options.batch,
        "weights": weights,
        "peak_operations_per_second": peak,
        "bandwidth_bytes_per_second": bandwidth,
        "step_seconds": spread(step),
        "roofline_seconds": least,
        "share_of_roofline": share,
        "share_of_peak": of_peak,
        "memory_gib": memory,
        "kinds": table,
    }
    save_result(options.result, [0], len(step), figures)


def random_batch(
    size: int, modalities: int, classes: int, side: Sequence[int], device: torch.device
) -> dict[str, Tensor]:
    """A labelled training batch of noise: images in [-1, 1], every class everywhere."""
    return {
        "image": torch.rand(size, modalities, *side, device=device) * 2 - 1,
        "label": torch.randint(0, classes, (size, *side), device=device),
        "labelled": torch.ones(size, dtype=torch.bool, device=device),
        "seed": torch.arange(size),
    }


def least_times(passes: Sequence[Pass], weights: int, peak: float, bandwidth: float) -> dict[str, dict[str, float]]:
    """Calls, operations, bytes and minimum seconds of a training step, by kind of layer, with the optimiser.

    Args:
        passes: of all layers, forward and backward.
        weights: how many the network has.
        peak: operations per second at most.
        bandwidth: bytes per second at most.
    """
    table: dict[str, dict[str, float]] = defaultdict(lambda: {"calls": 0, "operations": 0, "bytes": 0, "seconds": 0})
    for one in (*passes, Pass("optimiser and averaging", 0, STATE_BYTES * weights)):
        row = table[one.kind]
        row["calls"] += 1
        row["operations"] += one.operations
        row["bytes"] += one.bytes
        row["seconds"] += max(one.operations / peak, one.bytes / bandwidth)
    return dict(table)


@contextlib.contextmanager
def counted(network: nn.Module) -> Iterator[list[Pass]]:
    """Collect the passes of all layers, forward and backward, of what is run inside."""
    passes: list[Pass] = []

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        x = inputs[0]
        if isinstance(module, SelfAttention):  # what is in it besides its linear layers
            b, n, c = x.shape
            moved = 4 * x.numel() * output.element_size()
            passes.append(Pass("attention", 4 * b * n * n * c, moved))
            passes.append(Pass("attention", 8 * b * n * n * c, 2 * moved))
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | UpsampledConv):
            weight = module.weight
            if isinstance(module, UpsampledConv):  # a kernel of width 4 at every voxel of x
                once = 2 * x.numel() * len(weight) * 4 ** (weight.ndim - 2)
            else:
                once = 2 * output.numel() * weight[0].numel()
            moved = (x.numel() + output.numel() + weight.numel()) * output.element_size()
            passes.extend([Pass("linear" if isinstance(module, nn.Linear) else "convolution", once, moved)] * 3)
        else:
            moved = _bytes(x) + _bytes(output)
            passes.append(Pass(type(module).__name__, 0, moved))
            passes.append(Pass(type(module).__name__, 0, moved + _bytes(x)))

    layers = (SelfAttention, nn.Linear, nn.Conv2d, nn.Conv3d, UpsampledConv, nn.GroupNorm, nn.SiLU)
    hooks = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, layers)]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the fastest of several square matrix products."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(seconds(lambda: a @ b, 10, device))


def measured_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of the fastest of several copies of half a gigabyte."""
    source = torch.randn(2**27, device=device)
    target = torch.empty_like(source)
    return 2 * _bytes(source) / min(seconds(lambda: target.copy_(source), 10, device))


def seconds(work: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each of several runs, until the device has finished, after two warm-up runs that are not counted."""
    taken = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken[2:]


def print_profile(work: Callable[[], object]) -> None:
    """Which operations take the time, by torch's profiler."""
    with torch.profiler.profile() as profile:  # of the CPU and of the CUDA device, if there is one
        work()
    by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=40))


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


if __name__ == "__main__":
    main()
