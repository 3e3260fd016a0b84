"""The size that is steered to is the size that the shrunk network has."""

import io
import itertools
from typing import Any

import pytest
import torch
from torch import nn

import dualprox as dp
from fitting_cases import batches, groups_of, network, share, shrunk, train

MAKE: Any = {"rmda": lambda g: dp.RMDA(g, lr=0.1), "ramda": lambda g: dp.RAMDA(g, lr=5e-3)}


def steered(
    name: str = "mlp",
    target: dp.TargetSize | None = None,
    method: str = "ramda",
    steps: int = 30,
    penalty: Any = None,
    **more: Any,
) -> tuple[nn.Module, Any, dp.SizeControl, Any]:
    """A network after some steps under control, all of them before `hold_from`."""
    model, data = network(name), batches(name)
    opt = MAKE[method](groups_of(model, data, penalty))
    settings = {"ramp_steps": 15, "hold_from": 30, "every": 5, **more}
    control = dp.SizeControl(
        opt, model, target or dp.TargetSize(params=0.4), data[0][0], **settings
    )
    train(model, opt, control, data, steps)
    return model, opt, control, data


def live_groups(opt: Any) -> int:
    return sum(layer.size for layer in dp.structure(opt).layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "measure", "method"),
    [("mlp", "params", "rmda"), ("mlp", "macs", "ramda"), ("cnn", "macs", "rmda"),
     ("cnn", "params", "ramda"), ("transformer", "params", "ramda")],
)  # fmt: skip
def test_shrinking_leaves_the_size_that_it_says(name: str, measure: str, method: str) -> None:
    settings: Any = {measure: 0.6 if name == "transformer" else 0.4}
    target = dp.TargetSize(**settings)
    model, opt, control, data = steered(name, target, method)
    size = control.size()
    assert size == control.history[-1].size <= control.history[-1].goal == target.value
    found = share(model, shrunk(model, opt, data), data, measure)
    assert found == pytest.approx(size, rel=1e-12)
    # With a little less strength the next group lives, and the goal is passed.
    live = live_groups(opt)
    for group in opt.param_groups:
        if group["penalty"] is not None:
            group["penalty"] = group["penalty"].with_strength(
                group["penalty"].own_strength() * (1 - 1e-4)
            )
    assert live < live_groups(opt) <= live + 2
    assert share(model, shrunk(model, opt, data), data, measure) > target.value


def test_the_goal_falls_along_the_cubic_ramp() -> None:
    target = dp.TargetSize(params=0.3)
    _, _, control, _ = steered(target=target, ramp_steps=20, every=6)
    assert [record.step for record in control.history] == [6, 12, 18, 24, 30]
    for record in control.history:
        left = max(0.0, 1 - record.step / 20) ** 3
        assert record.goal == pytest.approx(0.3 + 0.7 * left)
        assert record.size <= record.goal and record.strength > 0


def test_from_hold_from_on_the_strengths_stay() -> None:
    model, opt, control, data = steered(steps=30)
    before = [group["penalty"] for group in opt.param_groups]
    opt.restart()
    train(model, opt, control, data, 15)
    after = [group["penalty"] for group in opt.param_groups]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert control.steps == 45 and control.history[-1].step == 30


@pytest.mark.slow
def test_the_size_is_that_of_the_present_point_during_hold() -> None:
    model, opt, control, data = steered(steps=30)
    opt.restart()
    assert control.size() == control.history[-1].size  # until the next step
    train(model, opt, control, data, 12)
    found = share(model, shrunk(model, opt, data), data, "params")
    assert control.size() == pytest.approx(found, rel=1e-12)


def test_landing_reaches_the_target_at_the_present_sums() -> None:
    model, opt, control, data = steered(steps=30)
    opt.restart()
    train(model, opt, control, data, 9)
    weights = list(control.weights)
    landed = control.land()
    assert landed == control.size() <= 0.4
    assert share(model, shrunk(model, opt, data), data, "params") == pytest.approx(landed)
    # Layers are not weighed anew: where a large group has left room, smaller ones live on.
    assert all(now <= before for now, before in zip(control.weights, weights, strict=True))
    assert set(control.weights) & set(weights)


def test_before_the_first_step_all_is_there() -> None:
    _, _, control, _ = steered(steps=0)
    assert control.size() == 1.0


def test_the_strength_says_exactly_what_lives() -> None:
    """Float32 sums, many looks: what is foreseen is what the optimizer solves to, every time."""
    model, opt, control, data = steered(steps=0, hold_from=1000, every=1, ramp_steps=100)
    for _ in range(100):
        train(model, opt, control, data, 1)
        live = [layer.size for layer in dp.structure(opt).layers]
        foreseen = [int(level.live(own).count()) for level, own in zip(
            control.levels, control._strengths(control.strength), strict=True
        )]  # fmt: skip
        assert foreseen == live


@pytest.mark.slow
def test_weighted_group_sparsity_is_that_of_structure() -> None:
    target = dp.TargetSize(weighted_group_sparsity=0.7)
    for name in ("mlp", "transformer"):
        _, opt, control, _ = steered(name, target)
        found = dp.structure(opt).weighted_group_sparsity
        assert found is not None and found >= 0.7
        assert 1 - control.size() == pytest.approx(found, abs=1e-12)


@pytest.mark.slow
def test_bounds_hold_while_the_size_is_met() -> None:
    for name, pattern, wanted in (("mlp", "2.weight", 0.5), ("transformer", "narrow.weight", 0.85)):
        free = steered(name, dp.TargetSize(params=wanted))
        bound = dp.TargetSize(params=wanted, at_least={pattern: 0.95})
        model, opt, control, data = steered(name, bound)
        shares = []
        for one, own in ((free[2], free[1]), (control, opt)):
            place = next(i for i, names in enumerate(one.names) if pattern in names)
            layer = dp.structure(own).layers[place]
            shares.append(layer.size / layer.total)
        assert shares[0] < 0.95 <= shares[1]
        found = share(model, shrunk(model, opt, data), data, "params")
        assert found == pytest.approx(control.size()) and found <= wanted
    bound = dp.TargetSize(params=0.7, at_most={"4.weight": 0.25})
    model, opt, control, _ = steered("mlp", bound)
    for group in opt.param_groups:
        if group["penalty"] is not None:
            (param,) = group["params"]
            live = (opt.structured_point(param) != 0).any(0)
            is_last = param is model.get_parameter("4.weight")
            assert live.float().mean() <= 0.25 if is_last else live.float().mean() > 0.25


def test_a_coupled_group_keeps_its_bounds() -> None:
    """A residual stream, whose groups span several weights."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = (
                nn.Linear(8, 24),
                nn.Linear(24, 24),
                nn.Linear(24, 3),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).relu()
            return self.last((x + self.inner(x)).relu())

    torch.manual_seed(0)
    model, data = Residual(), batches("mlp")
    opt = dp.RAMDA(groups_of(model, data), lr=5e-3)
    assert any(isinstance(group["penalty"], dp.Coupled) for group in opt.param_groups)
    target = dp.TargetSize(params=0.2, at_least={"inner.weight": 0.75})
    control = dp.SizeControl(opt, model, target, data[0][0], ramp_steps=10, hold_from=20, every=5)
    train(model, opt, control, data, 20)
    (layer,) = dp.structure(opt).layers
    assert layer.size == 18 and control.size() > 0.2


def test_the_least_size_there_is_ends_the_search() -> None:
    """A goal that bounds forbid: the strength is the least with the least size, and finite."""
    bound = dp.TargetSize(params=0.1, at_least={"2.weight": 0.9, "4.weight": 0.9})
    _, opt, control, _ = steered("mlp", bound)
    strengths = [group["penalty"].own_strength() for group in opt.param_groups if group["penalty"]]
    assert max(strengths) < 1e3 and control.strength < 1e3
    assert 0.8 < control.size() < 0.95


def test_a_target_below_what_has_to_stay_is_refused() -> None:
    model, data = network("mlp"), batches("mlp")
    opt = dp.RAMDA(groups_of(model, data), lr=5e-3)
    with pytest.raises(
        ValueError, match=r"params=0\.001 cannot be reached: .*% .* with all that is penalized dead"
    ):
        dp.SizeControl(
            opt, model, dp.TargetSize(params=0.001), data[0][0], ramp_steps=1, hold_from=1
        )


@pytest.mark.slow
def test_latency_is_aimed_at_by_what_has_been_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose time is 1 ms and 9 ms for the dense network's parameters, in proportion."""
    asked = []

    def cost(self: Any, model: nn.Module) -> float:
        asked.append(sum(param.numel() for param in model.parameters()))
        return 1.0 + 9.0 * asked[-1] / asked[0]

    monkeypatch.setattr("dualprox.fitting.aims.LatencyAim.measured", cost)
    model, opt, control, data = steered(
        "mlp", dp.TargetSize(latency_ms=4.6), steps=60, ramp_steps=20, hold_from=60, every=12
    )
    assert len(asked) > 4
    found = control.latency.measured(shrunk(model, opt, data))
    assert found == pytest.approx(4.6, rel=0.05)


def test_latency_is_measured_at_the_batch_size_asked_for() -> None:
    model, data = network("mlp"), batches("mlp")
    opt = dp.RAMDA(groups_of(model, data), lr=5e-3)
    target = dp.TargetSize(latency_ms=1e-9, batch_size=4)
    control = dp.SizeControl(opt, model, target, data[0][0], ramp_steps=1, hold_from=1)
    assert 0 < control.goal < 1e-3


def test_a_checkpoint_continues_with_the_same_strengths() -> None:
    straight = steered(steps=17, hold_from=60, ramp_steps=40)
    file = io.BytesIO()
    model, opt, control, data = straight
    opt.restart()
    torch.save(
        {"model": model.state_dict(), "opt": opt.state_dict(), "control": control.state_dict()},
        file,
    )
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = steered(steps=0, hold_from=60, ramp_steps=40)
    again[0].load_state_dict(saved["model"])
    again[2].load_state_dict(saved["control"])
    again[1].load_state_dict(saved["opt"])
    assert again[2].size() == control.size()
    for _ in range(3):
        for run in (straight, again):
            train(run[0], run[1], run[2], data, 5)
        for one, other in zip(opt.param_groups, again[1].param_groups, strict=True):
            assert one["penalty"] == other["penalty"]
        assert control.history == again[2].history
    assert len(control.history) == 6
    with pytest.raises(ValueError, match="penalized weights"):
        steered("cnn", steps=0)[2].load_state_dict({**saved["control"], "weights": [1.0]})


@pytest.mark.slow
def test_a_restart_in_between_does_not_matter() -> None:
    model, opt, control, data = steered(steps=12, hold_from=60, ramp_steps=30)
    opt.restart()
    train(model, opt, control, data, 48)
    assert share(model, shrunk(model, opt, data), data, "params") == pytest.approx(control.size())
    assert control.size() <= 0.4


def test_until_the_first_look_the_weights_are_those_of_training_without_penalty() -> None:
    """The strength given is a unit, and would have killed everything in the steps until then."""
    model, _, _, data = steered(steps=9, penalty=dp.GroupL0(1.0), every=10)
    free = network("mlp")
    opt = MAKE["ramda"](free.parameters())
    for step in range(9):
        x, y = data[step % len(data)]
        opt.zero_grad()
        nn.functional.cross_entropy(free(x), y).backward()
        opt.step()
    for ours, theirs in zip(model.parameters(), free.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_balance_makes_layers_comparable() -> None:
    """Weights after a look are the mean critical strengths, and before it all groups live."""
    _, opt, control, _ = steered("mlp", steps=5, hold_from=60, ramp_steps=1000, every=5)
    means = []
    for level in control.levels:
        (param,) = level.unit.params
        state = opt.state[param]
        pull = state["anchor"] * opt.metric(state) - state["grad_sum"]
        sizes = pull.double().norm(dim=0) / len(pull) ** 0.5 / state["penalty_sum"].item()
        means.append(float(sizes.mean()))
    assert control.weights[0] / control.weights[1] == pytest.approx(means[0] / means[1], rel=1e-4)
    assert max(control.weights) == 1


def test_without_balance_strengths_are_equal() -> None:
    _, _, control, _ = steered("mlp", balance=False)
    assert control.weights == [1.0, 1.0]
    own = {level.unit.group["penalty"].strength for level in control.levels}
    assert len(own) == 1


def test_every_step_is_counted_and_looked_at_when_due() -> None:
    _, _, control, _ = steered(steps=30, every=7)
    looks = [record.step for record in control.history]
    assert looks == [7, 14, 21, 28, 30] and control.steps == 30
    assert all(a < b for a, b in itertools.pairwise(looks))


@pytest.mark.parametrize("keeps", [True, False])
def test_the_last_group_of_a_layer_lives_unless_it_may_die(keeps: bool) -> None:
    """With strengths of which the last layer's is a thousand times the others'."""
    model, data = network("mlp"), batches("mlp")
    strong = {"4.weight": dp.GroupLasso(1000.0), "*": dp.GroupLasso(1.0)}
    groups = dp.param_groups(model, strong, coupled=True, example_input=data[0][0])
    opt = dp.RMDA(groups, lr=0.1)
    target = dp.TargetSize(params=0.1, at_least={} if keeps else {"4.weight": 0.0})
    control = dp.SizeControl(
        opt, model, target, data[0][0], ramp_steps=19, hold_from=24, every=2, balance=False
    )  # fmt: skip
    least = []
    for _ in range(24):
        train(model, opt, control, data, 1)
        if control.history and control.history[-1].step == control.steps:
            least.append(min(layer.size for layer in dp.structure(opt).layers))
    assert control.size() <= 0.1
    assert min(least) == (1 if keeps else 0)
