"""Measures secateur beside diffusers and PyTorch, in turns, and prints a table of ratios.

The peer's scripts run under the interpreter that runs this one. Each case is repeated, ours and the
peer's by turns, and the best time of each counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / "bench" / "peer"
SECATEUR = ROOT / "target" / "release" / "secateur"
SOLVE_EXAMPLE = ROOT / "target" / "release" / "examples" / "solve"
MODEL = ROOT / "models" / "emoji-mmdit"

# The most that our time may be of the peer's.
GOALS = {"generate-8": 2.0, "solve-1536x1536-50": 1 / 3, "solve-1536x1536-2:4": 1 / 3}

# A faster solve counts only if its error is at most this many times the peer's.
ERROR_MARGIN = 1.02


def run(command, threads):
    """The JSON object that a command prints last."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} is not there: cargo build --release --examples") from None
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout[done.stdout.index("{") :])


def seconds_of(report, names):
    """The seconds that secateur reports for some of its stages."""
    stages = {stage["name"]: stage["seconds"] for stage in report["stages"]}
    missing = [name for name in names if name not in stages]
    if missing:
        raise SystemExit(f"secateur reports the stages {list(stages)}, not {missing}")
    return {"seconds": sum(stages[name] for name in names)}


class Generate:
    """Text encoding, denoising and decoding of held-out prompts: 25 steps, guidance 4, float32."""

    def __init__(self, count):
        self.name = f"generate-{count}"
        self.count = count

    def prepare(self, folder, threads):
        """Writes the prompts."""
        prompts = folder / f"{self.name}.txt"
        lines = (MODEL / "prompts" / "held_out.txt").read_text(encoding="utf-8").splitlines()
        text = "".join(f"{line}\n" for line in lines[: self.count])
        prompts.write_text(text, encoding="utf-8")
        options = ["--prompts", prompts, "--steps", 25, "--guidance", 4, "--batch", 8]
        options += ["--threads", threads]
        ours = [SECATEUR, "generate", MODEL, *options, "--seed", 0, "--out", folder / self.name]
        self.our_command = [*ours, "--profile", "--force", "--quiet", "--json"]
        self.peer_command = [sys.executable, PEER / "generate.py", "--model", MODEL, *options]

    def our_result(self, report):
        """The seconds of our run."""
        shares = {part["operation"]: part["share"] for part in report["operations"]}
        return seconds_of(report, ["generate"]) | {"operations": shares}

    def peer_result(self, report):
        """The seconds of the peer's run."""
        return report


class Solve:
    """The OBS solve of one layer: 50 % or an N:M pattern."""

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
    """Calibration (100 prompts) and solve of emoji-mmdit, 50 % in one package."""

    name = "prune"

    def prepare(self, folder, threads):
        """Writes nothing: prompts and defaults are the model's."""
        ours = [SECATEUR, "prune", MODEL, "--sparsity", 0.5, "--packages", 1, "--seed", 0]
        self.our_command = [*ours, "--out", folder / "pruned", "--force", "--quiet", "--json"]
        peer = [sys.executable, PEER / "prune.py", "--model", MODEL, "--sparsity", 0.5]
        self.peer_command = [*peer, "--threads", threads]

    def our_result(self, report):
        """The seconds of our run."""
        return seconds_of(report, ["calibrate", "solve"])

    def peer_result(self, report):
        """The seconds of the peer's run."""
        return {"seconds": report["calibrate_seconds"] + report["solve_seconds"]}


CASES = [
    Generate(1),
    Generate(8),
    Solve(1536, 1536, "50"),
    Solve(1536, 1536, "2:4"),
    Solve(2432, 2432, "50"),
    Solve(2432, 2432, "2:4"),
    Solve(1536, 6144, "50"),
    Prune(),
]


def measure(case, repeats, threads):
    """The best times of both sides, taken in turns, and whether the goal is met."""
    ours, peer = [], []
    for _ in range(repeats):
        ours.append(case.our_result(run(case.our_command, threads)))
        peer.append(case.peer_result(run(case.peer_command, threads)))
    row = {
        "case": case.name,
        "ours": min(result["seconds"] for result in ours),
        "peer": min(result["seconds"] for result in peer),
    }
    row["ratio"] = row["ours"] / row["peer"]
    if "operations" in ours[-1]:
        row["operations"] = ours[-1]["operations"]
    if "error" in ours[0]:
        row |= {"our_error": ours[0]["error"], "peer_error": peer[0]["error"]}
    if case.name in GOALS:
        row["goal"] = GOALS[case.name]
        accurate = row.get("our_error", 0) <= ERROR_MARGIN * row.get("peer_error", 0)
        row["met"] = row["ratio"] <= row["goal"] and accurate
    return row


def line(row):
    """A row as a line of the table."""
    times = f"{row['ours']:.2f} s | {row['peer']:.2f} s | {row['ratio']:.2f}"
    errors = f"{row['our_error']:.5f} / {row['peer_error']:.5f}" if "our_error" in row else ""
    goal = f"{row['goal']:.2f} | {'yes' if row['met'] else 'no'}" if "goal" in row else " | "
    return f"| {row['case']} | {times} | {goal} | {errors} |"


def main():
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    only = f"a case to run, repeatable (default: all but prune): {', '.join(names)}"
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=only)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each case")
    parser.add_argument("--threads", type=int, default=2, help="threads of both sides")
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args()
    chosen = arguments.only or [name for name in names if name != "prune"]
    rows = []
    print("| case | ours | peer | ours / peer | goal | met | error, ours / peer |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if case.name in chosen:
                case.prepare(Path(folder), arguments.threads)
                rows.append(measure(case, arguments.repeats, arguments.threads))
                print(line(rows[-1]), flush=True)
    for row in rows:
        if "operations" in row:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in row["operations"].items())
            print(f"\n{row['case']}, share of our time: {shares}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
