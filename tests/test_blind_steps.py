"""No step waits for the device: it reads no number but its counters, which lie on the CPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dualprox as dp
from contracts import OPTIMIZERS, small_problem
from dualprox.penalties import norm_equation

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
}


class NoReads(TorchDispatchMode):
    """Raises where a number is read that is not a counter: float64 of no axes."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READS and not (args[0].dim() == 0 and args[0].dtype == torch.float64):
            raise AssertionError(f"{func} waits for the device")
        if func is aten.index.Tensor and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        ):
            raise AssertionError("a mask's size waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("alone", [False, True], ids=["bundles", "alone"])
@pytest.mark.parametrize(
    "penalty",
    [
        None,
        dp.L1(0.05),
        dp.ElasticNet(0.1),
        dp.GroupLasso(0.05),
        dp.SparseGroupLasso(0.05),
        dp.GroupSCAD(0.05),
        dp.GroupL0(0.05),
        dp.GroupHalf(0.05),
    ],
    ids=repr,
)
def test_steps_read_counters_alone(maker, penalty, alone, monkeypatch):
    # On an accelerator the norm equation does not ask whether it has converged.
    monkeypatch.setattr(norm_equation, "_asks", lambda tensor: False)
    params, set_gradients = small_problem(torch.float32)
    matrix, vector, kernel = params
    make = type("Alone", (maker.make,), {}) if alone else maker
    groups = [{"params": [matrix, kernel], "penalty": penalty}, {"params": [vector]}]
    opt = make(groups, lr=maker.lr, impl="eager")
    for step in range(4):
        set_gradients(step)
        if step == 2:
            opt.restart()
        with NoReads():
            opt.step()


def test_the_check_notices_a_read(monkeypatch):
    with pytest.raises(AssertionError, match="waits for the device"), NoReads():
        bool((torch.ones(3) > 0).all())
    params, set_gradients = small_problem(torch.float32)
    opt = dp.RAMDA([{"params": params[:1], "penalty": dp.GroupLasso(0.05)}], impl="eager")
    set_gradients(0)
    with pytest.raises(AssertionError, match="waits for the device"), NoReads():
        opt.step()  # on the CPU the norm equation does ask
