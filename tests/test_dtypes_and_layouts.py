import pytest
import torch

import dualprox as dp
from contracts import OPTIMIZERS, assert_same, grouped, run, small_problem, snapshot

every = pytest.mark.parametrize("maker", OPTIMIZERS, ids=str)
averaging = pytest.mark.parametrize("maker", [m for m in OPTIMIZERS if m.averages], ids=str)


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_sums_are_float32_or_wider_for_every_dtype(maker, dtype):
    params, set_gradients = small_problem(dtype)
    opt = maker(grouped(params))
    run(opt, set_gradients, range(3))
    wide = torch.promote_types(dtype, torch.float32)
    for param in params:
        assert param.dtype == dtype and param.isfinite().all()
        state = dict(opt.state[param])
        remainder = state.pop("remainder", None)
        if dtype == wide:
            assert remainder is None
        else:
            assert remainder is not None and remainder.dtype == torch.bfloat16
        buffers = [t for t in state.values() if t.dim()]
        assert buffers and all(t.dtype == wide for t in buffers)


@averaging
def test_a_thousand_equal_bf16_gradients_sum_to_what_they_should(maker):
    w = torch.nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    opt = maker([w], lr=1e-3)
    for _ in range(1000):
        w.grad = torch.full_like(w, 0.1)
        opt.step()
    state = opt.state[w]
    expected = float(torch.tensor(0.1, dtype=torch.bfloat16)) * state["penalty_sum"].item()
    assert (state["grad_sum"].double() / expected - 1).abs().max() < 1e-5


@every
def test_channels_last_and_strided_tensors_train_like_contiguous_ones(maker):
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(6, 4, 3, 3, generator=generator, dtype=torch.float64)
    grads = [torch.randn(6, 4, 3, 3, generator=generator).double() for _ in range(4)]
    results = []
    for form in (torch.contiguous_format, torch.channels_last):
        for strided in (False, True):
            w = torch.nn.Parameter(kernel.clone(memory_format=form))
            opt = maker([{"params": [w], "penalty": dp.GroupLasso(0.3, conv_groups=2)}])
            for grad in grads:
                w.grad = grad.transpose(2, 3).contiguous().transpose(2, 3) if strided else grad
                opt.step()
            results.append((w.detach(), opt.structured_point(w)))
    for weight, point in results[1:]:
        assert torch.allclose(weight, results[0][0], rtol=1e-12, atol=1e-14)
        assert torch.equal(point == 0, results[0][1] == 0)


@every
def test_sparse_and_complex_are_refused_before_anything_moves(maker):
    params, set_gradients = small_problem()
    opt = maker(grouped(params))
    set_gradients(0)
    params[2].grad = params[2].grad.to_sparse()  # pyright: ignore
    state, weights = snapshot(opt), [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=r"needs dense gradients, parameter 0\.1 has .*sparse"):
        opt.step()
    assert_same(snapshot(opt), state)
    assert_same([p.detach() for p in params], weights)
    with pytest.raises(TypeError, match=r"must be real floating, got torch\.complex64"):
        maker([torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


@every
def test_a_model_may_change_dtype_between_construction_and_first_step(maker):
    model = torch.nn.Linear(3, 2)
    opt = maker(dp.param_groups(model, dp.GroupLasso(0.1)))
    model.double()
    model(torch.ones(1, 3).double()).sum().backward()
    opt.step()
    assert all(t.dtype == torch.float64 for s in opt.state.values() for t in s.values())
