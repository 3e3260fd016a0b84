import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import dualprox as dp
from contracts import CONVEX, DIAGONAL, LAWS, MEMBERS, Law
from oracles.coupled import gathered

thorough = settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([1e-6, 1e-2, 0.3, 1.0, 3.0, 1e2, 1e6])
steps = st.sampled_from([0.0, 1e-3, 0.1, 0.7, 1.0, 2.9, 40.0])


def drawn(law: Law, seed: int, scale: float) -> tuple[Tensor, torch.Generator]:
    """A random tensor, in a third of the cases with ties and zeros."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(law.shape, generator=generator, dtype=torch.float64)
    if seed % 3 == 0:
        w = (2 * w).round() / 2
    return scale * w, generator


def candidates(law: Law, z: Tensor, w: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Points to beat: near, far, scaled, knocked out, all of them feasible."""
    found = [w, torch.zeros_like(w), 0.5 * z, 2 * z, z * (1 + 1e-6)]
    size = float(w.abs().max()) + 1e-300
    for width in (1e-6, 1e-2, 1.0):
        for _ in range(2):
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
            found.append(z + width * size * noise)
            found.append(z + width * size * noise * (z != 0))
            one = torch.zeros_like(z).flatten()
            one[int(torch.randint(z.numel(), (1,), generator=generator))] = width * size
            found += [z + one.view_as(z), z - one.view_as(z)]
    if isinstance(law.penalty, dp.Coupled):
        for entries in gathered(MEMBERS):
            without, only_w = z.clone(), z.clone()
            without[entries] = 0
            only_w[entries] = w[entries]
            found += [without, only_w]
    for axis in range(0 if isinstance(law.penalty, dp.Coupled) else w.dim()):
        for index in range(w.shape[axis]):
            without, only_w = z.clone(), z.clone()
            without.select(axis, index).zero_()
            only_w.select(axis, index).copy_(w.select(axis, index))
            found += [without, only_w]
    if law.is_constraint:
        found += [law.penalty.prox(point, 1.0) for point in found]
    return found


def assert_beats(cost, z: Tensor, points: list[Tensor]) -> None:
    """`cost` returns an objective and the size of what was summed in it, which sets rounding."""
    best, size = cost(z)
    assert math.isfinite(best)
    for point in points:
        other, other_size = cost(point)
        if math.isfinite(other):
            assert best <= other + 1e-12 * (size + other_size)


@pytest.mark.parametrize("law", LAWS, ids=str)
@given(seed=seeds, scale=scales, step=steps)
@thorough
def test_prox_beats_every_other_point_on_its_own_objective(law, seed, scale, step):
    w, generator = drawn(law, seed, scale)
    z = law.penalty.prox(w, step)

    def cost(point: Tensor) -> tuple[float, float]:
        smooth = 0.5 * (point - w).square().sum()
        value = law.penalty.value(point)
        total = smooth if step == 0 and not law.is_constraint else smooth + step * value
        if law.is_constraint and not math.isfinite(float(value)):
            return math.inf, 0.0
        return float(total), float(smooth + w.square().sum() + (step * value if step else 0))

    assert_beats(cost, z, candidates(law, z, w, generator))


@pytest.mark.parametrize("law", DIAGONAL, ids=str)
@given(seed=seeds, scale=scales, step=steps, spread=st.sampled_from([0.0, 1.0, 3.0]))
@thorough
def test_metric_prox_beats_every_other_point_on_its_own_objective(law, seed, scale, step, spread):
    a, generator = drawn(law, seed, scale)
    d = 10 ** (spread * (2 * torch.rand(law.shape, generator=generator, dtype=torch.float64) - 1))
    assert isinstance(law.penalty, dp.DiagonalPenalty)
    z, _ = law.penalty.metric_prox(a, d, step)

    def cost(point: Tensor) -> tuple[float, float]:
        value = float(law.penalty.value(point))
        if not math.isfinite(value):
            return math.inf, 0.0
        terms = 0.5 * d * point.square() - a * point
        size = float((0.5 * d * point.square() + (a * point).abs()).sum()) + step * value
        return float(terms.sum()) + step * value, size

    assert_beats(cost, z, candidates(law, z, a / d, generator))
    if spread == 0:
        plain = law.penalty.prox(a, step)
        assert torch.equal(z == 0, plain == 0)
        assert (z - plain).abs().max() <= 1e-12 * a.abs().max()


@pytest.mark.parametrize("law", CONVEX, ids=str)
@given(seed=seeds, scale=scales, step=steps)
@thorough
def test_convex_prox_is_firmly_nonexpansive_and_satisfies_moreau(law, seed, scale, step):
    """Moreau: w = prox(w) + p, where p / step must be a subgradient at prox(w)."""
    w, generator = drawn(law, seed, scale)
    other = w + scale * torch.randn(w.shape, generator=generator, dtype=w.dtype)
    z, z_other = law.penalty.prox(w, step), law.penalty.prox(other, step)
    inner = float(((z - z_other) * (w - other)).sum())
    rounding = 1e-12 * float(w.square().sum() + other.square().sum())
    assert float((z - z_other).square().sum()) <= inner + rounding
    if step == 0:
        return
    dual = (w - z) / step
    for point in candidates(law, z, w, generator):
        value = float(law.penalty.value(point))
        if math.isfinite(value):
            gap = value - float(law.penalty.value(z)) - float((dual * (point - z)).sum())
            size = abs(value) + float((dual * point).abs().sum() + (dual * z).abs().sum())
            # The subgradient is a difference of w and z, divided by the step.
            size += float(w.norm() / step * (point - z).norm()) * 1e-3
            assert gap >= -1e-11 * size


@pytest.mark.parametrize("law", LAWS, ids=str)
@given(seed=seeds, scale=scales, step=steps.filter(bool))
@thorough
def test_residual_is_zero_at_prox_fixed_points_and_there_alone(law, seed, scale, step):
    w, generator = drawn(law, seed, scale)
    z = law.penalty.prox(w, step)
    g = (z - w) / step
    allowed = 1e-9 * (float(g.norm()) + float(z.norm()) / step + 1e-6 * scale)
    if isinstance(law.penalty, dp.NuclearNorm | dp.RankAtMost):
        allowed += 1e-9 * float(w.norm()) / step
    assert float(law.penalty.residual(z, g)) <= allowed
    # Against a gradient that pushes on what is free to move, no structure helps.
    free = z != 0
    if isinstance(law.penalty, dp.Box | dp.NonNegative):
        side = law.penalty.structure(z)
        assert isinstance(side, dp.Faces)
        free = (side.side == 0).view(z.shape)
    if isinstance(law.penalty, dp.L2Ball):
        push = torch.randn(z.shape, generator=generator, dtype=z.dtype)
        push -= z * (push * z).sum() / z.square().sum()
    else:
        push = torch.sign(z) * free
    if bool(push.any()) and float(z.norm()) > 0:
        size = float(g.norm()) + 1
        assert float(law.penalty.residual(z, g + size * push)) > 0.1 * size


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_step_zero_is_the_identity_or_the_projection(law):
    w, _ = drawn(law, 1, 1.0)
    z = law.penalty.prox(w, 0.0)
    if law.is_constraint:
        assert float(law.penalty.value(z)) == 0
        assert torch.allclose(law.penalty.prox(z, 0.0), z, rtol=1e-12, atol=1e-14)
    else:
        assert torch.allclose(z, w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_layout_and_copies_make_no_difference(law):
    w, _ = drawn(law, 2, 1.0)
    before = w.clone()
    strided = torch.empty((*law.shape[::-1], 2), dtype=w.dtype)[..., 0]
    strided = strided.permute(*range(w.dim())[::-1])
    strided.copy_(w)
    assert not strided.is_contiguous()
    expected = law.penalty.prox(w, 0.5)
    assert torch.equal(w, before)
    assert torch.allclose(law.penalty.prox(strided, 0.5), expected, rtol=1e-13, atol=1e-14)
    if isinstance(law.penalty, dp.DiagonalPenalty):
        d = torch.rand(law.shape, generator=torch.Generator().manual_seed(3)).double() + 0.5
        z = law.penalty.metric_prox(w, d, 0.5)[0]
        from_strided = law.penalty.metric_prox(strided, d, 0.5)[0]
        assert torch.allclose(from_strided, z, rtol=1e-13, atol=1e-14)


def test_channels_last_kernels_give_the_same_as_contiguous_ones():
    kernel = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    last = kernel.to(memory_format=torch.channels_last)
    d = kernel.abs() + 0.1
    for penalty in (dp.GroupLasso(0.3), dp.GroupLasso(0.3, conv_groups=2), dp.GroupMCP(0.3)):
        assert torch.allclose(penalty.prox(last, 1.0), penalty.prox(kernel, 1.0))
        ours, theirs = (penalty.metric_prox(k, d, 1.0)[0] for k in (last, kernel))
        assert torch.allclose(ours, theirs) and torch.equal(ours == 0, theirs == 0)


@pytest.mark.parametrize(
    "law", [law for law in LAWS if not isinstance(law.penalty, dp.Coupled)], ids=str
)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1)], ids=str)
def test_empty_and_single_entry_tensors_work(law, shape):
    fields = {"block": 1, "conv_groups": 1}
    penalty = law.penalty
    if isinstance(penalty, dp.GroupPenalty):
        penalty = penalty.along(penalty.axis, **fields)
    w = torch.full(shape, 2.0, dtype=torch.float64)
    assert penalty.prox(w, 0.5).shape == w.shape
    assert penalty.value(w).shape == ()
    assert penalty.residual(w, torch.zeros_like(w)).shape == ()
    penalty.structure(w).count()
    if isinstance(penalty, dp.DiagonalPenalty):
        assert penalty.metric_prox(w, torch.ones_like(w), 0.5)[0].shape == w.shape


@pytest.mark.parametrize("law", [law for law in LAWS if law.is_local], ids=str)
def test_nan_stays_visible_and_stays_at_home(law):
    w, _ = drawn(law, 4, 1.0)
    w.view(-1)[0] = torch.nan
    d = torch.ones_like(w)
    assert isinstance(law.penalty, dp.DiagonalPenalty)
    for z in (law.penalty.prox(w, 0.7), law.penalty.metric_prox(w, d, 0.7)[0]):
        assert z.view(-1)[0].isnan()
        slices = law.penalty.slices if isinstance(law.penalty, dp.GroupPenalty) else None
        hit = w.isnan() if slices is None else slices.amax(slices.view(w.isnan().double())) > 0
        hit = hit if slices is None else hit.expand_as(slices.view(w)).reshape(w.shape)
        if isinstance(law.penalty, dp.Coupled):
            hit[gathered(MEMBERS)[0]] = True
        assert not z[~hit].isnan().any()


@pytest.mark.parametrize("law", [law for law in LAWS if not law.is_local], ids=str)
def test_nan_is_not_hidden_by_penalties_of_the_whole_tensor(law):
    w, _ = drawn(law, 4, 1.0)
    w[0, 0] = torch.nan
    try:
        z = law.penalty.prox(w, 0.7)
    except RuntimeError:  # the SVD itself refuses NaN
        return
    assert z.isnan().any()


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_float32_is_close_to_float64(law):
    w, _ = drawn(law, 5, 1.0)
    close = law.penalty.prox(w.float(), 0.3).double()
    assert torch.allclose(close, law.penalty.prox(w, 0.3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_a_penalty_is_its_own_text(law):
    names = {name: getattr(dp, name) for name in dp.__all__}
    assert eval(repr(law.penalty), names) == law.penalty
    assert pickle.loads(pickle.dumps(law.penalty)) == law.penalty


def test_spectral_residuals_are_the_blockwise_distances():
    """In full singular bases the four blocks of the gradient are independent."""
    generator = torch.Generator().manual_seed(6)
    w = (
        torch.randn(5, 2, generator=generator).double()
        @ torch.randn(2, 7, generator=generator).double()
    )
    g = torch.randn(5, 7, generator=generator).double()
    u, _, vh = torch.linalg.svd(w, full_matrices=True)
    blocks = u.mT @ g @ vh.mT
    strength = 0.7
    corner = blocks[:2, :2] + strength * torch.eye(2).double()
    beyond = (torch.linalg.svdvals(blocks[2:, 2:]) - strength).clamp_min(0)
    sides = blocks[:2, 2:].square().sum() + blocks[2:, :2].square().sum()
    expected = (corner.square().sum() + sides + beyond.square().sum()).sqrt()
    assert float(dp.NuclearNorm(strength).residual(w, g)) == pytest.approx(float(expected))
    tangent = (blocks[:2, :2].square().sum() + sides).sqrt()
    assert float(dp.RankAtMost(2).residual(w, g)) == pytest.approx(float(tangent))
    assert float(dp.RankAtMost(3).residual(w, g)) == pytest.approx(float(g.norm()))


def test_structure_counts_what_a_loop_counts():
    w = torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, -1], [3, 0, 0, 0], [0, 0, 1, 0]])
    found = dp.GroupLasso(0.1).structure(w)
    assert found.live.tolist() == [True, False, True, True] and found.group_size == 4
    assert dp.GroupLasso(0.1, axis=0, block=2).structure(w).live.tolist() == [True, True]
    parts = dp.GroupLasso(0.1, conv_groups=2).structure(w)
    assert parts.live.tolist() == [True, False, False, True, True, False, True, False]
    assert dp.L1(0.1).structure(w).count() == 5
    assert dp.NuclearNorm(0.1).structure(w).count() == np.linalg.matrix_rank(w.numpy())
    sides = dp.Box(-1, 2).structure(w.clamp(-1, 2))
    assert isinstance(sides, dp.Faces)
    assert sides.side.view(4, 4).tolist()[1] == [0, 0, 0, -1] and sides.count() == 13


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dp.L1(-1.0), "strength must be a finite number >= 0, got -1.0"),
        (lambda: dp.L1(math.nan), "strength .* got nan"),
        (lambda: dp.GroupLasso(math.inf), "strength .* got inf"),
        (lambda: dp.NuclearNorm("x"), "strength .* got 'x'"),  # pyright: ignore
        (lambda: dp.L0(True), "strength .* got True"),
        (lambda: dp.MCP(1.0, gamma=0), "gamma must be a finite number > 0, got 0"),
        (lambda: dp.SCAD(1.0, gamma=1.0), "gamma must be a finite number > 1, got 1.0"),
        (lambda: dp.GroupMCP(1.0, gamma=-2.0), "gamma .* got -2.0"),
        (lambda: dp.ElasticNet(1.0, l1_ratio=1.5), r"l1_ratio must be in \[0, 1\], got 1.5"),
        (lambda: dp.SparseGroupLasso(1.0, l1_ratio=-0.1), "l1_ratio .* got -0.1"),
        (lambda: dp.GroupLasso(1.0, axis=0.5), "axis must be an int, got 0.5"),  # pyright: ignore
        (lambda: dp.GroupLasso(1.0, block=0), "block must be an int >= 1, got 0"),
        (lambda: dp.GroupLasso(1.0, conv_groups=0), "conv_groups .* got 0"),
        (lambda: dp.GroupLasso(1.0, size_weighted=1), "size_weighted .* got 1"),  # pyright: ignore
        (lambda: dp.Box(1.0, 1.0), "lower must be < upper = 1.0, got 1.0"),
        (lambda: dp.Box(math.nan, 1.0), "lower .* got nan"),
        (lambda: dp.L2Ball(0.0), "radius must be a finite number > 0, got 0.0"),
        (lambda: dp.Cardinality(0), "k must be an int >= 1, got 0"),
        (lambda: dp.RankAtMost(1.5), "rank must be an int >= 0, got 1.5"),  # pyright: ignore
    ],
)
def test_bad_settings_are_refused_by_name_rule_and_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("penalty", "shape"),
    [
        (dp.GroupLasso(1.0, axis=1), (5,)),
        (dp.GroupLasso(1.0, block=4), (3, 6)),
        (dp.GroupLasso(1.0, conv_groups=2), (3, 6)),
        (dp.NuclearNorm(1.0), (7,)),
    ],
)
def test_a_penalty_refuses_a_shape_it_does_not_fit(penalty, shape):
    with pytest.raises(ValueError, match=type(penalty).__name__):
        penalty.check(torch.Size(shape))
