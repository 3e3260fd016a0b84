"""A network whose layer norms look at some channels alone: what one without the others computes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .compact import Compaction

_NORMS = {torch.nn.functional.layer_norm, torch.nn.functional.rms_norm}


class NarrowNorms(nn.Module):
    """Runs a network; its layer norms see only the channels that stay, and write zeros elsewhere.

    Args:
        model: the network, not copied.
        kept: name of a norm's weight -> the channels that it normalizes.
    """

    def __init__(self, model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.kept = model, dict(kept)

    @staticmethod
    def of(model: nn.Module, found: Compaction) -> nn.Module:
        """The network as it is with norms narrowed to what was found; itself, if none is."""
        kept = {
            name: torch.from_numpy(found.removal.kept(units))
            for name, units in found.analysis.norm_units.items()
            if found.removal.removed[units].any()
        }
        return NarrowNorms(model, kept) if kept else model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the network."""
        norms = {id(self.model.get_parameter(name)): kept for name, kept in self.kept.items()}
        fused = torch.backends.mha.get_fastpath_enabled()
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # there is no norm in it to narrow
            with _Narrowing(norms):
                return self.model(*args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)


class _Narrowing(TorchFunctionMode):
    """Meanwhile, norms with these weights, by their ids, look at these channels."""

    def __init__(self, norms: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.norms = norms

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _NORMS:
            return func(*args, **kwargs)
        names = ("input", "normalized_shape", "weight", "bias", "eps")
        names = names if func is torch.nn.functional.layer_norm else (*names[:3], "eps")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        kept = self.norms.get(id(given.get("weight")))
        if kept is None:
            return func(**given)
        width, kept = given["input"].shape[-1], kept.to(given["input"].device)
        for name in ("input", "weight", "bias"):
            if given.get(name) is not None:
                given[name] = given[name].index_select(-1, kept)
        found = func(**{**given, "normalized_shape": (len(kept),)})
        whole = found.new_zeros(*found.shape[:-1], width)
        return whole.index_copy(-1, kept, found)
