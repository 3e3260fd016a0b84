"""From a network and a wish to the network that grants it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import dualprox as dp
from dualprox.fitting.batches import example_of, loss_of
from dualprox.shrinking.factorize import LowRank
from fitting_cases import batches, fitted, groups_of, network


def entries(model: nn.Module) -> int:
    return sum(param.numel() for param in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("wanted", [0.7, 0.5, 0.35])
def test_the_target_is_reached_within_three_percent_or_notes_say_why(
    name: str, wanted: float
) -> None:
    dense = entries(network(name))
    result = fitted(name, target=dp.TargetSize(params=wanted), epochs=8)
    found = entries(result.model) / dense
    assert result.reached == pytest.approx(found, rel=1e-12)
    assert result.is_reached == (found <= 1.03 * wanted)
    assert result.is_reached or any("instead of" in note for note in result.notes)
    if found < 0.97 * wanted:
        assert any("smaller than asked for" in note for note in result.notes)
    example = batches(name)[0][0]
    assert result.model(example).isfinite().all()
    assert result.model.training


@pytest.mark.slow
def test_widths_in_multiples_of_eight_reach_the_target_too() -> None:
    result = fitted("mlp", target=dp.TargetSize(params=0.5), epochs=8, round_to=8)
    widths = [m.out_features for m in result.model.modules() if isinstance(m, nn.Linear)]
    assert all(width % 8 == 0 for width in widths[:-1]) and widths[:-1] != [40, 32]
    assert result.is_reached and result.reached <= 0.5 * 1.03


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["rmda", "ramda"])
def test_the_same_seed_gives_the_same_network(optimizer: Any) -> None:
    runs = []
    for _ in range(2):
        runs.append(fitted("cnn", 3, dp.TargetSize(macs=0.5), optimizer=optimizer))
    first, second = runs
    assert first.history == second.history and first.notes == second.notes
    states = [run.model.state_dict() for run in runs]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    dense = dp.measure(network("cnn"), batches("cnn")[0][0], latency=False)
    slim = dp.measure(first.model, batches("cnn")[0][0], latency=False)
    assert slim.macs is not None and dense.macs is not None
    assert first.reached == pytest.approx(slim.macs / dense.macs)


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_with_a_nuclear_norm_layers_become_thin(name: str) -> None:
    wanted = 0.7 if name == "transformer" else 0.5  # whose attention stays as it is
    result = fitted(name, 8, dp.TargetSize(params=wanted), penalty=dp.NuclearNorm(1.0))
    assert result.plan.optimizer == "rmda" and result.is_reached
    assert result.reached == entries(result.model) / entries(network(name))
    thin = [module for module in result.model.modules() if isinstance(module, LowRank)]
    assert thin and all(layer.rank >= 1 for layer in thin)
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_it_learns_what_the_data_say() -> None:
    result = fitted(epochs=20)
    assert [row["epoch"] for row in result.history] == list(range(1, 21))
    assert [row["stage"] for row in result.history] == sorted(
        (row["stage"] for row in result.history), key=["warmup", "search", "hold", "refit"].index
    )
    model = result.model.eval()
    x, y = (torch.cat(parts) for parts in zip(*batches("mlp"), strict=True))
    assert (model(x).argmax(1) == y).float().mean() > 0.9
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_without_refit_the_hold_lasts_to_the_end() -> None:
    result = fitted(refit=False, epochs=5)
    assert result.plan.refit_epochs == 0
    assert {row["stage"] for row in result.history} == {"warmup", "search", "hold"}
    strengths = [row["strength"] for row in result.history if row["stage"] == "hold"]
    assert len(set(strengths)) == 1
    assert result.reached == pytest.approx(entries(result.model) / entries(network("mlp")))


@pytest.mark.parametrize("refit", [True, False])
def test_one_step_an_epoch_is_enough_for_all_stages(refit: bool) -> None:
    """Stages shorter than a step are rounded to one: the network is cut and refitted."""
    result = fitted(epochs=2, loader=batches("mlp", 1), refit=refit)
    assert [row["stage"] for row in result.history] == (
        ["refit", "refit"] if refit else ["search", "search"]
    )
    assert entries(result.model) < entries(network("mlp"))


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "refit"), [(0.8, True), (0.6, False)])
def test_sparsity_is_what_is_reached_not_what_was_last_looked_at(
    wanted: float, refit: bool
) -> None:
    target = dp.TargetSize(weighted_group_sparsity=wanted)
    seen = []
    result = fitted(target=target, refit=refit, epochs=4, watch=lambda row: seen.append(row.size))
    assert len(seen) == 4
    assert result.is_reached == (1 - result.reached <= 1.03 * (1 - wanted))
    if not refit:
        assert 1 - result.reached == pytest.approx(seen[-1], rel=0.04)


def test_a_count_is_answered_with_a_count() -> None:
    result = fitted(target=dp.TargetSize(params=700), epochs=4)
    assert result.reached == entries(result.model) <= 700 * 1.03


def test_param_groups_can_be_given() -> None:
    model, data = network("mlp"), batches("mlp")
    groups = groups_of(model, data, exclude=["4"])
    result = fitted(model=model, penalty=groups, epochs=4, target=dp.TargetSize(params=0.6))
    assert result.model[4].in_features == 32  # type: ignore[index]
    assert result.model[2].in_features < 40  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [dp.GroupMCP(0.0), dp.SparseGroupLasso(2.0)], ids=str)
def test_other_group_penalties_are_steered_too(penalty: dp.Penalty) -> None:
    result = fitted(penalty=penalty, epochs=4, target=dp.TargetSize(params=0.6))
    assert result.reached <= 0.62 and type(penalty).__name__ in result.plan.penalty


class Twice:
    """Batches without a length, as often as is asked for."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return ((x, y) for xs, ys in batches("mlp", 3) for x, y in zip(xs, ys, strict=True))


@pytest.mark.slow
def test_loaders_of_all_kinds_give_the_same() -> None:
    data = batches("mlp", 3)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    loaders = [
        data, Twice(data), DataLoader(TensorDataset(x, y), batch_size=16),
        DataLoader(Stream(), batch_size=16),
    ]  # fmt: skip
    histories = []
    for loader in loaders:
        histories.append(fitted(loader=loader, epochs=3).history)
    assert all(history == histories[0] for history in histories)


class Two(nn.Module):
    """A network with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(4, 20), nn.Linear(4, 20), nn.Linear(20, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.last((self.one(left) + self.other(right)).relu())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tuple", "dict", "collated"])
def test_inputs_may_be_several(kind: str) -> None:
    torch.manual_seed(0)
    model, data = Two(), batches("mlp", 4)
    halves = [((x[:, :4], x[:, 4:]), y) for x, y in data]
    if kind == "tuple":
        loader: Any = halves
    elif kind == "dict":
        loader = [({"right": b, "left": a}, y) for (a, b), y in halves]
    else:
        examples = [((a[i], b[i]), y[i]) for (a, b), y in halves for i in range(len(y))]
        loader = DataLoader(examples, batch_size=16)  # pyright: ignore[reportArgumentType]
    result = fitted(model=model, loader=loader, epochs=3)
    assert result.reached <= 0.42
    assert result.history[0]["loss"] > 0


def test_batches_are_read_as_said() -> None:
    torch.manual_seed(0)
    model, x, y = Two(), torch.randn(5, 8), torch.randint(3, (5,))
    left, right = x[:, :4], x[:, 4:]
    expected = cross_entropy(model(left, right), y)
    for inputs in ((left, right), [left, right], {"right": right, "left": left}):
        value, count = loss_of(model, (inputs, y), cross_entropy)
        assert count == 5 and torch.equal(value, expected)
    batch = {"right": right, "left": left, "scale": torch.tensor(2.0)}, y
    shown: Any = example_of(batch, model)
    on_meta: Any = example_of(batch, Two().to("meta"))
    assert on_meta["left"].device.type == "meta"
    assert torch.equal(shown["left"], left[:2]) and shown["scale"].shape == ()


def test_watch_sees_the_structured_point_and_leaves_no_trace() -> None:
    model = network("mlp")
    seen: list[Any] = []

    def watch(row: Any) -> None:
        assert row.model.training
        columns = (row.model.get_parameter("2.weight") != 0).any(0)
        seen.append((row.stage, int(columns.sum()), len(columns)))
        row.model.eval()

    result = fitted(model=model, watch=watch, epochs=8, warmup=0.15, search=0.9)
    unwatched = fitted(epochs=8, warmup=0.15, search=0.9)
    assert result.history == unwatched.history
    stages = [stage for stage, _, _ in seen]
    assert {"warmup", "search", "hold", "refit"} == set(stages)
    for stage, live, width in seen:
        assert width == 40 if stage != "refit" else live == width < 40
    assert min(live for stage, live, _ in seen if stage == "hold") < 40
    assert result.model.training


@pytest.mark.slow
def test_a_held_structure_begins_at_zero_after_two_restarts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loader looks at the weights that a batch is about to train: the iterate."""
    model, data = network("mlp"), batches("mlp")
    restarts: list[int] = []
    seen: list[int] = []

    class Peeking:
        def __len__(self) -> int:
            return len(data)

        def __iter__(self) -> Any:
            for batch in data:
                seen.append(int((model.get_parameter("2.weight") != 0).any(0).sum()))
                yield batch

    restart = dp.RAMDA.restart

    def counted(opt: dp.RAMDA) -> None:
        restarts.append(len(seen))
        restart(opt)

    monkeypatch.setattr(dp.RAMDA, "restart", counted)
    result = fitted(
        model=model, loader=Peeking(), epochs=20, warmup=0.1, search=0.8, example_input=data[0][0]
    )
    plan, steps = result.plan, len(data)
    hold_from = round((plan.warmup_epochs + plan.search_epochs) * steps)
    middle = round(plan.warmup_epochs * steps) + round(plan.restart * plan.search_epochs * steps)
    assert restarts == [middle, hold_from]
    width = result.model.get_parameter("2.weight").shape[1]
    cut_at = hold_from + round(plan.hold_epochs * steps)
    assert set(seen[hold_from:cut_at]) == {width} != {40}
    assert set(seen[:middle]) == {40}


def test_a_model_in_evaluation_mode_is_trained() -> None:
    model = network("cnn").eval()
    result = fitted("cnn", 3, model=model)
    assert result.model.training
    plain = fitted("cnn", 3)
    assert result.history == plain.history


def test_frozen_weights_stay_what_they_are() -> None:
    model = network("mlp")
    model[4].weight.requires_grad_(False)  # type: ignore[index]
    model[0].bias.requires_grad_(False)  # type: ignore[index]
    before = model[4].weight.clone()  # type: ignore[index]
    result = fitted(model=model, epochs=4, target=dp.TargetSize(params=0.8))
    assert torch.equal(result.model[4].weight, before)  # type: ignore[index]
    assert not result.model[0].bias.requires_grad  # type: ignore[index]
    assert result.reached <= 0.83


def test_a_loss_that_is_not_finite_stops_it() -> None:
    calls = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return cross_entropy(outputs, targets) * (float("nan") if len(calls) > 5 else 1.0)

    with pytest.raises(ValueError, match=r"loss is nan in epoch 1: lr 0\.002 and refit_lr"):
        fitted(loss=loss)
    with pytest.raises(ValueError, match="loss is nan in epoch 1"):
        calls.clear()
        fitted(loss=loss, epochs=2)


def test_targets_out_of_reach_say_why() -> None:
    with pytest.raises(ValueError, match=r"params=0\.001 cannot be reached"):
        fitted(target=dp.TargetSize(params=0.001))
    bound = dp.TargetSize(params=0.2, at_least={"*": 0.8})
    result = fitted(target=bound, epochs=4)
    assert not result.is_reached
    assert any("params" in note and "instead of 0.2" in note for note in result.notes)


def test_refusals_come_before_training() -> None:
    def once() -> Iterator[Any]:
        yield from batches("mlp", 2)

    def refused(error: type[Exception], match: str, **more: Any) -> None:
        with pytest.raises(error, match=match):
            fitted(loss=lambda *_: pytest.fail("it trains"), **more)

    refused(TypeError, "iterated once per epoch, got generator", loader=once())
    refused(ValueError, r"loader must be one that gives batches, got '0 batches'", loader=Twice([]))
    refused(TypeError, r"pairs \(inputs, targets\), got tuple of 3", loader=[(1, 2, 3)])
    refused(ValueError, "epochs must be an int >= 2, got 1", epochs=1)
    refused(ValueError, "optimizer must be 'ramda', 'rmda' or None, got 'sgd'", optimizer="sgd")
    refused(ValueError, r"search must be a share in \(0, 1\], got 0", search=0)
    for warmup in (-0.1, 0.5, 5.0, float("nan")):
        refused(ValueError, r"warmup must be in \[0, 0.5\), where search ends, got", warmup=warmup)
    refused(ValueError, r"warmup must be in \[0, 0.1\)", warmup=0.3, search=0.1)
    refused(ValueError, "refit_optimizer must be 'sgd', 'adamw' or None", refit_optimizer="adam")
    refused(ValueError, "refit_lr must be a number >= 0 or None, got -1", refit_lr=-1.0)
    refused(ValueError, "weight_decay must be a number >= 0 or None", weight_decay=float("nan"))
    refused(ValueError, "round_to must be an int >= 1, got 0", round_to=0)
    refused(TypeError, "params needs penalties with groups", penalty=dp.L1(1.0))
    low = {"penalty": dp.NuclearNorm(1.0)}
    refused(ValueError, "optimizer must be 'rmda' or None", optimizer="ramda", **low)
    refused(ValueError, "select_inputs must be False with Nuc", select_inputs=True, **low)
    refused(ValueError, "round_to must be 1 with NuclearNorm, got 8", round_to=8, **low)
    both = dp.param_groups(network("mlp"), {"0": dp.NuclearNorm(1.0), "2": dp.GroupLasso(1.0)})
    refused(TypeError, "all act on singular values, got NuclearNorm, GroupLasso", penalty=both)


def test_a_loader_that_runs_dry_is_reported() -> None:
    class Drying:
        def __init__(self) -> None:
            self.epochs = 0

        def __iter__(self) -> Iterator[Any]:
            self.epochs += 1
            return iter(batches("mlp", 4) if self.epochs < 5 else [])

    with pytest.raises(ValueError, match="batches in every epoch, got none in 3"):
        fitted(loader=Drying(), epochs=6)


def test_a_line_per_epoch_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    fitted(epochs=2, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("epoch   1/2") and "strength" in lines[1]
