"""Does anything grow in a process that trains for hours: memory, file handles, threads, files?

    python benchmarks/soak.py --hours 4
    python benchmarks/soak.py --hours 4 --device cuda

Two processes run side by side: `dualprox train` on digits with more epochs than it will reach, and
a loop of one's own that restarts, saves and loads, and looks at the structured point again and
again. Both are looked at from outside. The growth of a quantity is the slope of a line through the
medians of ten equal parts of the time after the first fifth, with a 95 % confidence interval; it is
flat if that lies below 1 % of its median per hour, growing if it lies above, else undecided: a
longer run decides. Writes soak.json and soak.png into --out.
"""

import argparse
import io
import json
import math
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import dualprox as dp
from dualprox.files import write_json, write_png

# After this share of the time caches are warm; parts of the rest, and Student's t at 97.5 % for
# a line through so many points.
WARM, PARTS, STUDENT = 0.2, 10, 2.306
LIMIT = 0.01  # of the median, per hour
MIB = 2**20
# What is said of each process, in which unit; only what is listed in FLAT has to be flat.
QUANTITIES = {
    "rss": "MiB",
    "handles": "",
    "threads": "",
    "gpu": "MiB",
    "folder": "MiB",
    "files": "",
    "epochs": "",
}
FLAT = ("rss", "handles", "threads", "gpu", "files")


def loop(device: str) -> None:
    """Everything that the library keeps or makes anew, until somebody kills it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 10)
    ).to(device)
    kinds = [dp.RMDA, dp.RAMDA, dp.ProxSGD, dp.ProxAdamW]
    opts = [kind(dp.param_groups(model, dp.GroupLasso(1e-4)), lr=1e-3) for kind in kinds]
    opts.append(dp.RAMDA(dp.param_groups(model, dp.NuclearNorm(1e-4)), lr=1e-3))
    monitors = [dp.StructureMonitor(opt) for opt in opts]
    example = torch.randn(1, 3, 8, 8, device=device)
    saved = io.BytesIO()
    while True:
        for opt, monitor in zip(opts, monitors, strict=True):
            for _ in range(20):
                x = torch.randn(32, 3, 8, 8, device=device)
                opt.zero_grad()
                model(x).square().mean().backward()
                assert not dp.nonfinite_gradients(opt)
                opt.step()
            monitor.update()
            with opt.structured():
                dp.structure(opt)
            saved.seek(0)
            saved.truncate()
            torch.save([opt.state_dict(), monitor.state_dict()], saved)
            saved.seek(0)
            state, seen = torch.load(saved, weights_only=True)
            opt.load_state_dict(state)
            monitor.load_state_dict(seen)
            if isinstance(opt, dp.DualAveraging):
                opt.restart()
        dp.measure(model, example, latency=False)


def look(process: int, folder: Path | None, gpu: dict[int, float]) -> dict[str, float]:
    """What a process holds now."""
    status = Path(f"/proc/{process}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    found = {
        "rss": int(fields["VmRSS"].split()[0]) / 1024,
        "threads": float(fields["Threads"]),
        "handles": float(len(list(Path(f"/proc/{process}/fd").iterdir()))),
    }
    if process in gpu:
        found["gpu"] = gpu[process]
    if folder is not None:
        # A checkpoint on its way is none of what stays.
        files = [p for p in folder.rglob("*") if not p.name.startswith(".")]
        found["files"] = float(len(files))
        found["folder"] = sum(_size(path) for path in files) / MIB
        metrics = folder / "metrics.jsonl"
        if metrics.exists():
            with open(metrics, "rb") as file:
                file.seek(max(0, _size(metrics) - 4096))
                lines = file.read().split(b"\n")
            found["epochs"] = float(json.loads(lines[-2])["epoch"])
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # replaced since
        return 0


def gpu_memory() -> dict[int, float]:
    """MiB by process, as the driver says; none without one."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        return {int(a): float(b) for a, b in (line.split(",") for line in text.splitlines())}
    except (FileNotFoundError, subprocess.CalledProcessError, ValueError):
        return {}


def growth(hours: list[float], values: list[float]) -> dict[str, Any]:
    """Slope per hour with its confidence interval, and a verdict."""
    begin = hours[0] + WARM * (hours[-1] - hours[0])
    kept = [(h, v) for h, v in zip(hours, values, strict=True) if h >= begin]
    size = len(kept) // PARTS
    if size < 1:
        raise SystemExit("too few samples: give more --hours, or a smaller --every")
    parts = [kept[i * size : (i + 1) * size] for i in range(PARTS)]
    x = [statistics.mean(h for h, _ in part) for part in parts]
    y = [statistics.median(v for _, v in part) for part in parts]
    slope, intercept = statistics.linear_regression(x, y)
    rest = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    spread = sum((a - statistics.mean(x)) ** 2 for a in x)
    margin = STUDENT * math.sqrt(rest / (PARTS - 2) / spread)
    median = statistics.median(y)
    limit = LIMIT * max(median, 1.0)
    low, high = slope - margin, slope + margin
    verdict = "flat" if high < limit else "growing" if low > limit else "undecided"
    return {
        "median": median,
        "first": y[0],
        "last": y[-1],
        "per_hour": slope,
        "low": low,
        "high": high,
        "verdict": verdict,
    }


def plot(samples: dict[str, list[dict[str, float]]]) -> Figure:
    """Every quantity over time, a line for each process."""
    names = [name for name in QUANTITIES if any(name in rows[-1] for rows in samples.values())]
    figure = Figure(figsize=(8, 1.7 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), 1, sharex=True), names, strict=True):
        for process, rows in samples.items():
            shown = [(row["hours"], row[name]) for row in rows if name in row]
            if shown:
                axes.plot(*zip(*shown, strict=True), label=process, linewidth=1.2)
        axes.set_ylabel(f"{name} ({QUANTITIES[name]})" if QUANTITIES[name] else name)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, ncols=2)
    figure.axes[-1].set_xlabel("hours")
    return figure


def watch(hours: float, every: float, device: str) -> dict[str, list[dict[str, float]]]:
    """Let both run, and look at them.

    Raises:
        SystemExit: one of them ended by itself, or training does not stop in good order.
    """
    samples: dict[str, list[dict[str, float]]] = {"dualprox train": [], "own loop": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        fields = ["epochs=100000000", "milestones=", "baseline=none", f"device={device}"]
        train = [sys.executable, "-m", "dualprox", "train", "--out", str(folder), "--set", *fields]
        own = [sys.executable, __file__, "--loop", "--device", device]
        processes = {
            name: subprocess.Popen(command, stdout=subprocess.DEVNULL)
            for name, command in zip(samples, (train, own), strict=True)
        }
        began = time.monotonic()
        try:
            while time.monotonic() - began < 3600 * hours:
                time.sleep(every)
                gpu = gpu_memory() if device != "cpu" else {}
                for name, process in processes.items():
                    if process.poll() is not None:
                        raise SystemExit(f"{name} ended with {process.returncode}")
                    at = (time.monotonic() - began) / 3600
                    seen = look(process.pid, folder if "train" in name else None, gpu)
                    samples[name].append({"hours": at, **seen})
            processes["dualprox train"].send_signal(signal.SIGTERM)
            code = processes["dualprox train"].wait(60)
            if code != 143:
                raise SystemExit(f"training ended with {code}, not 143, after SIGTERM")
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
    return samples


def main() -> None:
    """Soak, and say what grew.

    Raises:
        SystemExit: something that must be flat has grown.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=4.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--loop", action="store_true", help="be the loop that is looked at")
    args = parser.parse_args()
    if args.loop:
        loop(args.device)
    samples = watch(args.hours, args.every, args.device)
    found: dict[str, dict[str, Any]] = {}
    for process, rows in samples.items():
        found[process] = {}
        for name in QUANTITIES:
            known = [row for row in rows if name in row]
            if len(known) < PARTS:
                continue
            told = growth([row["hours"] for row in known], [row[name] for row in known])
            found[process][name] = told
            verdict = told["verdict"] if name in FLAT else ""
            print(
                f"{process:15} {name:8} {told['median']:10.1f} {QUANTITIES[name]:4}"
                f"{told['per_hour']:+10.3g} per hour ({told['low']:+.3g} to {told['high']:+.3g})"
                f"  {verdict}"
            )
    device = torch.cuda.get_device_name() if args.device != "cpu" else platform.machine()
    about = {"hours": args.hours, "every": args.every, "device": device, "torch": torch.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "soak.json", {**about, "growth": found, "samples": samples})
    write_png(args.out / "soak.png", plot(samples))
    pairs = [(process, name) for process in found for name in FLAT if name in found[process]]
    grown = [f"{n} of {p}" for p, n in pairs if found[p][n]["verdict"] == "growing"]
    if grown:
        raise SystemExit(f"growing: {', '.join(grown)}")


if __name__ == "__main__":
    main()
