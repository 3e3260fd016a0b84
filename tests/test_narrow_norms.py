"""Channels of a residual stream that nothing but layer norms reads."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import Linear, Sequential
from torch.nn.functional import cross_entropy

import dualprox as dp
from dualprox.shrinking.norms import NarrowNorms
from fitting_cases import StopError
from shrinking import kill, run, shrunk, why

WIDTH, KEPT = 12, (1, 2, 5, 7, 10)
GONE = tuple(sorted({*range(WIDTH)} - {*KEPT}))


class Model(nn.Module):
    """A language model of two blocks of torch's, with norms of a kind."""

    def __init__(self, norm: Any = nn.LayerNorm, first: bool = True, tied: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            WIDTH, 3, 20, dropout=0.0, norm_first=first, batch_first=True
        )
        self.tokens = nn.Embedding(9, WIDTH)
        self.places = nn.Parameter(torch.randn(6, WIDTH))
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        for block in self.blocks.layers:
            block.norm1, block.norm2 = norm(WIDTH), norm(WIDTH)
        self.norm, self.head = norm(WIDTH), Linear(WIDTH, 9, bias=not tied)
        if tied:
            self.head.weight = self.tokens.weight
        for param in self.parameters():  # norms that change nothing would hide mistakes
            nn.init.normal_(param, std=0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places)))


class ByHand(nn.Module):
    """A pre-norm block and a head, whose layer norms look at these channels, written out."""

    def __init__(self, model: "Small", kept: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.kept = model, kept

    def normed(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        mean, variance = torch.zeros(len(x)).to(x), torch.zeros(len(x)).to(x)
        for k in self.kept:
            mean = mean + x[:, k] / len(self.kept)
        for k in self.kept:
            variance = variance + (x[:, k] - mean) ** 2 / len(self.kept)
        out = (x - mean[:, None]) / torch.sqrt(variance[:, None] + norm.eps)
        return out * norm.weight + norm.bias

    def forward(self, x: Tensor) -> Tensor:
        model = self.model
        x = model.lift(x)
        x = x + model.down(torch.relu(model.up(self.normed(model.first, x))))
        return model.head(self.normed(model.last, x))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift, self.first = Linear(4, WIDTH), nn.LayerNorm(WIDTH)
        self.last = nn.LayerNorm(WIDTH)
        self.up, self.down, self.head = Linear(WIDTH, 8), Linear(8, WIDTH), Linear(WIDTH, 3)
        for param in self.parameters():
            nn.init.normal_(param, std=0.5)
        kill(self.up, GONE)
        kill(self.head, GONE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        x = x + self.down(torch.relu(self.up(self.first(x))))
        return self.head(self.last(x))


def grouped(model: nn.Module, example: Any) -> dp.ParamGroups:
    return dp.param_groups(
        model, dp.GroupLasso(1.0), coupled=True, example_input=example, narrow_norms=True
    )


def kill_groups(groups: dp.ParamGroups, chosen: int) -> dict[str, Any]:
    """Make every third group zero; which slices of each weight live."""
    live = {}
    for group in groups:
        penalty = group["penalty"]
        if penalty is None:
            continue
        if isinstance(penalty, dp.Coupled):
            cut = [(member.slices, np.array(member.groups)) for member in penalty.coupling.members]
        else:
            ((_, param),) = group["params"]
            cut = [(penalty.slices, np.arange(penalty.slices.count(tuple(param.shape))))]
        for (name, param), (slices, numbers) in zip(group["params"], cut, strict=True):
            dead = torch.from_numpy((numbers % 3 == chosen) & (numbers >= 0))
            view = slices.view(param.detach())
            inner = slices.inner(view)
            view.masked_fill_(
                dead.view([1 if i in inner else n for i, n in enumerate(view.shape)]), 0.0
            )
            live[name] = np.repeat(~dead.numpy(), slices.block)
    return live


def test_norms_take_their_statistics_over_the_channels_that_stay() -> None:
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(5, 4)
    slim: Any = dp.shrink(model, x, narrow_norms=True, latency=False)
    assert slim.first.normalized_shape == slim.last.normalized_shape == (len(KEPT),)
    assert [layer.out_features for layer in (slim.lift, slim.down)] == [len(KEPT)] * 2
    assert [layer.in_features for layer in (slim.up, slim.head)] == [len(KEPT)] * 2
    exact = ByHand(model.double(), KEPT)(x.double())
    torch.testing.assert_close(slim.double()(x.double()), exact, rtol=0, atol=1e-12)
    apart = float((model(x.double()) - exact).detach().abs().max())
    assert apart > 0.05
    assert slim.report.max_abs_diff == pytest.approx(apart, rel=1e-4)


def test_without_being_asked_nothing_that_a_norm_reads_goes() -> None:
    torch.manual_seed(0)
    slim: Any = shrunk(Small().eval(), torch.randn(5, 4))
    assert slim.lift.out_features == WIDTH
    assert "reads all channels for its mean and variance" in why(slim, "up")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("first", [True, False], ids=["pre", "post"])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_every_dead_group_is_a_channel_that_goes(norm: Any, first: bool, tied: bool) -> None:
    torch.manual_seed(0)
    model, tokens = Model(norm, first, tied).eval(), torch.randint(0, 9, (2, 6))
    groups = grouped(model, tokens)
    largest = max(
        (group["penalty"].coupling for group in groups if isinstance(group["penalty"], dp.Coupled)),
        key=lambda coupling: len(coupling.members),
    )
    assert (largest.count(), len(largest.members)) == (WIDTH, 5)
    live = kill_groups(groups, 1)
    fresh = copy.deepcopy(model)
    slim: Any = dp.shrink(model, tokens, narrow_norms=True, latency=False)
    assert slim.tokens.embedding_dim == slim.places.shape[1] == 8
    assert [block.linear1.weight.shape for block in slim.blocks.layers] == [(13, 8)] * 2
    assert [block.self_attn.num_heads for block in slim.blocks.layers] == [2, 2]
    assert (slim.head.weight is slim.tokens.weight) == tied
    footprint = dp.Footprint(model, tokens, narrow_norms=True)
    assert footprint.of(live).parameters == sum(p.numel() for p in slim.parameters())
    plan = json.loads(json.dumps(slim.report.plan))
    again: Any = dp.apply_plan(fresh, plan).eval()
    again.load_state_dict(slim.state_dict())
    assert torch.equal(again(tokens), slim(tokens))
    other: Any = dp.apply_plan(fresh, slim.report.plan)
    assert torch.equal(other.norm.weight, slim.norm.weight)
    shrunk(slim, tokens)  # is a network like any other


def test_a_norm_over_two_axes_and_one_without_weights_keep_their_channels() -> None:
    torch.manual_seed(0)
    for norm in (nn.LayerNorm([3, 6]), nn.LayerNorm(6, elementwise_affine=False)):
        model = Sequential(Linear(4, 6), norm, Linear(6, 2)).eval()
        kill(model[2], (0, 3))
        slim: Any = shrunk(model, torch.randn(2, 3, 4), narrow_norms=True)
        assert slim[0].out_features == 6


def test_widths_stay_multiples() -> None:
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(5, 4)
    slim: Any = dp.shrink(model, x, narrow_norms=True, round_to=4, latency=False)
    assert slim.first.normalized_shape == (8,)
    loose: Any = dp.shrink(model, x, narrow_norms=True, round_to=4, lossy=True, latency=False)
    assert loose.first.normalized_shape == (4,)


@pytest.mark.parametrize("make", [dp.RMDA, dp.RAMDA])
def test_training_goes_on_as_with_norms_over_the_channels_that_stay(make: Any) -> None:
    torch.manual_seed(0)
    dense, x = Small().double(), torch.randn(40, 4, dtype=torch.float64)
    targets = torch.randint(3, (40,))
    for writer in (dense.lift, dense.down):  # what writes dead channels counts in other groups
        writer.weight.data[[*GONE]] = 0
    groups = dp.param_groups(
        dense, dp.GroupLasso(1e-3), coupled=True, example_input=x, narrow_norms=True
    )
    opt = make(groups, lr=0.02, momentum=0.5)
    large = NarrowNorms(dense, dict.fromkeys(["first.weight", "last.weight"], torch.tensor(KEPT)))

    def steps(model: nn.Module, by: dp.ProximalOptimizer, count: int) -> None:
        for _ in range(count):
            by.zero_grad()
            cross_entropy(model(x), targets).backward()
            by.step()

    steps(large, opt, 3)
    twin, twin_opt = copy.deepcopy((dense, opt))
    wide: Any = dp.shrink_training(*copy.deepcopy((dense, opt)), x)[0]
    assert wide.first.normalized_shape == (WIDTH,)
    small: tuple[Any, dp.Plan] = dp.shrink_training(twin, twin_opt, x, narrow_norms=True)
    slim, plan = small
    assert slim.first.normalized_shape == (len(KEPT),)
    steps(large, opt, 5)
    steps(slim, twin_opt, 5)
    for name, param in slim.named_parameters():
        expected = dense.get_parameter(name)
        for axis, kept in plan.keep.get(name, {}).items():
            expected = expected.index_select(axis, torch.tensor(kept))
        torch.testing.assert_close(param, expected, rtol=1e-9, atol=1e-12)


def fitted(target: dp.TargetSize, tied: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    tokens = torch.randint(0, 9, (160, 6))
    batches = [(one, one.flip(1)) for one in tokens.split(16)]

    def loss(scores: Tensor, wanted: Tensor) -> Tensor:
        return cross_entropy(scores.flatten(0, 1), wanted.flatten())

    return dp.fit(Model(tied=tied), batches, 4, target, loss=loss, latency=False, **options)


def test_a_fit_narrows_the_stream_where_it_must() -> None:
    wide = fitted(dp.TargetSize(params=0.5))
    assert not wide.plan.narrow_norms and wide.model.norm.weight.shape == (WIDTH,)
    small = fitted(dp.TargetSize(params=0.1))
    assert small.plan.narrow_norms and small.is_reached
    assert any("residual stream" in note for note in small.notes)
    assert small.model.norm.weight.shape[0] < WIDTH / 2
    tied = fitted(dp.TargetSize(params=0.1), tied=True)
    assert tied.is_reached and tied.model.head.weight is tied.model.tokens.weight
    with pytest.raises(ValueError, match="cannot be reached"):
        fitted(dp.TargetSize(params=0.1), narrow_norms=False)
    with pytest.raises(ValueError, match="cannot be reached"):
        fitted(dp.TargetSize(params=0.001))


def test_a_fit_that_narrows_goes_on_to_the_same_bits(tmp_path: Any) -> None:
    target = dp.TargetSize(params=0.1)
    whole = fitted(target)

    def stop(row: Any) -> None:
        if row.epoch == 3:
            raise StopError

    with pytest.raises(StopError):
        fitted(target, checkpoint=tmp_path / "fit.pt", watch=stop)
    rest = fitted(target, checkpoint=tmp_path / "fit.pt")
    assert rest.history == whole.history and rest.notes == whole.notes
    tokens = torch.randint(0, 9, (4, 6))
    assert torch.equal(run(rest.model, (tokens,))[0], run(whole.model, (tokens,))[0])


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="narrow_norms must be False unless coupled=True"):
        dp.param_groups(Small(), dp.GroupLasso(1.0), narrow_norms=True)
    with pytest.raises(ValueError, match="narrow_norms must be False or None with NuclearNorm"):
        fitted(dp.TargetSize(params=0.5), penalty=dp.NuclearNorm(1.0), narrow_norms=True)
