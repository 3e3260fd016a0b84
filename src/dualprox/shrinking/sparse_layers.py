"""Linear layers that hold the nonzero entries of their weight alone."""

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import require
from ..kinds import check_device, check_kinds


@functools.cache
def _hear_of_the_beta() -> None:
    """Torch says once per process that CSR is in beta; here nobody needs to be told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.zeros(1, 1).to_sparse_csr()


def _check_sizes(device: torch.device | str | None, **sizes: int) -> None:
    for name, size in sizes.items():
        ok = isinstance(size, int) and 0 <= size < 2**31  # column indices have 32 bits
        require(ok, name, "an int from 0 to 2**31 - 1", size)
    check_device(device)


class SparseLinear(nn.Module):
    """y = x W' + b with the nonzero entries of W in compressed sparse rows.

    The state dict holds plain tensors: `values`, `columns`, `row_starts` and, if there is one,
    `bias`. For inference: nothing makes a zero nonzero again.

    Args:
        in_features: as in nn.Linear.
        out_features: as in nn.Linear.
        nonzeros: entries of the weight that are held.
        bias: whether there is a bias.
        device: of the tensors.
        dtype: of values and bias.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 5.0]]))
        >>> sparse = SparseLinear.of(layer)
        >>> sparse
        SparseLinear(in_features=3, out_features=2, nonzeros=2, bias=True)
        >>> sparse.weight
        tensor([[0., 2., 0.],
                [0., 0., 5.]], grad_fn=...)
    """

    columns: Tensor
    row_starts: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        nonzeros: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_kinds(SparseLinear.__init__, locals())
        _check_sizes(device, in_features=in_features, out_features=out_features)
        ok = isinstance(nonzeros, int) and 0 <= nonzeros <= in_features * out_features
        require(ok, "nonzeros", f"an int from 0 to {in_features * out_features}", nonzeros)
        super().__init__()
        _hear_of_the_beta()
        self.in_features, self.out_features = in_features, out_features
        self.values = nn.Parameter(torch.zeros(nonzeros, device=device, dtype=dtype))
        # Half the bytes of torch's usual 64 bits, and faster.
        indices: dict[str, Any] = {"device": device, "dtype": torch.int32}
        self.register_buffer("columns", torch.zeros(nonzeros, **indices))
        self.register_buffer("row_starts", torch.zeros(out_features + 1, **indices))
        vector = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        self.register_parameter("bias", vector if bias else None)

    @classmethod
    def of(cls, layer: nn.Linear) -> "SparseLinear":
        """The layer with the same weight and bias, bit for bit."""
        matrix = layer.weight.detach()
        row, column = matrix.nonzero(as_tuple=True)
        shape = (layer.in_features, layer.out_features, len(row), layer.bias is not None)
        made = cls(*shape, device=matrix.device, dtype=matrix.dtype)
        counts = torch.bincount(row, minlength=layer.out_features)
        with torch.no_grad():
            made.values.copy_(matrix[row, column])
            made.columns.copy_(column)
            made.row_starts[1:] = counts.cumsum(0)
        if made.bias is not None:
            made.bias.data.copy_(layer.bias)
            made.bias.requires_grad_(layer.bias.requires_grad)
        made.values.requires_grad_(layer.weight.requires_grad)
        return made.train(layer.training)

    def _matrix(self) -> Tensor:
        _hear_of_the_beta()  # unpickled in another process, it may not have been made here
        return torch.sparse_csr_tensor(
            self.row_starts,
            self.columns,
            self.values,
            (self.out_features, self.in_features),
            check_invariants=False,
        )

    @property
    def weight(self) -> Tensor:
        """The weight as a dense matrix, made anew each time."""
        return self._matrix().to_dense()

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Linear."""
        rows = input.reshape(-1, self.in_features)
        if self.bias is None:
            product = self._matrix() @ rows.mT
        else:
            product = torch.addmm(self.bias[:, None], self._matrix(), rows.mT)
        return product.mT.reshape(*input.shape[:-1], self.out_features).contiguous()

    def extra_repr(self) -> str:
        """As nn.Linear."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, nonzeros={len(self.values)}, bias={self.bias is not None}"


def is_two_in_four(weight: Tensor) -> bool:
    """Whether at most two of every four neighbours in a row are not zero; synchronises.

    Example:
        >>> is_two_in_four(torch.tensor([[0, 3, 0, 1]])), is_two_in_four(torch.ones(1, 4))
        (True, False)
    """
    if weight.dim() != 2 or weight.shape[1] % 4 or not weight.numel():
        return False
    return bool(((weight.reshape(-1, 4) != 0).sum(1) <= 2).all())


class SemiStructuredLinear(nn.Module):
    """y = x W' + b where two of every four neighbours in a row of W are zero, on CUDA.

    The state dict holds plain tensors: `values`, two for every four entries of W; `places`, where
    in the four they stand, as one byte p + 4 q; and, if there is one, `bias`. What the tensor
    cores read is packed from them at the first run. For inference.

    Args:
        in_features: as in nn.Linear, a multiple of 4.
        out_features: as in nn.Linear.
        bias: whether there is a bias.
        device: of the tensors.
        dtype: of values and bias: half or bfloat16, to run.
    """

    places: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_kinds(SemiStructuredLinear.__init__, locals())
        _check_sizes(device, in_features=in_features, out_features=out_features)
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        fours = in_features // 4
        values = torch.zeros(out_features, fours, 2, device=device, dtype=dtype)
        self.values = nn.Parameter(values, requires_grad=False)
        places = torch.full((out_features, fours), 4, device=device, dtype=torch.uint8)
        self.register_buffer("places", places)
        vector = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype))
        self.register_parameter("bias", vector if bias else None)
        self._packed: Tensor | None = None

    @classmethod
    def of(cls, layer: nn.Linear) -> "SemiStructuredLinear":
        """The layer with the same weight and bias, bit for bit."""
        matrix = layer.weight.detach()
        shape = (layer.in_features, layer.out_features, layer.bias is not None)
        made = cls(*shape, device=matrix.device, dtype=matrix.dtype)
        fours = matrix.reshape(layer.out_features, -1, 4)
        # A stable sort puts the places of nonzero entries first, in order.
        first = (fours == 0).to(torch.uint8).sort(dim=-1, stable=True).indices[..., :2]
        places = first.sort(dim=-1).values
        with torch.no_grad():
            made.values.copy_(fours.gather(-1, places))
            made.places.copy_(places[..., 0] + 4 * places[..., 1])
        if made.bias is not None:
            made.bias.data.copy_(layer.bias)
            made.bias.requires_grad_(layer.bias.requires_grad)
        return made.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """The weight as a dense matrix, made anew each time."""
        places = torch.stack([self.places % 4, self.places // 4], dim=-1).long()
        fours = self.values.new_zeros(*self.places.shape, 4).scatter(-1, places, self.values)
        return fours.reshape(self.out_features, self.in_features)

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Linear."""
        if self._packed is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that this too is in beta
                self._packed = torch.sparse.to_sparse_semi_structured(self.weight)
        return F.linear(input, self._packed, self.bias)

    def _apply(self, fn: Any, recurse: bool = True) -> "SemiStructuredLinear":
        self._packed = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}

    def extra_repr(self) -> str:
        """As nn.Linear."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bias={self.bias is not None}"
