"""Layers that select their inputs: plans that do not fit, groups, and training that goes on."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import LayerNorm, Linear, ReLU, Sequential

import dualprox as dp
from shrinking import block, mlp, selected

LASSO = dp.GroupLasso(0.1)


@pytest.mark.parametrize("index", [[], [1, 1], [2, 0], [-1, 0], [0, 4]])
def test_an_index_that_selects_nothing_sensible_is_refused(index: list[int]) -> None:
    with pytest.raises(ValueError, match="index must be increasing indices >= 0 and < 4"):
        dp.SelectLinear(4, 2, index)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ({"1": [0]}, "1 must be a Linear, got ReLU"),
        ({"5": [0]}, "no module '5'"),
        ({"0": [0, 10]}, "0 has 10 inputs, the plan selects up to number 10"),
        ({"0": []}, "0 has 10 inputs, the plan selects none"),
        ({"0": [3, 1]}, "increasing indices"),
        ({"0": "ab"}, "increasing indices"),
        ([0], "plan is damaged"),
    ],
)
def test_plans_that_do_not_fit_are_refused(select: Any, message: str) -> None:
    plan = dp.Plan().to_dict() | {"select": select}
    with pytest.raises(ValueError, match=message):
        dp.apply_plan(mlp(), plan)


def test_plans_from_before_layers_could_select_are_read() -> None:
    values = dp.Plan(keep={"0.weight": {0: (1,)}}).to_dict()
    del values["select"]
    assert dp.Plan.from_dict(values).select == {}


def test_training_goes_on_with_layers_that_select() -> None:
    torch.manual_seed(0)
    model: Any = Sequential(Linear(8, 6), nn.Tanh(), Linear(6, 3))
    x = torch.randn(256, 8)
    y = 2 * x[:, 3:6]  # five pixels say nothing
    groups = dp.param_groups(
        model, dp.GroupLasso(0.03), coupled=True, example_input=x, select_inputs=True
    )
    opt = dp.RMDA(groups, lr=0.1)

    def train(network: Any, steps: int) -> None:
        for _ in range(steps):
            opt.zero_grad()
            (network(x) - y).square().mean().backward()
            opt.step()

    train(model, 200)
    twin, twin_opt = copy.deepcopy((model, opt))
    made, plan = dp.shrink_training(model, opt, x, select_inputs=True)
    small: Any = made
    assert plan.select == {"0": (3, 4, 5)} and isinstance(small[0], dp.SelectLinear)
    with opt.structured():
        ours = small(x)
    with twin_opt.structured():
        torch.testing.assert_close(ours, twin(x))
    weight = small[0].weight
    assert opt.param_groups[0]["params"][0] is weight
    rows = plan.keep.get("0.weight", {}).get(0, range(6))
    sums = twin_opt.state[twin[0].weight]["grad_sum"][list(rows)][:, 3:6]
    assert torch.equal(opt.state[weight]["grad_sum"], sums)
    # The groups weigh what they weighed: 0.03 sqrt(6), whatever is left of them.
    value = float(opt.param_groups[0]["penalty"].value(torch.ones_like(weight)))
    assert value == pytest.approx(3 * 0.03 * 6**0.5 * len(rows) ** 0.5, rel=1e-6)
    train(small, 20)
    with torch.no_grad():  # one more dies
        for name in ("anchor", "grad_sum"):
            opt.state[weight][name][:, 0] = 0
    smaller, later = dp.shrink_training(small, opt, x, select_inputs=True)
    whole = later.after(plan)
    assert whole.select == {"0": (4, 5)}
    again = dp.apply_plan(twin, whole)
    again.load_state_dict(smaller.state_dict())
    train(smaller, 5)
    assert torch.equal(again.state_dict()["0.index"], torch.tensor([4, 5]))


def test_groups_of_inputs_that_stay() -> None:
    model, tokens = block()
    groups = dp.param_groups(model, LASSO, coupled=True, example_input=tokens, select_inputs=True)
    rows = {row.name: row for row in groups.rows}
    for name in ("q", "k", "v", "up"):
        row = rows[f"{name}.weight"]
        assert row.penalty == dp.GroupLasso(0.1, axis=1)
        assert row.note == "its inputs stay, and can be selected"
    assert rows["embed.weight"].penalty is None
    assert sum(len(group["params"]) == 1 for group in groups) >= 5  # each by itself
    plain = dp.param_groups(model, LASSO, coupled=True, example_input=tokens)
    assert all(row.penalty is None for row in plain.rows if row.name == "q.weight")


def test_every_dead_group_of_inputs_that_stay_is_selected_away() -> None:
    model, tokens = block()
    groups = dp.param_groups(model, LASSO, coupled=True, example_input=tokens, select_inputs=True)
    with torch.no_grad():
        for group in groups:
            for name, param in group["params"]:
                if name in ("q.weight", "k.weight", "v.weight", "up.weight"):
                    param[:, ::2] = 0
    slim = selected(model, tokens)
    assert [slim.get_submodule(name).in_features for name in ("q", "k", "v", "up")] <= [6] * 4


def test_a_weight_of_which_some_inputs_stay_has_groups_for_all() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Linear(4, 5), Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.cat([x, torch.relu(self.a(x))], 1))

    x = torch.randn(2, 4)
    found = dp.param_groups(Skip(), LASSO, coupled=True, example_input=x, select_inputs=True)
    row = next(row for row in found.rows if row.name == "b.weight")
    assert row.penalty == dp.GroupLasso(0.1, axis=1)
    assert row.note == "other inputs stay, and can be selected"


def test_convolutions_and_what_cannot_select_stay_free() -> None:
    class Own(Linear):
        """Linear by another name."""

    model = Sequential(nn.Conv2d(2, 3, 3), ReLU(), nn.Flatten(), LayerNorm(12), Own(12, 2))
    model.append(ReLU()).append(Linear(2, 2))
    x = torch.randn(2, 2, 4, 4)
    found = dp.param_groups(model, LASSO, coupled=True, example_input=x, select_inputs=True)
    notes = {row.name: row.note for row in found.rows if row.penalty is None}
    assert notes["0.weight"].endswith("cannot be selected: it is none of Linear")
    assert notes["4.weight"].endswith("cannot be selected: Own may do more than Linear")


def test_selecting_is_for_coupled_groups() -> None:
    with pytest.raises(ValueError, match="select_inputs must be False unless coupled=True"):
        dp.param_groups(mlp(), LASSO, select_inputs=True)
