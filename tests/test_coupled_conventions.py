"""Coupled groups are saved, copied and refused like any penalty, and say what is wrong."""

import copy
import pickle
from typing import Any

import pytest
import torch

import dualprox as dp
from contracts import (
    MEMBERS,
    OPTIMIZERS,
    assert_resumes,
    assert_same,
    coupling_of,
    run,
    snapshot,
)
from coupled_cases import PENALTIES, SHAPES, STREAM, coupled, gradients, parameters
from oracles.coupled import gathered

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
COLUMNS = dp.Slices(1), (0, 1)
NO_GROUPS: Any = dp.L1(1.0)


@every
@pytest.mark.parametrize("saved_at", [0, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_saving_and_loading_changes_no_bit_of_what_follows(maker, saved_at, dtype):
    def made() -> Any:
        params = parameters(dtype=dtype)
        opt = maker([{"params": params, "penalty": coupled()}], maximize=True)
        return params, opt, dp.StageSchedule(opt, [2, 5], 0.3), gradients(params)

    twin, _ = assert_resumes(made, saved_at, 12)
    # The remainder of a narrow iterate is as narrow.
    assert {state.dtype for state in snapshot(twin)} <= {torch.float64, torch.float32, dtype}


def test_copies_continue_alike():
    params = parameters()
    opt = dp.RAMDA([{"params": params, "penalty": coupled()}])
    run(opt, gradients(params), range(5))
    points = [opt.structured_point(p) for p in params]
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        own = twin.param_groups[0]["params"]
        assert_same([twin.structured_point(p) for p in own], points)
        assert twin.param_groups[0]["penalty"] == coupled()
        run(twin, gradients(own), range(5, 9))
    run(opt, gradients(params), range(5, 9))
    assert_same([*params], own)


def test_another_coupling_is_refused_on_load():
    opt = dp.RMDA([{"params": parameters(), "penalty": coupled()}])
    moved = (*STREAM[:3], (*STREAM[3][:4], (7, 8, 9, 7, -1)))
    twin = dp.RMDA([{"params": parameters(), "penalty": coupled(members=moved)}])
    with pytest.raises(ValueError, match=r"group 0 was saved with penalty .*7, 8, 9, -1, 7.*has"):
        twin.load_state_dict(opt.state_dict())
    plain = dp.RMDA([{"params": parameters(), "penalty": dp.GroupLasso(0.35, axis=0)}])
    with pytest.raises(ValueError, match="saved with penalty GroupLasso"):
        opt.load_state_dict(plain.state_dict())


@every
def test_a_gradient_that_is_missing_is_named_before_anything_moves(maker):
    params = parameters()
    first = torch.nn.Parameter(torch.ones(2, 1, dtype=torch.float64))
    named = [(f"w{i}", p) for i, p in enumerate(params)]
    opt = maker([{"params": [("first", first)]}, {"params": named, "penalty": coupled()}])
    set_gradients = gradients([first, *params])
    run(opt, set_gradients, range(2))
    before, state = [p.detach().clone() for p in (first, *params)], snapshot(opt)
    set_gradients(3)
    params[1].grad = params[3].grad = None
    with pytest.raises(RuntimeError, match=r"have no gradient: w1, w3$"):
        opt.step()
    assert_same([first, *params], before)
    assert_same(snapshot(opt), state)
    for p in params:
        p.grad = None
    opt.step()
    assert_same([*params], before[1:])
    assert not torch.equal(first, before[0])


def test_parameters_out_of_step_are_refused():
    params = parameters()
    opt = dp.RMDA([{"params": params, "penalty": coupled()}])
    run(opt, gradients(params), range(2))
    opt.state[params[2]]["restart"].fill_(1)
    with pytest.raises(RuntimeError, match="move together, but their step, penalty_sum, restart"):
        opt.step()


@pytest.mark.parametrize("impl", ["native", "auto", "eager"])
def test_kernels_refuse_and_auto_is_eager(impl):
    params = parameters(dtype=torch.float32)
    try:
        opt = dp.RAMDA([{"params": params, "penalty": coupled()}], impl=impl)
    except ValueError:
        pytest.skip("no native kernels here")
    if impl == "native":
        with pytest.raises(RuntimeError, match=r"cannot step parameter 0.0: Coupled has no fused"):
            run(opt, gradients(params), range(1))
        return
    twins = parameters(dtype=torch.float32)
    eager = dp.RAMDA([{"params": twins, "penalty": coupled()}], impl="eager")
    assert_same(run(opt, gradients(params), range(3)), run(eager, gradients(twins), range(3)))


def test_memory_layouts_make_no_difference():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        params = parameters()
        for i in (0, 1):
            params[i] = torch.nn.Parameter(params[i].detach().to(memory_format=layout))
        opt = dp.RAMDA([{"params": params, "penalty": coupled("GroupMCP")}])
        run(opt, gradients(params), range(20))
        assert params[0].is_contiguous(memory_format=layout)
        results.append([opt.structured_point(p).contiguous() for p in params])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours == 0, theirs == 0)
        assert torch.allclose(ours, theirs, rtol=1e-12)


class Own(dp.RMDA):
    """A subclass whose update may expect single parameters."""


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: p[:3], ValueError, "coupling of 4 tensors needs as many .*, got 3: a, b, c"),
        (lambda p: [p[0], p[2], p[1], p[3]], ValueError, r"parameter b must have .*\(4, 4, 1, 1\)"),
        (lambda p: [*p[:3], p[3].float()], ValueError, "share dtype and device, .* for d and"),
        (lambda p: [*p[:3], p[3].to("meta")], ValueError, "share dtype and device"),
        (lambda p: [*p[:3], p[3].int()], TypeError, "parameter d must be real floating"),
    ],
)
def test_parameters_that_are_not_the_members_are_refused(change, error, message):
    params = change([p.detach() for p in parameters()])
    named = [*zip("abcd", params, strict=False)]
    with pytest.raises(error, match=message):
        dp.RMDA([{"params": named, "penalty": coupled()}])


def test_a_subclass_must_say_that_it_takes_bundles():
    with pytest.raises(TypeError, match="takes_bundles = True"):
        Own([{"params": parameters(), "penalty": coupled()}])
    more = type("More", (Own,), {"takes_bundles": True})
    params = parameters()
    run(more([{"params": params, "penalty": coupled()}]), gradients(params), range(2))
    assert not torch.equal(params[0], parameters()[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: dp.Member((3, 4), dp.Slices(1), (0, 1, 2)),
            ValueError,
            r"groups must have one entry for each of the 4 slices .* \(3, 4\), got 3",
        ),
        (lambda: dp.Member((3, 2), dp.Slices(1), (0, -2)), ValueError, "groups must be >= 0.*-2"),
        (lambda: dp.Member((3,), dp.Slices(1), (0,)), ValueError, "axis must be an axis"),
        (
            lambda: coupling_of([((3, 2), 1, 1, 1, (0, 2))]),
            ValueError,
            "numbered from 0 on without a gap, got up to 2 and none for 1",
        ),
        (
            lambda: dp.Coupling(coupling_of(MEMBERS).members, (1, 2, 0, 4)),
            ValueError,
            r"counted must be an int >= 1 for each of the 4 groups, got \(1, 2, 0, 4\)",
        ),
        (
            lambda: dp.Coupling(coupling_of(MEMBERS).members, weights=(1.0, 2.0, -1.0, 4.0)),
            ValueError,
            r"weights must be a finite number >= 0 for each of the 4 groups, got \(1.0, 2.0, -1.0",
        ),
        (
            lambda: dp.Coupling(coupling_of(MEMBERS).members, weights=(1.0, 2.0)),
            ValueError,
            r"for each of the 4 groups, got \(1.0, 2.0\)",
        ),
        (lambda: coupling_of([]), ValueError, "members must have a slice in a group, got none"),
        (lambda: coupling_of([((3, 1), 1, 1, 1, (-1,))]), ValueError, "got none"),
        (lambda: dp.Coupling(SHAPES), TypeError, "members must be a tuple of Members"),  # pyright: ignore
        (
            lambda: dp.Coupled(NO_GROUPS, coupling_of(MEMBERS)),
            TypeError,
            "penalty must be a GroupPenalty, got L1",
        ),
        (lambda: dp.Coupled(dp.GroupLasso(1.0), 3), TypeError, "must be a Coupling, got 3"),  # pyright: ignore
        (
            lambda: dp.Coupled(dp.GroupLasso(1.0, axis=0), coupling_of(MEMBERS)),
            ValueError,
            "penalty must keep the default axis",
        ),
        (
            lambda: dp.param_groups(torch.nn.Linear(4, 3), coupled(members=MEMBERS)),
            ValueError,
            "a param group of its own",
        ),
    ],
)
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_coupling_is_its_members():
    coupling = coupling_of(MEMBERS)
    assert coupling.count() == 4 and coupling.numel() == 40
    assert coupling.size().tolist() == [len(entries) for entries in gathered(MEMBERS)]
    assert hash(coupling) == hash(coupling_of(MEMBERS)) and coupling == coupling_of(MEMBERS)
    assert coupling != coupling_of(STREAM)
    vector = torch.arange(40.0)
    tensors = coupling.split(vector).tensors()
    assert [t.shape for t in tensors] == [m[0] for m in MEMBERS]
    assert torch.equal(coupling.joint(tensors).vector(), vector)
    assert tensors[1].data_ptr() == vector[12:].data_ptr()


def test_groups_that_lost_zero_entries_keep_their_weight():
    before = dp.Coupling((dp.Member((6, 2), dp.Slices(1), (0, 1)), dp.Member((3, 2), *COLUMNS)))
    after = dp.Coupling(
        (dp.Member((4, 2), dp.Slices(1), (0, 1)), dp.Member((3, 2), *COLUMNS)), (9, 9)
    )
    assert after.size().tolist() == [7, 7] and after != dp.Coupling(after.members)
    assert pickle.loads(pickle.dumps(after)) == after
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(18, generator=generator, dtype=torch.float64)
    w[8:12] = 0  # the last two rows of the first tensor
    left = torch.cat([w[:8], w[12:]])
    for name in PENALTIES:
        inner = coupled(name).penalty
        whole, part = dp.Coupled(inner, before), dp.Coupled(inner, after)
        assert float(whole.value(w)) == pytest.approx(float(part.value(left)), rel=1e-14)
        point = whole.prox(w, 1.5)
        assert torch.allclose(part.prox(left, 1.5), torch.cat([point[:8], point[12:]]))


def test_a_group_without_entries_and_a_single_tensor_work():
    members = (((0, 2), 1, 1, 1, (0, 1)), ((3, 1), 1, 1, 1, (1,)))
    for name in PENALTIES:
        penalty = coupled(name, members, strength=0.1)
        w = torch.ones(3, dtype=torch.float64)
        point, _ = penalty.metric_prox(w, w, 0.5)
        assert torch.allclose(point, penalty.prox(w, 0.5)) and point.any()
        assert penalty.structure(point).live.tolist() == [False, True]
        assert float(penalty.residual(point, (point - w) / 0.5)) < 1e-12
    params = parameters(STREAM[:1])
    opt = dp.RMDA([{"params": params, "penalty": coupled(members=STREAM[:1])}])
    run(opt, gradients(params), range(3))
    assert dp.structure(opt).layers[0].name == "0.0"
