"""Dead groups leave model and optimizer while training goes on."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import dualprox as dp


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.a = nn.Conv2d(8, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3)
        self.b = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.b(torch.relu(self.grouped(torch.relu(self.a(x))))))
        return self.head(x.mean((2, 3)))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 2, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (24,), generator=generator)


OPTIMIZERS: dict[str, Any] = {
    "RMDA": (dp.RMDA, {"lr": 0.3, "momentum": 0.0}),
    "RAMDA": (dp.RAMDA, {"lr": 0.03, "momentum": 0.0}),
    "ProxSGD": (dp.ProxSGD, {"lr": 0.1, "momentum": 0.9}),
    "ProxAdamW": (dp.ProxAdamW, {"lr": 0.01}),
}
PENALTIES = {
    "group LASSO": dp.GroupLasso(0.02),
    "sparse-group LASSO": dp.SparseGroupLasso(0.02, l1_ratio=0.3),
    "group MCP": dp.GroupMCP(0.02),
}


every_pair = pytest.mark.parametrize(
    ("name", "penalty"),
    [(name, penalty) for name in OPTIMIZERS for penalty in PENALTIES.values()],
    ids=[f"{name}, {penalty}" for name in OPTIMIZERS for penalty in PENALTIES],
)


def steps(model: nn.Module, opt: dp.ProximalOptimizer, count: int) -> None:
    x, y = data()
    for _ in range(count):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()


@pytest.mark.parametrize("refit", [False, True])
@every_pair
def test_the_smaller_network_takes_the_steps_of_the_larger(
    name: str, penalty: Any, refit: bool
) -> None:
    torch.manual_seed(1)
    make, settings = OPTIMIZERS[name]
    x, _ = data()
    dense = Residual().double()
    with torch.no_grad():
        # Channels whose readers stay dead, and what writes them: without a gradient it stays zero.
        dense.a.weight[:, [1, 4, 6]] = 0
        dense.head.weight[:, [1, 4, 6]] = 0
        dense.stem.weight[[1, 4, 6]] = 0
        dense.b.weight[[1, 4, 6]] = 0
        dense.b.weight[:, [2, 3]] = 0
        dense.grouped.weight[[2, 3]] = 0
        dense.a.weight[[2, 3]] = 0
    groups = dp.param_groups(dense, penalty, coupled=True, example_input=x)
    opt = make(groups, **settings)
    steps(dense, opt, 3)
    assert dp.structure(opt).group_sparsity
    dead: dict[str, torch.Tensor] = {}
    if refit:
        opt.freeze_structure_()
        dead = dp.FrozenSupport.of(opt).dead
    twin = copy.deepcopy(dense)
    twin_groups = dp.param_groups(twin, penalty, coupled=True, example_input=x)
    twin_opt = make(twin_groups, **settings)
    twin_opt.load_state_dict(opt.state_dict())
    opt.restart()
    twin_opt.restart()
    slim, plan = dp.shrink_training(twin, twin_opt, x)
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in dense.parameters())
    steps(dense, opt, 4)
    steps(slim, twin_opt, 4)
    with opt.structured(), twin_opt.structured():
        for param_name, param in slim.named_parameters():
            large = dense.get_parameter(param_name)
            for axis, kept in plan.keep.get(param_name, {}).items():
                large = large.index_select(axis, torch.tensor(kept))
            # A metric made of tiny gradients turns their rounding into steps.
            adaptive = name in ("RAMDA", "ProxAdamW")
            rtol, atol = (1e-4, 1e-4) if adaptive else (1e-9, 1e-12)
            torch.testing.assert_close(param, large, rtol=rtol, atol=atol)
    if refit:
        held = [group for group in twin_opt.param_groups if group["frozen"]]
        assert held
        for param_name, mask in dead.items():
            assert not dense.get_parameter(param_name)[mask].any()
        for group in held:
            assert all(twin_opt.state[p]["live"].shape == p.shape for p in group["params"])


def penalized(opt: dp.ProximalOptimizer, param: torch.Tensor) -> dict[str, Any]:
    return next(g for g in opt.param_groups if any(p is param for p in g["params"]))


def test_groups_keep_their_weights_through_two_cuts() -> None:
    """Those of the sizes that they had at first, times their own factors."""
    torch.manual_seed(1)
    model: nn.Module = Residual().double()
    x, _ = data()
    opt = dp.RMDA(dp.param_groups(model, dp.GroupLasso(0.1), coupled=True, example_input=x), lr=0.1)
    group = penalized(opt, model.get_parameter("a.weight"))
    factors = (1.0, 0.0, 3.0, 0.5, 2.0, 7.0, 1.5, 0.25)
    coupling = dataclasses.replace(group["penalty"].coupling, weights=factors)
    group["penalty"] = dataclasses.replace(group["penalty"], coupling=coupling)
    first = coupling.weight(torch.zeros((), dtype=torch.float64), by_size=True)
    left = list(range(8))
    for channels, inner in (((1, 4), (2, 3)), ((0, 3), (0, 1))):  # numbered as they are then
        with torch.no_grad():
            for name, axis in (("stem", 0), ("b", 0), ("a", 1), ("head", 1)):
                model.get_parameter(f"{name}.weight").index_fill_(axis, torch.tensor(channels), 0.0)
            for name, axis in (("a", 0), ("grouped", 0), ("b", 1)):  # so that groups lose entries
                model.get_parameter(f"{name}.weight").index_fill_(axis, torch.tensor(inner), 0.0)
        model, _ = dp.shrink_training(model, opt, x)
        left = [channel for place, channel in enumerate(left) if place not in channels]
        reader = model.get_parameter("a.weight")
        assert reader.shape[1] == len(left)
        group = penalized(opt, reader)
        now = group["penalty"].coupling.weight(torch.zeros((), dtype=torch.float64), by_size=True)
        torch.testing.assert_close(now, first[left])
        names = ["weight"] * len(group["params"])
        group["penalty"].coupling.check([p.shape for p in group["params"]], names)
    assert group["penalty"].coupling.size().tolist() != coupling.size()[left].tolist()


def test_names_and_indices_map_back_through_two_plans() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
    x = torch.randn(2, 4)
    groups = dp.param_groups(model, dp.GroupLasso(0.1), coupled=True, example_input=x)
    opt = dp.RMDA(groups, lr=0.01)
    with torch.no_grad():
        model.get_parameter("2.weight")[:, [0, 5]] = 0.0
    first, plan = dp.shrink_training(model, opt, x)
    with torch.no_grad():
        first.get_parameter("2.weight")[:, [0, 6]] = 0.0  # channels 1 and 8 of the first network
    second, again = dp.shrink_training(first, opt, x)
    joined = again.after(plan)
    assert joined.keep["2.weight"] == {1: (2, 3, 4, 6, 7)}
    rebuilt = dp.apply_plan(model, joined)
    assert {n: p.shape for n, p in rebuilt.named_parameters()} == {
        n: p.shape for n, p in second.named_parameters()
    }


def test_schedule_and_monitor_go_on() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    model: nn.Module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    groups = dp.param_groups(model, dp.GroupLasso(0.02), coupled=True, example_input=x)
    opt = dp.RMDA(groups, lr=0.5, momentum=0.5)
    stages = dp.StageSchedule(opt, milestones=[4, 8], gamma=0.1)
    monitor = dp.StructureMonitor(opt)
    record = monitor.update()
    for epoch in range(1, 13):
        for _ in range(8):
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
        record = monitor.update()
        stages.step()
        if epoch in (4, 8):
            model, _ = dp.shrink_training(model, opt, x)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.005)
    assert record.support_total < 16
    assert model.get_parameter("0.weight").shape[0] == record.support_total


def test_an_optimizer_of_other_parameters_is_refused_before_anything_changes() -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    opt = dp.RMDA(other.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"opt must train the model's parameters, got 0\.0"):
        dp.shrink_training(model, opt, torch.randn(1, 3))


def test_one_param_group_for_weights_that_need_penalties_of_their_own_is_refused() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)]
    model = nn.Sequential(*layers)
    opt = dp.RMDA(dp.param_groups(model, dp.GroupLasso(0.1)), lr=0.1)
    with torch.no_grad():
        model.get_parameter("4.weight")[:, :3] = 0.0
    with pytest.raises(ValueError, match="make the param groups with coupled=True"):
        dp.shrink_training(model, opt, torch.randn(1, 4))
    assert opt.param_groups[0]["params"][0] is model.get_parameter("0.weight")
