"""How structured a network is, per layer and in total."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..joint import Joint
from ..kinds import check_kinds
from ..optim import ProximalOptimizer
from ..penalties import Penalty, Rank, Structure, Support
from ..sharding import whole


@dataclass(frozen=True)
class LayerStructure:
    """The structure of one penalized parameter, or of the parameters of one coupled group.

    Args:
        name: the parameter's name, or its place as "group.index"; of a coupled group the first's,
            with the number of the others.
        shape: its shape; of a coupled group that of the vector of all entries.
        penalty: its penalty, as text.
        parameters: its penalized entries.
        zeros: those exactly zero.
        size: how large its structure is: live groups or entries, or its rank.
        total: how large that could be.
        in_dead_groups: entries that lie in dead groups; None without groups.
        is_low_rank: whether `size` is a rank.
    """

    name: str
    shape: tuple[int, ...]
    penalty: str
    parameters: int
    zeros: int
    size: int
    total: int
    in_dead_groups: int | None
    is_low_rank: bool


@dataclass(frozen=True)
class NetworkStructure:
    """The structure of a network's penalized parameters; printed, a table.

    The shares are None where no layer has that kind of structure.

    Args:
        layers: one entry per penalized parameter or coupled group.
        point: which point was read, "structured" or "iterate".
    """

    layers: tuple[LayerStructure, ...]
    point: str

    @property
    def group_sparsity(self) -> float | None:
        """Dead groups over all groups; for entrywise penalties each entry is a group."""
        layers = [layer for layer in self.layers if layer.in_dead_groups is not None]
        return _share((x.total - x.size for x in layers), (x.total for x in layers))

    @property
    def weighted_group_sparsity(self) -> float | None:
        """Parameters in dead groups over all penalized ones, the papers' measure.

        Source: arXiv:2403.14398, section 6.
        """
        layers = [layer for layer in self.layers if layer.in_dead_groups is not None]
        return _share((x.in_dead_groups or 0 for x in layers), (x.parameters for x in layers))

    @property
    def unstructured_sparsity(self) -> float | None:
        """Exact zeros over all penalized parameters."""
        return _share((x.zeros for x in self.layers), (x.parameters for x in self.layers))

    @property
    def low_rank_level(self) -> float | None:
        """1 - nonzero singular values over all, among the layers with a spectral penalty.

        Source: arXiv:2403.14398, appendix E.
        """
        layers = [layer for layer in self.layers if layer.is_low_rank]
        return _share((x.total - x.size for x in layers), (x.total for x in layers))

    def to_dict(self) -> dict[str, float | None]:
        """The four shares by name."""
        return {
            "group_sparsity": self.group_sparsity,
            "weighted_group_sparsity": self.weighted_group_sparsity,
            "unstructured_sparsity": self.unstructured_sparsity,
            "low_rank_level": self.low_rank_level,
        }

    def __str__(self) -> str:
        lines = [f"{'layer':24}{'shape':>16}{'live':>8}{'of':>8}{'zeros':>9}"]
        for layer in self.layers:
            shape = "x".join(map(str, layer.shape))
            zeros = layer.zeros / max(layer.parameters, 1)
            lines.append(f"{layer.name:24}{shape:>16}{layer.size:>8}{layer.total:>8}{zeros:>9.1%}")
        lines.append(
            f"at the {self.point} point" if self.point == "structured" else "at the iterate"
        )
        lines += [
            f"{name.replace('_', ' '):24}{value:>8.1%}"
            for name, value in self.to_dict().items()
            if value is not None
        ]
        return "\n".join(lines)


def _share(parts: Iterable[int], wholes: Iterable[int]) -> float | None:
    part, whole = sum(parts), sum(wholes)
    return part / whole if whole else None


def penalized_points(
    opt: ProximalOptimizer, at: Literal["structured", "iterate"] = "structured"
) -> Iterable[tuple[str, Penalty, Tensor, Structure]]:
    """Name, penalty, point and its structure, for every penalized parameter that is trained.

    A coupled group comes once, with all entries as one `Joint`; so does a sharded parameter that
    has groups. Of what is left, sharded parameters are gathered, one at a time.
    """
    for unit in opt.units():
        penalty = unit.group["penalty"]
        if penalty is None or not any(param.requires_grad for param in unit.params):
            continue
        points = unit.params if at == "iterate" else opt.structured_points(unit)
        point = unit.point([point.detach() for point in points])
        if not isinstance(point, Joint):
            point = whole(point)
        # Singular values are not to be had in half precision.
        wide = point.to(torch.promote_types(point.dtype, torch.float32))
        yield unit.name, penalty, point, penalty.structure(wide)


def _penalized_and_zero(penalty: Penalty, point: Tensor) -> tuple[int, int]:
    """How many entries a penalty is about, and how many of them are zero."""
    if isinstance(point, Joint):
        is_penalized = point.coupling.is_grouped(point.device).expand_as(point)
        return int(is_penalized.sum()), int(((point == 0) & is_penalized).sum())
    entries = penalty.penalized_entries(point)
    return entries.numel(), int((entries == 0).sum())


def _shape(point: Tensor) -> tuple[int, ...]:
    """That of a tensor, or of the vector of all entries of several."""
    if not isinstance(point, Joint):
        return tuple(point.shape)
    shapes = point.coupling.shapes
    return shapes[0] if len(shapes) == 1 else (point.numel(),)


def structure(
    opt: ProximalOptimizer, at: Literal["structured", "iterate"] = "structured"
) -> NetworkStructure:
    """The structure of the network that `opt` trains, per layer and in total.

    Args:
        opt: a dualprox optimizer.
        at: which point to read. The iterate of RMDA and RAMDA is an average: its dead groups are
            tiny but not zero until training ends.

    Returns:
        Layers and shares; frozen and unpenalized parameters do not count. Synchronises.

    Example:
        >>> import torch, dualprox as dp
        >>> w = torch.nn.Parameter(torch.ones(2, 4))
        >>> opt = dp.RMDA([{"params": [w], "penalty": dp.GroupLasso(0.5)}], lr=1.0)
        >>> (w * torch.tensor([1.0, 0.5, 0.0, 0.0])).sum().backward(); opt.step()
        >>> dp.structure(opt).group_sparsity, dp.structure(opt, at="iterate").group_sparsity
        (0.5, 0.0)
    """
    check_kinds(structure, locals())
    if at not in ("structured", "iterate"):
        raise ValueError(f"at must be 'structured' or 'iterate', got {at!r}")
    layers = []
    with torch.no_grad():
        for name, penalty, point, found in penalized_points(opt, at):
            entries, zeros = _penalized_and_zero(penalty, point)
            layers.append(
                LayerStructure(
                    name=name,
                    shape=_shape(point),
                    penalty=str(penalty),
                    parameters=entries,
                    zeros=zeros,
                    size=found.count(),
                    total=found.total(),
                    in_dead_groups=found.dead_entries() if isinstance(found, Support) else None,
                    is_low_rank=isinstance(found, Rank),
                )
            )
    return NetworkStructure(tuple(layers), at)
