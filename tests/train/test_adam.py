"""The kernel of Adam compared with torch's Adam in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vivace.train.adam import FusedAdam, Segment
from vivace.train.subnormal import flush_subnormal

SETTINGS = {"lr": 1e-2, "eps": 1e-4}


SHAPES = [(7, 5), (5,), (3, 2), (1,), (130, 97)]


def parameters(seed, dtype=torch.float32):
    gen = torch.Generator().manual_seed(seed)
    samples = [torch.randn(shape, generator=gen) for shape in SHAPES]
    return [torch.nn.Parameter(t.to(dtype)) for t in samples], gen


class KernelAdam:
    """Parameters in one buffer, updated by the kernel from their ``.grad``."""

    def __init__(self, params, groups=None, elsewhere=(), **settings):
        groups = groups or [(params, 0.0, 1.0)]
        sizes = [p.numel() for p in params]
        self.params, ends = params, np.cumsum(sizes)
        self.weights, self.gradients = torch.zeros(sum(sizes)), torch.zeros(sum(sizes))
        self.elsewhere = elsewhere
        group_settings = {p: more for group, *more in groups for p in group}
        segments = []
        for p, size, end in zip(params, sizes, ends, strict=True):
            view = self.weights[end - size : end].view(p.shape)
            view.copy_(p.detach())
            p.data = view
            segments.append(Segment(int(end - size), int(end), *group_settings[p]))
        self.segments = segments
        self.adam = FusedAdam(self.weights, self.gradients, segments, **settings)

    def step(self):
        elsewhere = {}
        for i, (p, s) in enumerate(zip(self.params, self.segments, strict=True)):
            if i in self.elsewhere:
                elsewhere[i] = p.grad
                self.gradients[s.start : s.stop] = torch.nan  # nobody reads it
            else:
                self.gradients[s.start : s.stop] = p.grad.reshape(-1)
        self.adam.step(elsewhere)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("elsewhere", [(), (0, 3, 4)], ids=["in the buffer", "elsewhere"])
@pytest.mark.parametrize("decay", [0.0, 3e-3])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
def test_as_near_to_float64_as_torchs_fused_adam(decay, betas, elsewhere):
    kernel_parameters, gen = parameters(0)
    torch_parameters, _ = parameters(0)
    exact, _ = parameters(0, torch.float64)
    groups = [(kernel_parameters[::2], decay, 3.0), (kernel_parameters[1::2], 0.0, 1.0)]
    adam = KernelAdam(kernel_parameters, groups, elsewhere, betas=betas, **SETTINGS)
    peers = [
        torch.optim.Adam(
            [{"params": p[::2], "weight_decay": decay}, {"params": p[1::2]}],
            betas=betas,
            fused=fused,
            **SETTINGS,
        )
        for p, fused in ((torch_parameters, True), (exact, False))
    ]
    for step in range(30):
        adam.adam.lr = 0.01 / (1 + step)
        for peer in peers:
            for group, factor in zip(peer.param_groups, (3.0, 1.0), strict=True):
                group["lr"] = adam.adam.lr * factor
        for a, b, c in zip(kernel_parameters, torch_parameters, exact, strict=True):
            a.grad = torch.randn(a.shape, generator=gen) * 10.0 ** (step % 5 - 3)
            b.grad, c.grad = a.grad.clone(), a.grad.double()
        adam.step()
        for peer in peers:
            peer.step()
    for a, b, c in zip(kernel_parameters, torch_parameters, exact, strict=True):
        error, peers_error = ((x.detach() - c.detach()).abs().max().item() for x in (a, b))
        assert error <= max(2 * peers_error, 3e-7)
        assert not torch.equal(a.detach(), torch.zeros_like(a))


def test_strided_gradients_are_read_as_they_are():
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    adam = KernelAdam([weight], elsewhere=[0], **SETTINGS)
    weight.grad = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]).T
    adam.step()
    assert torch.equal(weight.detach().sign(), -weight.grad)


def test_a_gradient_whose_square_is_beyond_float32_does_not_become_nan():
    (kernel_parameters, *_), _ = parameters(0)
    (torch_parameters, *_), _ = parameters(0)
    adam = KernelAdam([kernel_parameters], **SETTINGS)
    peer = torch.optim.Adam([torch_parameters], fused=True, **SETTINGS)
    for size in (2e19, 1.0, 1e21, 1.0, 1.0):
        kernel_parameters.grad, torch_parameters.grad = (
            torch.full_like(kernel_parameters, size),
            torch.full_like(kernel_parameters, size),
        )
        adam.step()
        peer.step()
        torch.testing.assert_close(kernel_parameters, torch_parameters)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_no_number_shows_in_its_weight_alone(bad):
    (weight, *_), _ = parameters(0)
    adam = KernelAdam([weight], **SETTINGS)
    weight.grad = torch.ones_like(weight)
    weight.grad[2, 3] = bad
    adam.step()
    assert weight.isnan().nonzero().tolist() == [[2, 3]]


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 8193])
def test_every_number_of_every_parameter_is_moved(size):
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (3, size, 5)]
    adam = KernelAdam(params, lr=0.1, eps=1e-8)
    for p in params:
        p.grad = torch.ones_like(p)
    adam.step()
    for p in params:
        torch.testing.assert_close(p.detach(), torch.full_like(p, -0.1))


@pytest.mark.parametrize(
    "given",
    [
        torch.zeros(6)[::2],
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(3, device="meta"),
    ],
)
def test_memory_that_the_kernel_cannot_read_is_refused(given):
    segments = [Segment(0, 3, 0.0)]
    for buffers in ((given, torch.zeros(3)), (torch.zeros(3), given)):
        with pytest.raises(ValueError, match="contiguous float32"):
            FusedAdam(*buffers, segments, **SETTINGS)
    adam = FusedAdam(torch.zeros(3), torch.zeros(3), segments, **SETTINGS)
    if not given.is_contiguous():
        adam.step({0: given})  # a copy is read
        return
    with pytest.raises(ValueError, match="contiguous float32"):
        adam.step({0: given})


def test_a_gradient_of_another_size_is_refused():
    adam = FusedAdam(torch.zeros(3), torch.zeros(3), [Segment(0, 3, 0.0)], **SETTINGS)
    with pytest.raises(ValueError, match="segment 0 has 3 weights, its gradient 2"):
        adam.step({0: torch.zeros(2)})


def test_numbers_outside_the_segments_stay():
    weights = torch.ones(40)
    segments = [Segment(3, 7, 0.1), Segment(20, 21, 0.0)]
    adam = FusedAdam(weights, torch.ones(32), segments, **SETTINGS)
    adam.step()
    assert (weights != 1).nonzero().flatten().tolist() == [3, 4, 5, 6, 20]


def test_gradients_may_be_other_tensors_each_time():
    (weight, *_), _ = parameters(0)
    before = weight.detach().clone()
    adam = KernelAdam([weight], **SETTINGS)
    for sign in (1.0, -1.0):
        weight.grad = torch.full_like(weight, sign)
        adam.step()
    # the second moment corrected for its start is 1 both times; the first -0.1/0.19
    expected = before - 0.01 / (1 + 1e-4) * (1 + (0.9 * 0.1 - 0.1) / (1 - 0.81))
    torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.slow
def test_weights_that_nothing_but_the_penalty_moves_end_at_zero():
    """Not in subnormal numbers, on which a processor is a hundred times slower."""
    (weight, *_), _ = parameters(0)
    adam = KernelAdam([weight], [([weight], 3e-3, 1.0)], lr=1e-2, eps=1e-4)
    for _ in range(6000):
        weight.grad = torch.zeros_like(weight)
        adam.step()
    averages, _ = adam.adam.moments
    assert not weight.detach().any()
    assert not averages.any()


def test_moments_that_have_become_tiny_end_at_zero():
    (weight, *_), _ = parameters(0)
    adam = KernelAdam([weight], betas=(0.5, 0.5), lr=1e-2, eps=1e-4)
    for step in range(240):
        weight.grad = torch.full_like(weight, 1.0 if step == 0 else 0.0)
        adam.step()
        moments = adam.adam.moments
        assert ((moments == 0) | (moments >= 1e-30)).all()
    assert not moments.any()


def test_flushing_leaves_everything_else():
    x = torch.tensor([0.0, 1e-40, -1e-31, 1e-29, -2.0, torch.inf])
    flush_subnormal([x])
    assert x.tolist() == pytest.approx([0.0, 0.0, 0.0, 1e-29, -2.0, torch.inf])
