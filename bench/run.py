"""Measures secateur beside diffusers and PyTorch, in turns, and prints a table of ratios.

The peer's scripts run under the interpreter that runs this one. Each case is repeated, ours and the
peer's by turns, and the best time of each counts. Kernels are also held against the floor: what the
machine's rate of products and of copies, measured in the same run, would need for them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / "bench" / "peer"
SECATEUR = ROOT / "target" / "release" / "secateur"
SOLVE_EXAMPLE = ROOT / "target" / "release" / "examples" / "solve"
KERNELS_EXAMPLE = ROOT / "target" / "release" / "examples" / "kernels"
MODELS = ROOT / "models"
MODEL = MODELS / "emoji-mmdit"

# The most that our time may be of the peer's.
GOALS = {
    "attention b2 h8 n4096 d40": 1.0,
    "attention b2 h16 n256 d72": 1.0,
    "conv 3x3 stride 1 2x320x64x64": 1.0,
    "group norm 2x320x64x64": 1.0,
    "layer norm 8192x320": 1.0,
    "gelu 2x4096x1280": 1.0,
    "silu 2x320x64x64": 1.0,
    "gram 8192x1536": 1 / 1.7,
    "generate-1": 1 / 2,
    "generate-8": 1 / 1.5,
    "generate-unet-1": 1 / 2,
    "generate-unet-8": 1 / 1.5,
    "solve-1536x1536-50": 1 / 5,
    "solve-1536x1536-2:4": 1 / 5,
    "solve-2432x2432-50": 1 / 5,
    "solve-2432x2432-2:4": 1 / 5,
    "solve-1536x6144-50": 1 / 3,
    "prune": 1 / 3,
}

# A faster solve counts only if its error is at most this many times the peer's.
ERROR_MARGIN = 1.02

# Seconds that each side repeats a kernel for, in each turn.
KERNEL_SECONDS = 0.3


def objects(text):
    """The JSON objects in what a program printed."""
    start = text.find("{")
    while start >= 0:
        value, end = json.JSONDecoder().raw_decode(text, start)
        yield value
        start = text.find("{", end)


def run(command, threads, name):
    """The JSON object that a command prints; of those that tell their case, that of `name`."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    except FileNotFoundError:
        build = "cargo build --release --examples --bins"
        raise SystemExit(f"{command[0]} is not there: {build}") from None
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    found = [value for value in objects(done.stdout) if value.get("case", name) == name]
    if not found:
        raise SystemExit(f"{' '.join(command)} tells nothing of {name}")
    return found[-1]


def stages_of(report, names):
    """The seconds that secateur reports for each of some of its stages."""
    stages = {stage["name"]: stage["seconds"] for stage in report["stages"]}
    missing = [name for name in names if name not in stages]
    if missing:
        raise SystemExit(f"secateur reports the stages {list(stages)}, not {missing}")
    return {name: stages[name] for name in names}


class Kernel:
    """One call of a kernel on random numbers, as the example `kernels` and its peer name it."""

    group = "kernels"

    def __init__(self, name):
        self.name = name

    def prepare(self, folder, threads):
        """Writes nothing: both sides draw their own numbers."""
        options = ["--only", self.name, "--seconds", KERNEL_SECONDS]
        self.our_command = [KERNELS_EXAMPLE, *options]
        peer = [sys.executable, PEER / "kernels.py", *options]
        self.peer_command = [*peer, "--threads", threads]

    def our_result(self, report):
        """The seconds of our call, and the operations and bytes that it cannot do without."""
        seconds = report["seconds"]
        return {
            "seconds": seconds,
            "flop": report["gflops"] * 1e9 * seconds,
            "bytes": report["gigabytes_per_second"] * 1e9 * seconds,
        }

    def peer_result(self, report):
        """The seconds of the peer's call."""
        return report


class Generate:
    """Prompts, denoising and decoding of held-out prompts: 25 steps, guidance 4, float32."""

    group = "generate"

    def __init__(self, count, model="mmdit"):
        self.name = f"generate-{count}" if model == "mmdit" else f"generate-{model}-{count}"
        self.count = count
        self.model = MODELS / f"emoji-{model}"

    def prepare(self, folder, threads):
        """Writes the prompts."""
        prompts = folder / f"{self.name}.txt"
        lines = (self.model / "prompts" / "held_out.txt").read_text(encoding="utf-8").splitlines()
        text = "".join(f"{line}\n" for line in lines[: self.count])
        prompts.write_text(text, encoding="utf-8")
        options = ["--prompts", prompts, "--steps", 25, "--guidance", 4, "--batch", 8]
        options += ["--threads", threads]
        ours = [SECATEUR, "generate", self.model, *options, "--seed", 0, "--out", folder / self.name]
        self.our_command = [*ours, "--profile", "--force", "--quiet", "--json"]
        self.peer_command = [sys.executable, PEER / "generate.py", "--model", self.model, *options]

    def our_result(self, report):
        """The seconds of our run."""
        shares = {part["operation"]: part["share"] for part in report["operations"]}
        return {"seconds": stages_of(report, ["generate"])["generate"], "operations": shares}

    def peer_result(self, report):
        """The seconds of the peer's run."""
        return report


class Solve:
    """The OBS solve of one layer: 50 % or an N:M pattern."""

    group = "solve"

    def __init__(self, rows, columns, target):
        self.name = f"solve-{rows}x{columns}-{target}"
        self.rows = rows
        self.columns = columns
        self.target = ["--pattern", target] if ":" in target else ["--sparsity", 0.5]

    def prepare(self, folder, threads):
        """Writes the layer."""
        path = folder / f"{self.rows}x{self.columns}.safetensors"
        if not path.exists():
            save_file(self.layer(), path)
        options = ["--input", path, *self.target, "--repeats", 2]
        self.our_command = [SOLVE_EXAMPLE, *options]
        self.peer_command = [sys.executable, PEER / "obs.py", *options, "--threads", threads]

    def layer(self):
        """A weight with a few heavy columns, and H of correlated inputs."""
        generator = torch.Generator().manual_seed(0)
        rank, samples = self.columns // 4, 2 * self.columns
        x = torch.randn(samples, self.columns, generator=generator)
        common = torch.randn(samples, rank, generator=generator)
        x += common @ torch.randn(rank, self.columns, generator=generator) / rank**0.5
        weight = torch.randn(self.rows, self.columns, generator=generator)
        weight[:, :: self.columns // 8] *= 8
        return {"weight": weight, "hessian": 2 / samples * (x.T @ x)}

    def our_result(self, report):
        """The seconds and the error of our solve."""
        return report

    def peer_result(self, report):
        """The seconds and the error of the peer's solve."""
        return report


class Prune:
    """Calibration (100 prompts, 25 steps) and solve of emoji-mmdit, 50 % in one package.

    8 pictures at a time. The rest is what each side does if not told otherwise. Ours leaves out the
    pictures of its report, which belong to neither stage.
    """

    name = group = "prune"

    def prepare(self, folder, threads):
        """Writes nothing: the prompts are the model's."""
        options = ["--sparsity", 0.5, "--steps", 25, "--seed", 0, "--threads", threads]
        ours = [SECATEUR, "prune", MODEL, *options, "--samples", 100, "--packages", 1]
        ours += ["--report-samples", 0, "--out", folder / "pruned"]
        self.our_command = [*ours, "--force", "--quiet", "--json"]
        peer = [sys.executable, PEER / "prune.py", "--model", MODEL, *options]
        self.peer_command = [*peer, "--count", 100, "--batch", 8]

    def our_result(self, report):
        """The seconds of our run."""
        stages = stages_of(report, ["calibrate", "solve"])
        return {"seconds": sum(stages.values()), "stages": stages}

    def peer_result(self, report):
        """The seconds of the peer's run."""
        stages = {name: report[f"{name}_seconds"] for name in ("calibrate", "solve")}
        return {"seconds": sum(stages.values()), "stages": stages}


# The kernel whose operations a second are taken for the machine's.
PRODUCT = Kernel("linear 2048x2048x2048")

CASES = [
    PRODUCT,
    Kernel("linear 1024x256x256"),
    Kernel("linear 1024x256x1024"),
    Kernel("linear 1024x1024x256"),
    Kernel("linear 128x256x1024"),
    Kernel("linear 2x256x1536"),
    Kernel("attention b2 h8 n4096 d40"),
    Kernel("attention b2 h16 n256 d72"),
    Kernel("attention b16 h8 n128 d32"),
    Kernel("conv 3x3 stride 1 2x320x64x64"),
    Kernel("conv 3x3 stride 2 2x320x64x64"),
    Kernel("conv 1x1 stride 1 2x320x64x64"),
    Kernel("group norm 2x320x64x64"),
    Kernel("layer norm 8192x320"),
    Kernel("gelu 2x4096x1280"),
    Kernel("gelu tanh 2x4096x1280"),
    Kernel("silu 2x320x64x64"),
    Kernel("softmax 16384x512"),
    Kernel("gram 8192x1536"),
    Kernel("gram 1024x256"),
    Kernel("gram 1024x1024"),
    Generate(1),
    Generate(8),
    Generate(1, "unet"),
    Generate(8, "unet"),
    Generate(8, "dit"),
    Solve(1536, 1536, "50"),
    Solve(1536, 1536, "2:4"),
    Solve(2432, 2432, "50"),
    Solve(2432, 2432, "2:4"),
    Solve(1536, 6144, "50"),
    Prune(),
]

GROUPS = list(dict.fromkeys(case.group for case in CASES))


class Machine:
    """What the machine can do at best, by which the floor of a kernel's time is reckoned."""

    def __init__(self, product):
        self.rate = product["flop"] / min(product["ours"], product["peer"])
        self.bandwidth = copy_bandwidth()

    def __str__(self):
        rate, bandwidth = self.rate / 1e9, self.bandwidth / 1e9
        return f"The machine: {rate:.1f} GFLOPS ({PRODUCT.name}), {bandwidth:.1f} GB/s (copy)"

    def floor(self, row):
        """The least time that a kernel's operations and bytes need, and what else to report."""
        floor = max(row["flop"] / self.rate, row["bytes"] / self.bandwidth)
        return {
            "floor": floor,
            "of_floor": floor / row["ours"],
            "machine_flops": self.rate,
            "machine_bytes_per_second": self.bandwidth,
        }


def copy_bandwidth():
    """The bytes a second that the best copy of 256 MiB reads and writes."""
    x = torch.ones(2**26)
    y = torch.empty_like(x)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        y.copy_(x)
        best = min(best, time.perf_counter() - start)
    return 2 * x.nbytes / best


def measure(case, folder, repeats, threads):
    """The best times of both sides, taken in turns, and whether the goal is met."""
    case.prepare(folder, threads)
    ours, peer = [], []
    for _ in range(repeats):
        ours.append(case.our_result(run(case.our_command, threads, case.name)))
        peer.append(case.peer_result(run(case.peer_command, threads, case.name)))
    ours, peer = (sorted(side, key=lambda result: result["seconds"]) for side in (ours, peer))
    row = {
        "case": case.name,
        "ours": ours[0]["seconds"],
        "peer": peer[0]["seconds"],
    }
    row["ratio"] = row["ours"] / row["peer"]
    row |= {key: ours[0][key] for key in ("operations", "flop", "bytes") if key in ours[0]}
    if "stages" in ours[0]:
        row |= {"our_stages": ours[0]["stages"], "peer_stages": peer[0]["stages"]}
    if "error" in ours[0]:
        row |= {"our_error": ours[0]["error"], "peer_error": peer[0]["error"]}
    if case.name in GOALS:
        row["goal"] = GOALS[case.name]
        accurate = row.get("our_error", 0) <= ERROR_MARGIN * row.get("peer_error", 0)
        row["met"] = row["ratio"] <= row["goal"] and accurate
    return row


def duration(seconds):
    """A time in seconds, milliseconds or microseconds."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            break
    return f"{seconds * factor:.2f} {unit}"


def line(row):
    """A row as a line of the table."""
    times = f"{duration(row['ours'])} | {duration(row['peer'])} | {row['ratio']:.2f}"
    goal = f"{row['goal']:.2f} | {'yes' if row['met'] else 'no'}" if "goal" in row else " | "
    floor = f"{row['of_floor']:.0%}" if "of_floor" in row else ""
    errors = f"{row['our_error']:.5f} / {row['peer_error']:.5f}" if "our_error" in row else ""
    return f"| {row['case']} | {times} | {goal} | {floor} | {errors} |"


def details(row):
    """What a row says beside its line of the table."""
    if "operations" in row:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in row["operations"].items())
        print(f"\n{row['case']}, share of our time: {shares}")
    if "our_stages" in row:
        pairs = [(name, ours, row["peer_stages"][name]) for name, ours in row["our_stages"].items()]
        stages = [f"{name} {duration(ours)} / {duration(peer)}" for name, ours, peer in pairs]
        print(f"\n{row['case']}, ours / peer: {', '.join(stages)}")


def choose(parser, only, groups):
    """The cases that the options name: all but prune if they name none."""
    if not only and not groups:
        return [case for case in CASES if case.group != "prune"]
    for part in only:
        if not any(part in case.name for case in CASES):
            parser.error(f"no case is called {part}")
    named = [case for case in CASES if any(part in case.name for part in only)]
    return [case for case in CASES if case in named or case.group in groups]


def main():
    names = ", ".join(case.name for case in CASES)
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=f"All but prune run if neither --only nor --group is given. Cases: {names}.",
    )
    only = "cases to run: a name or a part of it, repeatable"
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=only)
    group = "group of cases to run, repeatable"
    parser.add_argument("--group", action="append", default=[], choices=GROUPS, help=group)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each case")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides")
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args()
    chosen = choose(parser, arguments.only, arguments.group)
    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        options = (Path(folder), arguments.repeats, arguments.threads)
        if any(case.group == "kernels" for case in chosen):
            product = measure(PRODUCT, *options)
            machine = Machine(product)
            print(f"{machine}\n")
        header = "case | ours | peer | ours / peer | goal | met | of the floor | error, ours / peer"
        print(f"| {header} |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for case in chosen:
            row = product if case is PRODUCT else measure(case, *options)
            rows.append(row | machine.floor(row) if case.group == "kernels" else row)
            print(line(rows[-1]), flush=True)
    for row in rows:
        details(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
