"""Where each kind of layer keeps its inputs and outputs."""

from dataclasses import dataclass

from torch import nn

from .geometry import Slices


@dataclass(frozen=True)
class Layout:
    """Where a weight keeps its inputs and outputs.

    Args:
        inputs: the slices that read one input each.
        outputs: the slices that write one output each; None where they are not slices.
    """

    inputs: Slices
    outputs: Slices | None


_MATRIX = Layout(Slices(1), Slices(0))
# An LSTM stacks its gates along axis 0, so a hidden unit is several slices there.
_GATES = Layout(Slices(1), None)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Known by name, so that the library they come from need not be installed.
_TRANSPOSED_LINEAR = "transformers.pytorch_utils.Conv1D"


def layout_of(module: nn.Module, name: str) -> Layout | None:
    """The layout of the parameter called `name` in `module`; None for one that stays free."""
    if isinstance(module, nn.Linear) and name == "weight":
        return _MATRIX
    if isinstance(module, _CONV) and name == "weight":
        return Layout(Slices(1, conv_groups=module.groups), Slices(0))
    if isinstance(module, _CONV_TRANSPOSE) and name == "weight":
        return Layout(Slices(0), Slices(1, conv_groups=module.groups))
    if isinstance(module, _RECURRENT) and name.startswith("weight_"):
        return _GATES
    if isinstance(module, nn.MultiheadAttention):
        if name == "in_proj_weight":
            return _GATES  # queries, keys and values are stacked along axis 0
        if name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            return _MATRIX
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__}
    if _TRANSPOSED_LINEAR in kinds and name == "weight":
        return Layout(Slices(0), Slices(1))
    return None
