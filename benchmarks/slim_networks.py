"""How much smaller and faster is a trained network after shrinking, and how accurate is it?

    dualprox train fsdd_conv1d_ramda --out runs/fsdd --set data_dir=DATA
    dualprox train cifar_resnet_ramda --out runs/cifar --set data_dir=DATA
    python benchmarks/slim_networks.py runs/fsdd runs/cifar --save

Shrinks the networks of finished run folders again, dense and slim timed in turns in one process,
writes ONNX beside each, and measures accuracy on the slim network and in onnxruntime. `--save`
stores benchmarks/results/slim-cpu.json from a clean git tree; `dualprox bench table --write` puts
it into the README. `--trained-at` notes the commit that trained them, if it is another.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import dualprox as dp
from dualprox.files import write_json
from dualprox.lab.bench import results
from dualprox.lab.data import load
from dualprox.lab.networks import example_input, make_model
from dualprox.lab.slim import shrink_run, summary_of, trained_model


@torch.no_grad()
def accuracy(model: Any, batches: Any) -> float:
    """Share of the validation examples that are classified right."""
    right = total = 0
    for inputs, labels in batches:
        right += int((model(inputs).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def row(folder: Path) -> dict[str, Any]:
    """What a finished run came to."""
    import onnxruntime

    run, model, plan = trained_model(folder)
    summary = json.loads((folder / "summary.json").read_text())
    split = load(run.data, run.data_dir)
    _, report = shrink_run(run, model, plan, folder)
    slim = dp.load_slim(make_model(run), folder).eval()
    onnx = folder / "slim.onnx"
    apart = dp.save_onnx(slim, example_input(run), onnx)
    session = onnxruntime.InferenceSession(onnx)
    name = session.get_inputs()[0].name
    return {
        "recipe": run.recipe,
        "data": run.data,
        "caveat": summary["caveat"],
        "epochs": run.epochs,
        "threads": run.threads,
        "coupled": run.coupled,
        "shrunk_while_trained": run.shrink_at_restart,
        "dense_val_accuracy": summary["dense_val_accuracy"],
        "train_seconds": summary["train_seconds"],
        **summary_of(report),
        "structured_accuracy": accuracy(model.eval(), split.validation()),
        "slim_accuracy": accuracy(slim, split.validation()),
        "onnx_accuracy": accuracy(
            lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), split.validation()
        ),
        "onnx_max_abs_diff": apart,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="finished run folders")
    parser.add_argument("--trained-at", metavar="HASH", help="the commit that trained them")
    parser.add_argument("--save", action="store_true", help="store the result")
    args = parser.parse_args()
    if args.save:
        results.require_storable(False, None)
    rows = [row(folder) for folder in args.runs]
    place = results.environment(torch.device("cpu"), max(r["threads"] for r in rows))
    result = results.complete(
        "slim", {"rows": rows}, place, {"quick": False, "trained_at": args.trained_at}
    )
    json.dump(rows, sys.stdout, indent=2)
    root = results.repository()
    if args.save and root is not None:
        write_json(root / "benchmarks" / "results" / "slim-cpu.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
