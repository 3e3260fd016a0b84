"""Out of the door: files that another program runs, or that rebuild the slim network."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..files import replaced, write_atomically, write_text
from ..kinds import check_kinds
from .agreement import largest_difference, real_outputs
from .factorize import factorize_like
from .inputs import ExampleInput, Inputs, undisturbed
from .plan import Plan, apply_plan, read_plan
from .report import ShrinkReport
from .sparsify import sparsify_like
from .trace import ShrinkError

WEIGHTS, PLAN = "slim.safetensors", "plan.json"
_RUNTIME_TOLERANCE = 1e-4  # of the largest output; another program adds in another order


def save_slim(slim: nn.Module, folder: str | Path) -> None:
    """Write a slim network as ``slim.safetensors`` and ``plan.json``; nothing in them is code.

    `load_slim` makes the network again from them and the user's own model class.

    Args:
        slim: made by `shrink`, `factorize` or `sparsify`.
        folder: made if it does not exist. Files of these names are replaced when whole.

    Raises:
        ValueError: the network has no report with a plan.
        ImportError: safetensors is missing.
    """
    check_kinds(save_slim, locals())
    save = _safetensors().save
    report = getattr(slim, "report", None)
    if not isinstance(report, ShrinkReport) or not report.plan:
        raise ValueError(f"slim must be made by shrink, got {type(slim).__name__} without a report")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().contiguous() for name, tensor in _distinct(slim.state_dict()).items()
    }
    content = save(tensors)
    write_atomically(folder / WEIGHTS, lambda file: file.write(content))
    write_text(folder / PLAN, json.dumps(dict(report.plan)))


def load_slim(model: nn.Module, folder: str | Path) -> nn.Module:
    """The slim network that `save_slim` wrote, around a fresh network of the dense architecture.

    Args:
        model: made as the dense network was made; untouched.
        folder: that `save_slim` wrote to.

    Raises:
        ValueError: the plan is damaged or does not fit the model, or the weights do not fit.
        ImportError: safetensors is missing.
    """
    check_kinds(load_slim, locals())
    load = _safetensors().load_file
    slim = _rebuilt(model, Path(folder) / PLAN)
    try:
        tensors = load(str(Path(folder) / WEIGHTS))
    except Exception as error:  # safetensors has its own exceptions for damaged files
        raise ValueError(f"{Path(folder) / WEIGHTS} is damaged: {error}") from error
    expected = _distinct(slim.state_dict())
    if tensors.keys() != expected.keys():
        names = ", ".join(sorted(tensors.keys() ^ expected.keys()))
        raise ValueError(f"{folder} must hold the model's tensors; only one of them has {names}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{folder} must hold the model's tensors; {name} has shape {tuple(tensor.shape)} "
                f"there and {tuple(expected[name].shape)} in the model"
            )
        with torch.no_grad():
            expected[name].copy_(tensor)
    return slim


def _rebuilt(model: nn.Module, path: Path) -> nn.Module:
    """The architecture that a plan of `shrink`, `factorize` or `sparsify` leads to."""
    values = read_plan(path)
    change = values.get("change") if isinstance(values, dict) else None
    likes = {"factorize": factorize_like, "sparsify": sparsify_like}
    if isinstance(change, str) and change in likes:
        return likes[change](model, values)
    return apply_plan(model, Plan.from_dict(values))


def _distinct(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied tensors once, under their first name."""
    seen: dict[tuple[int, torch.Size], str] = {}
    return {
        name: tensor
        for name, tensor in state.items()
        if seen.setdefault((tensor.data_ptr() or id(tensor), tensor.shape), name) == name
    }


def export_program(model: nn.Module, example_input: ExampleInput) -> torch.export.ExportedProgram:
    """The network in evaluation as a `torch.export` program, whose batch may have any size.

    Where the network's code allows but one size of the batch, that is the example's.

    Args:
        model: any module.
        example_input: as in `shrink`.

    Raises:
        ShrinkError: torch.export cannot trace the network.
    """
    check_kinds(export_program, locals())
    given = Inputs.of(example_input)
    size = given.batch_size

    def axes(tensor: Any) -> Any:
        free = isinstance(tensor, Tensor) and tensor.dim() and tensor.shape[0] == size
        return {0: torch.export.Dim.AUTO} if free else None

    args, kwargs = pytree.tree_map(axes, (given.args, given.kwargs))
    try:
        # Two of them: torch takes an axis of length one for a constant.
        free = _exported(model, given.at_batch(2), {**dict(enumerate(args)), **kwargs})
    except ShrinkError:  # perhaps for the batch alone; if not, it is raised again below
        return _exported(model, given, None)
    return free if free.range_constraints else _exported(model, given, None)


def _exported(model: nn.Module, inputs: Inputs, axes: Any) -> torch.export.ExportedProgram:
    # A dict of axes stands for keyword arguments, by name; a tuple for positional ones.
    shapes = axes if axes is None or inputs.kwargs else tuple(axes.values())
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(
                model, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        raise ShrinkError(
            f"torch.export cannot export {type(model).__name__}: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    finally:
        for module, flag in training:
            module.training = flag


def save_program(model: nn.Module, example_input: ExampleInput, path: str | Path) -> None:
    """Write `export_program` to a ``.pt2`` file, which ``torch.export.load`` reads."""
    check_kinds(save_program, locals())
    program = export_program(model, example_input)
    write_atomically(Path(path), lambda file: torch.export.save(program, file))


def save_onnx(model: nn.Module, example_input: ExampleInput, path: str | Path) -> float:
    """Write the network in evaluation as ONNX, and run it in onnxruntime before it is kept.

    Args:
        model: any module.
        example_input: as in `shrink`; about the batch see `export_program`.
        path: of the file; an older one is replaced when the new one has been checked.

    Returns:
        The largest difference between onnxruntime's and torch's outputs.

    Raises:
        ShrinkError: the network cannot be exported, or onnxruntime's outputs differ.
        ImportError: onnx, onnxscript or onnxruntime is missing.
    """
    check_kinds(save_onnx, locals())
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, the exporter is written in it
    except ImportError as error:
        raise ImportError('ONNX needs more packages: pip install "dualprox[onnx]"') from error
    program = export_program(model, example_input)
    converted = _converted(program)
    given = Inputs.of(example_input)
    runs = [given]
    if program.range_constraints:
        runs.append(given.at_batch(3).at_random(torch.Generator().manual_seed(0)))
    worst = 0.0
    with replaced(Path(path)) as temporary:
        converted.save(str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        for run in runs:
            leaves = pytree.tree_leaves((run.args, run.kwargs))
            feed = {name: leaf.cpu().numpy() for name, leaf in zip(names, leaves, strict=True)}
            with undisturbed(model):
                wanted = [t.detach().cpu() for t in real_outputs(run.run(model))]
            found = [torch.from_numpy(array) for array in session.run(None, feed)]
            found = [tensor for tensor in found if tensor.is_floating_point()]
            apart = largest_difference(wanted, found)
            largest = max((float(t.abs().max()) for t in wanted if t.numel()), default=0.0)
            if apart > _RUNTIME_TOLERANCE * max(largest, 1e-6):
                raise ShrinkError(f"onnxruntime's outputs differ from torch's by {apart:.3g}")
            worst = max(worst, apart)
    return worst


def _converted(program: torch.export.ExportedProgram) -> Any:
    """The program in ONNX, without word of packages that torch's exporter would use as well."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(program, dynamo=True, verbose=False)
    finally:
        logger.setLevel(level)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError('this needs safetensors: pip install "dualprox[lab]"') from error
    return safetensors.torch
