"""Everything that needs a GPU, in one run of at most `--minutes`: tests, roofline, sizes, and a real cohort.

benchmarks/gpu.sh [--device cpu --tiny] [--minutes 8] [--only SECTION ...] [--out DIR]

Sections run in this order, and one that fails is recorded and does not stop the next:

variants   a training step and a guided sample of `preset=gpu` at 4 x 128^3, eager or compiled, channels first or last,
           each beside the summed roofline of its layers (benchmarks/roofline.py)
host       what the processor does for each sample of that size: noise, augmentation
sizes      time and peak memory of a training step and of a guided sample at growing sizes, beside MONAI's plain loop
tests      the tests marked `gpu`, and the whole loop at preset=smoke
cohort     medaug's commands on the hippocampus (needs MEDAUG_DATA): train, generate, audit, with their wall times;
           with `--tiny` train and generate, on phantoms

Results go to gpu.json and gpu.md in `--out`, written anew after each section. Weights and volumes are random but for
`cohort`. The plain loop samples in 250 steps; two of them are timed and multiplied. With `--tiny` everything is small
enough for two processor cores, and its figures mean nothing. 512 x 512 x 512 is sampled by windows of 128 x 128 x 128
that overlap by a quarter, once, after one window to warm up; the whole volume is then in main memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import HERE, about, machine, spread
from plain import PlainDDPM, Training
from quality import drawing, evaluations, plain_sampling, sampling
from roofline import TARGET, counted, least_times, measured_bandwidth, measured_peak, random_batch, seconds
from torch import Tensor

from medaug.config import load_options, part
from medaug.data.transforms import light_affine
from medaug.diffusion.noise import generators, standard_normal
from medaug.files import atomic_write
from medaug.train import MODEL_NODES
from medaug.training.model import DiffusionModel, Dropout, has_bf16

PLAIN_STEPS, PLAIN_TIMED = 250, 2
SETTINGS = sampling("hippocampus")
OVERLAP = 0.25
LOOP = "tests/end_to_end/test_loop.py::test_every_pair_lies_on_its_hosts_grid_and_shows_the_cohorts_classes[demo]"
TESTS = ("tests/training/test_gpu.py", LOOP)
TESTS_SECONDS, COHORT_SECONDS = 240, 300
"""At most, for each command of these sections."""


@dataclass(frozen=True)
class Size:
    """Volumes of one size.

    Attributes:
        modalities: of each volume.
        side: voxels along each axis.
        batch: samples per training step; 0: sampled, not trained.
        plain: whether MONAI's plain loop is measured as well.
        patch: side of the windows that it is sampled by; None: as a whole volume.
    """

    modalities: int
    side: tuple[int, int, int]
    batch: int = 1
    plain: bool = True
    patch: int | None = None

    def __str__(self) -> str:
        windows = "" if self.patch is None else f" by windows of {self.patch}"
        return f"{self.modalities} x " + " x ".join(map(str, self.side)) + windows


MAIN = Size(4, (128, 128, 128), batch=2)
SIZES = (
    Size(1, (64, 64, 64)),
    Size(1, (128, 128, 128)),
    Size(4, (128, 128, 128)),
    Size(1, (256, 256, 128)),
    Size(1, (512, 512, 512), batch=0, plain=False, patch=128),
)
TINY = (Size(2, (16, 16, 16), batch=2), Size(1, (16, 24, 16), batch=0, plain=False, patch=16))
CLASSES = 4


class Bench:
    """The device, the model's options, and the figures so far.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out
        self.tiny: bool = options.tiny
        self.device = torch.device(options.device)
        self.end = time.monotonic() + 60 * options.minutes
        preset = "smoke" if self.tiny else "gpu"
        self.settings = load_options("train", ["experiment=brats", "data=phantom", f"preset={preset}"])
        self.dtype = torch.bfloat16 if has_bf16(self.device) else torch.float32
        self.main, self.sizes = (TINY[0], TINY) if self.tiny else (MAIN, SIZES)
        self.repeats = 2 if self.tiny else 10
        self.figures: dict[str, Any] = {"about": about([0], self.repeats), "device": describe(self.device)}

    def left(self) -> float:
        """Seconds until the run has to end."""
        return self.end - time.monotonic()

    def save(self) -> None:
        """Write what has been measured so far."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name, text in (("gpu.json", json.dumps(self.figures, indent=2) + "\n"), ("gpu.md", markdown(self.figures))):
            with atomic_write(self.out / name) as temporary:
                temporary.write_text(text)

    def model(self, size: Size) -> DiffusionModel:
        """`preset=gpu` for that size, with random weights."""
        torch.manual_seed(0)
        options = part(self.settings, *MODEL_NODES)
        if size.patch is not None:
            options["data"]["patch"] = [size.patch] * 3
        return DiffusionModel(options, size.modalities, CLASSES, self.settings.trainer.precision).to(self.device)

    def training(self, model: DiffusionModel | PlainDDPM) -> Training:
        """The plain loop of AdamW, clipping and averaging around a model."""
        if isinstance(model, PlainDDPM):
            return Training(model, lambda batch: model.loss(batch, 0.1), self.settings.trainer)
        return Training(model, lambda batch: model.loss(batch, Dropout(0.1)), self.settings.trainer)

    def timed(self, work: Callable[[], object], repeats: int) -> dict[str, Any]:
        """Seconds of several runs, and the peak memory of the device meanwhile, GiB.

        Args:
            work: what is timed.
            repeats: number of runs, after a warm-up; 0: one run without a warm-up.
        """
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        if repeats:
            taken = seconds(work, repeats, self.device)
        else:
            began = time.perf_counter()
            work()
            taken = [time.perf_counter() - began]
        memory = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None
        return {"seconds": spread(taken), "memory_gib": memory}

    def train_and_sample(
        self, model: DiffusionModel | PlainDDPM, size: Size, settings: dict[str, Any]
    ) -> dict[str, Any]:
        """Figures of a training step and of one guided sample; whatever does not fit is said to be out of memory."""
        row: dict[str, Any] = {}
        if size.batch:
            batch = random_batch(size.batch, size.modalities, CLASSES, size.side, self.device)
            training = self.training(model)
            row["training"] = fitting(lambda: self.timed(lambda: training(batch), self.repeats))
            del training, batch
            model.zero_grad(set_to_none=True)
        label = torch.randint(0, CLASSES, (1, *size.side), device=self.device)
        repeats = max(self.repeats // 2, 2)
        draw = drawing(model, settings if size.patch is None else settings | {"overlap": OVERLAP})
        if size.patch is not None:
            window = [slice(size.patch)] * 3
            draw(label[:, *window], [0])
            repeats = 0
        row["sampling"] = fitting(lambda: self.timed(lambda: draw(label, [0]), repeats))
        return row


def variants(bench: Bench) -> Iterator[tuple[str, Any]]:
    """The main size, eager or compiled, channels first or last; the roofline of a step is the same for all."""
    size = bench.main
    batch = random_batch(size.batch, size.modalities, CLASSES, size.side, bench.device)
    model = bench.model(size)
    with counted(model.network) as passes:
        bench.training(model)(batch)
    weights = sum(p.numel() for p in model.network.parameters())
    del model
    peak, bandwidth = measured_peak(bench.device, bench.dtype), measured_bandwidth(bench.device)
    table = least_times(passes, weights, peak, bandwidth)
    least, operations = (sum(row[key] for row in table.values()) for key in ("seconds", "operations"))
    yield (
        "roofline",
        {
            "weights": weights,
            "peak_operations_per_second": peak,
            "bandwidth_bytes_per_second": bandwidth,
            "step_seconds_at_least": least,
            "operations": operations,
            "kinds": table,
        },
    )
    for compiled, last in product((False, True), (False, True)):
        name = f"{'compiled' if compiled else 'eager'}, channels {'last' if last else 'first'}"
        if bench.left() < 60 or (compiled and bench.device.type == "cpu"):
            yield name, "not run: no time left" if bench.left() < 60 else "not run: compiling takes minutes here"
            continue
        model = bench.model(size)
        if last:
            model.network.to(memory_format=torch.channels_last_3d)
        if compiled:
            model.network.compile()
        began = time.monotonic()
        row = bench.train_and_sample(model, size, SETTINGS)
        if isinstance(row["training"], dict):
            took = row["training"]["seconds"]["median"]
            row |= {"share_of_roofline": least / took, "share_of_peak": operations / took / peak}
        if bench.device.type == "cuda" and not compiled:
            profile(bench, model, batch, name)
        yield name, row | {"wall_seconds": time.monotonic() - began}
        del model


def profile(bench: Bench, model: DiffusionModel, batch: dict[str, Tensor], name: str) -> None:
    """Write which operations take the time of a training step, by torch's profiler."""
    training = bench.training(model)
    training(batch)
    with torch.profiler.profile() as found:
        training(batch)
        torch.cuda.synchronize()
    text = found.key_averages().table(sort_by="self_device_time_total", row_limit=40, max_name_column_width=60)
    bench.out.mkdir(parents=True, exist_ok=True)
    (bench.out / f"profile_{name.replace(', ', '_').replace(' ', '_')}.txt").write_text(text)


def host(bench: Bench) -> Iterator[tuple[str, Any]]:
    """Seconds that the processor takes for one sample of the main size, on one thread."""
    size = bench.main
    image = torch.rand(size.modalities, *size.side) * 2 - 1
    label = torch.randint(0, CLASSES, size.side)
    draws = generators([0])
    cpu = torch.device("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield "noise", spread(seconds(lambda: standard_normal(draws, image.shape, bench.device), 3, cpu))
    # The mean over seeds: half of the samples are left as they are.
    began = time.perf_counter()
    for seed in range(8):
        light_affine(image, label, seed)
    yield "augmentation", (time.perf_counter() - began) / 8
    torch.set_num_threads(threads)


def sizes(bench: Bench) -> Iterator[tuple[str, Any]]:
    """Every size as it is by default, and in MONAI's plain loop."""
    for size in bench.sizes:
        if bench.left() < 45:
            yield str(size), "not run: no time left"
            continue
        row = {"medaug": bench.train_and_sample(bench.model(size), size, SETTINGS)}
        row["medaug"]["evaluations"] = evaluations(SETTINGS["sampler"], SETTINGS["num_inference_steps"])
        if size.plain:
            torch.manual_seed(0)
            plain = PlainDDPM(size.modalities, CLASSES, bench.settings.network).to(bench.device)
            row["plain"] = found = bench.train_and_sample(plain, size, plain_sampling(SETTINGS, PLAIN_TIMED))
            if isinstance(found["sampling"], dict):
                times = found["sampling"]["seconds"]
                found["sampling"]["seconds"] = {key: PLAIN_STEPS / PLAIN_TIMED * t for key, t in times.items()}
            found["evaluations"] = PLAIN_STEPS
            del plain
        yield str(size), row


def tests(bench: Bench) -> Iterator[tuple[str, Any]]:
    """How each test went; the output of those that failed is in tests.log."""
    bench.out.mkdir(parents=True, exist_ok=True)
    report, log = bench.out / "tests.xml", bench.out / "tests.log"
    command = [sys.executable, "-m", "pytest", *TESTS, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command += ["--tb=short", "--durations=8"]
    if bench.tiny:  # the tests themselves run elsewhere: here that they are found
        command.append("--collect-only")
    with log.open("w") as file:
        limit = max(min(TESTS_SECONDS, bench.left()), 30)
        try:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=limit, cwd=HERE.parent)
            yield "status", status.returncode
        except subprocess.TimeoutExpired:
            yield "status", f"stopped after {limit:.0f} s"
    if report.exists():
        cases = list(ET.parse(report).iter("testcase"))
        bad = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
        yield "run", len(cases)
        yield "failed", bad
        report.unlink()


def cohort(bench: Bench) -> Iterator[tuple[str, Any]]:
    """Wall times and results of the stages on the hippocampus, as a user calls them; with `--tiny` on phantoms."""
    experiment = "demo" if bench.tiny else "hippocampus"
    if not bench.tiny and "MEDAUG_DATA" not in os.environ:
        yield "stages", "not run: MEDAUG_DATA is not set"
        return
    with tempfile.TemporaryDirectory() as folder, (bench.out / "cohort.log").open("w") as log:
        words = [f"experiment={experiment}", f"preset={'smoke' if bench.tiny else 'cpu'}", f"runs={folder}"]
        more = {"train": ["trainer.score_every=0", f"trainer.accelerator={'cpu' if bench.tiny else 'gpu'}"]}
        for stage in ("train", "generate", *(() if bench.tiny else ("audit",))):
            if bench.left() < 30:
                yield stage, "not run: no time left"
                return
            began = time.monotonic()
            command = [sys.executable, "-m", f"medaug.{stage}", *words, *more.get(stage, [])]
            limit = min(COHORT_SECONDS, bench.left())
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=limit, cwd=HERE.parent)
            yield stage, {"status": done.returncode, "wall_seconds": time.monotonic() - began}
            if done.returncode:
                raise RuntimeError(f"medaug.{stage} ended with status {done.returncode}; see cohort.log")
        results = Path(folder, experiment)
        yield "training", json.loads((results / "train" / "finished.json").read_text())
        shutil.copy(results / "synthetic" / "contact_sheet.png", bench.out)
        if (found := results / "audit" / "faithfulness.json").exists():
            yield "audit_result", json.loads(found.read_text())


def fitting(work: Callable[[], dict[str, Any]]) -> dict[str, Any] | str:
    """What the work returns, or that it does not fit the device's memory."""
    try:
        return work()
    except torch.OutOfMemoryError:
        return "out of memory"


def describe(device: torch.device) -> dict[str, Any]:
    """The device's name, its memory, and what torch reports about it."""
    if device.type != "cuda":
        return {"name": machine(), "torch": torch.__version__}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_gib": properties.total_memory / 2**30,
        "capability": list(torch.cuda.get_device_capability(device)),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout.strip(),
    }


def markdown(figures: dict[str, Any]) -> str:
    """The figures as tables for people."""
    device = figures["device"]
    lines = [f"# {device['name']}, torch {device['torch']}, commit {figures['about']['commit']}", ""]
    if (found := figures.get("variants")) and "roofline" in found:
        roof = found["roofline"]
        lines += [
            "Training step and guided sample (8 steps) at the main size; "
            f"at least {ms(roof['step_seconds_at_least'])} ms a step; "
            f"peak {roof['peak_operations_per_second'] / 1e12:.0f} T operations/s, "
            f"{roof['bandwidth_bytes_per_second'] / 1e9:.0f} GB/s; {roof['weights'] / 1e6:.1f} M weights",
            "",
            f"| variant | step ms (min to max) | share of roofline (target {TARGET:.0%}) | share of peak | GiB "
            "| sample ms (min to max) | GiB |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in found.items():
            if isinstance(row, dict) and "training" in row:
                shares = [f"{row[key]:.0%}" if key in row else "" for key in ("share_of_roofline", "share_of_peak")]
                lines.append(
                    f"| {name} | {' | '.join([cell(row['training'])[0], *shares, cell(row['training'])[1]])} "
                    f"| {' | '.join(cell(row['sampling']))} |"
                )
            elif name != "roofline":
                lines.append(f"| {name} | {row} | | | | | |")
        lines.append("")
    if found := figures.get("sizes"):
        lines += [
            "| volume | loop | step ms (min to max) | GiB | sample ms (min to max) | GiB |",
            "|---|---|---|---|---|---|",
        ]
        for size, row in found.items():
            for loop, one in row.items() if isinstance(row, dict) else ():
                lines.append(
                    f"| {size} | {loop} | {' | '.join(cell(one.get('training', 'not trained')))} "
                    f"| {' | '.join(cell(one['sampling']))} |"
                )
        lines.append("")
    for section in ("host", "tests", "cohort", "errors"):
        if found := figures.get(section):
            lines += [f"{section}:", "", "```", json.dumps(found, indent=1)[:6000], "```", ""]
    return "\n".join(lines) + "\n"


def ms(value: float) -> str:
    """Seconds as milliseconds with three digits."""
    return f"{1e3 * value:.3g}" if value < 1 else f"{1e3 * value:.0f}"


def cell(found: dict[str, Any] | str) -> tuple[str, str]:
    """Time and memory of one measurement, for a table."""
    if isinstance(found, str):
        return found, ""
    t, memory = found["seconds"], found["memory_gib"]
    return f"{ms(t['median'])} ({ms(t['min'])} to {ms(t['max'])})", "" if memory is None else f"{memory:.2f}"


SECTIONS: dict[str, Callable[[Bench], Iterator[tuple[str, Any]]]] = {
    "variants": variants,
    "host": host,
    "sizes": sizes,
    "tests": tests,
    "cohort": cohort,
}


def main() -> None:
    """Run the sections, and end with status 1 if one of them or a test failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="volumes of 16 voxels a side, to try the script itself")
    parser.add_argument("--minutes", type=float, default=8, help="to end within")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/benchmarks/gpu")))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu: torch sees no CUDA device here; try the script itself with --device cpu --tiny")
    bench = Bench(options)
    failed = False
    for name in options.only:
        rows = bench.figures.setdefault(name, {})
        began = time.monotonic()
        try:
            for key, value in SECTIONS[name](bench):
                rows[key] = value
                print(f"{name}: {key}: {json.dumps(value)[:400]}", flush=True)
                bench.save()
        except Exception:
            failed = True
            bench.figures.setdefault("errors", {})[name] = traceback.format_exc()
            traceback.print_exc()
        print(f"{name} took {time.monotonic() - began:.0f} s", flush=True)
        bench.save()
    failed |= bool(bench.figures.get("tests", {}).get("failed"))
    print((bench.out / "gpu.md").read_text())
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
