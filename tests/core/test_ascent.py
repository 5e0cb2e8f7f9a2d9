"""Ascents: fixed points, control of the steps, cost, modes."""

import pytest
import torch

from mmdet_ebm.core import (
    gradient_ascent,
    secant_steps,
    stopping_ascent,
)

from .conftest import generator

PEAK = torch.tensor([1.0, -2.0])


def bowl(y):
    return -0.5 * (y - PEAK).square().sum(-1)


def test_one_step_is_the_gradient_times_each_dimensions_step():
    init = torch.zeros(1, 1, 2)
    result = gradient_ascent(bowl, init, (0.1, 0.2), num_steps=1)
    torch.testing.assert_close(result.y[0, 0], torch.tensor([0.1, -0.4]))
    assert result.info.num_accepted.tolist() == [[1]]
    torch.testing.assert_close(result.logdensity, bowl(result.y))
    torch.testing.assert_close(result.info.logdensities[0], bowl(init))


def test_converges_to_the_peak():
    init = torch.randn(4, 3, 2) * 5
    result = gradient_ascent(bowl, init, (0.5, 0.5), num_steps=40)
    assert (result.y - PEAK).abs().max() < 1e-4


def test_log_density_never_falls_even_with_huge_steps():
    init = torch.randn(50, 2, 2)
    result = gradient_ascent(bowl, init, (5.0, 5.0), num_steps=6)
    assert (result.logdensity >= bowl(init)).all()
    torch.testing.assert_close(result.logdensity, bowl(result.y))


def test_refused_steps_shrink_only_that_candidates_step():
    """Gradient 2 at distance 2. Step 3 overshoots, 1.5 and 0.75 do not."""
    seen = []

    def watched(y):
        seen.append(y.detach().clone())
        return -0.5 * y[..., 0].square()

    init = torch.tensor([[[2.0]], [[0.0]]])
    result = gradient_ascent(watched, init, (3.0,), num_steps=2)
    # 2 - 3 * 2 = -4 is refused (f = -8 < -2); then 2 - 1.5 * 2 = -1 is kept.
    assert [y[0, 0, 0].item() for y in seen] == [2.0, -4.0, -1.0]
    assert result.info.num_accepted[:, 0].tolist() == [1, 2]
    assert result.y[:, 0, 0].tolist() == [-1.0, 0.0]


def valley(y):
    """Curvatures 1 and 1.5; the peak is the origin."""
    return -0.5 * (y.square() * torch.tensor([1.0, 1.5])).sum(-1)


def test_secant_steps_reach_the_peak_of_a_quadratic_at_the_second():
    """Each dimension's length becomes 1 / its curvature: Newton's step."""
    init = torch.randn(5, 2, 2)
    result = gradient_ascent(
        valley, init, (0.6, 0.6), num_steps=2, step_rule='secant'
    )
    torch.testing.assert_close(result.y, torch.zeros_like(init))


@pytest.mark.parametrize('length, factor', [(0.01, 2.0), (100.0, 0.25)])
def test_secant_steps_change_by_a_bounded_factor(length, factor):
    """Curvature 1 calls for a length of 1."""
    seen = []

    def watched(y):
        seen.append(y.item())
        return -0.5 * y[..., 0].square()

    gradient_ascent(
        watched,
        torch.ones(1, 1, 1),
        (length,),
        num_steps=2,
        step_rule='secant',
    )
    start = seen[1] if seen[1] ** 2 < 1 else 1.0  # a refused move stays
    assert seen[2] == pytest.approx(start - factor * length * start)


def test_every_secant_step_shrinks_after_a_refused_move():
    """x overshoots; y and z, whose curvature calls for more, have to wait."""
    step = torch.ones(1, 1, 4)
    move = torch.ones(1, 1, 4)
    change = torch.tensor([[[-2.0, -1.0, -0.1, -9.0]]])
    for kept, decay, expected in (
        (True, 0.5, [0.5, 1.0, 2.0, 0.25]),
        (False, 0.5, [0.5, 0.5, 0.5, 0.25]),
        (False, 0.75, [0.5, 0.75, 0.75, 0.25]),
        (False, 0.125, [0.125] * 4),
    ):
        lengths = secant_steps(
            step, move, change, torch.tensor([[kept]]), decay
        )
        assert lengths[0, 0].tolist() == expected


@pytest.mark.parametrize('rule', ['decay', 'secant'])
def test_no_candidate_stays_where_it_can_climb(rule):
    """On mixtures of narrow Gaussians, with a first step far too long."""
    source = generator()
    means = torch.randn(400, 8, 4, generator=source)
    widths = 0.3 + torch.rand(400, 8, generator=source)
    heights = 30 * torch.rand(400, 8, generator=source)

    def logdensity(y):
        squares = (y[:, :, None] - means[:, None]).square().sum(-1)
        bumps = heights[:, None] * (-squares / widths[:, None].square()).exp()
        return bumps.sum(-1)

    init = torch.randn(400, 1, 4, generator=source, requires_grad=True)
    (grad,) = torch.autograd.grad(logdensity(init).sum(), init)
    can_climb = grad[:, 0].norm(dim=-1) > 0.01
    assert can_climb.sum() > 380
    result = gradient_ascent(
        logdensity, init, (0.5,) * 4, num_steps=30, step_rule=rule
    )
    assert (result.info.num_accepted[can_climb] > 0).all()
    assert (result.y != init)[can_climb].any(-1).all()


def test_secant_steps_double_where_no_maximum_is_in_sight():
    step, move = torch.ones(1, 2, 2), torch.ones(1, 2, 2)
    change = torch.tensor([[[0.0, 3.0], [torch.nan, 0.0]]])
    kept = torch.tensor([[True, False]])
    lengths = secant_steps(step, move, change, kept, 0.5)
    assert lengths.tolist() == [[[2, 2], [0.5, 0.5]]]


def test_four_secant_steps_climb_as_far_as_ten_decayed_ones():
    """On concave quadratics with random axes and curvatures of 0.1 to 10."""
    source = generator()
    axes = torch.linalg.qr(torch.randn(200, 4, 4, generator=source))[0]
    curvature = 10 ** (2 * torch.rand(200, 4, generator=source) - 1)
    matrix = axes @ torch.diag_embed(curvature) @ axes.transpose(1, 2)

    def logdensity(y):
        return -0.5 * torch.einsum('nsi,nij,nsj->ns', y, matrix, y)

    init = torch.randn(200, 1, 4, generator=source)
    gains = [
        (result.logdensity - result.info.logdensities[0]).mean()
        for result in (
            gradient_ascent(logdensity, init, (0.1,) * 4, 10),
            gradient_ascent(
                logdensity, init, (0.1,) * 4, 4, step_rule='secant'
            ),
        )
    ]
    assert gains[1] > 0.95 * gains[0]


def test_unknown_step_rules_are_refused():
    with pytest.raises(ValueError, match="decay, secant, got 'newton'"):
        gradient_ascent(
            bowl, torch.zeros(1, 1, 2), (0.1, 0.1), step_rule='newton'
        )


def test_steps_into_nan_are_refused():
    def cliff(y):
        value = y[..., 0]
        return torch.where(value > 1, torch.nan, value)

    result = gradient_ascent(cliff, torch.tensor([[[0.9]]]), (0.4,), 3)
    # 1.3 and 1.1 are NaN; 1.0 is not.
    assert result.y.item() == pytest.approx(1.0)
    assert result.info.num_accepted.item() == 1


def test_evaluations_are_shared_between_check_and_gradient():
    """n steps: n + 1 evaluations, the last of them without a graph."""
    calls = []

    def counted(y):
        calls.append(y.requires_grad)
        return bowl(y)

    gradient_ascent(counted, torch.zeros(1, 1, 2), (0.1, 0.1), num_steps=5)
    assert calls == [True] * 5 + [False]


@pytest.mark.parametrize('check_last', [True, False])
def test_zero_steps_only_evaluate(check_last):
    init = torch.randn(2, 1, 2)
    result = gradient_ascent(
        bowl, init, (0.1, 0.1), num_steps=0, check_last=check_last
    )
    assert torch.equal(result.y, init)
    torch.testing.assert_close(result.logdensity, bowl(init))


def test_an_unchecked_last_step_is_taken_and_saves_an_evaluation():
    calls = []

    def counted(y):
        calls.append(y)
        return bowl(y)

    init = torch.tensor([[[0.0, 0.0]], [[torch.inf, 0.0]]])
    # So long that f falls.
    result = gradient_ascent(
        counted, init, (2.5, 2.5), num_steps=1, check_last=False
    )
    assert len(calls) == 1
    torch.testing.assert_close(result.y[0, 0], 2.5 * PEAK)
    assert torch.equal(result.y[1], init[1])
    assert result.info.num_accepted.tolist() == [[1], [0]]
    assert result.logdensity[0].isnan().all()


def test_parameters_get_no_gradient_and_results_no_graph():
    weight = torch.ones(2, requires_grad=True)
    result = gradient_ascent(
        lambda y: -(weight * y.square()).sum(-1),
        torch.ones(1, 1, 2),
        (0.1, 0.1),
        3,
    )
    assert weight.grad is None
    assert not result.y.requires_grad and not result.logdensity.requires_grad


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_switched_off(mode):
    expected = gradient_ascent(bowl, torch.zeros(1, 1, 2), (0.1, 0.1)).y
    with mode():
        result = gradient_ascent(bowl, torch.zeros(1, 1, 2), (0.1, 0.1))
    torch.testing.assert_close(result.y, expected)


def test_a_candidates_path_does_not_depend_on_the_batch():
    init = torch.randn(6, 1, 2)
    together = gradient_ascent(bowl, init, (1.9, 1.9), 4).y
    alone = torch.cat(
        [
            gradient_ascent(bowl, init[i : i + 1], (1.9, 1.9), 4).y
            for i in range(6)
        ]
    )
    torch.testing.assert_close(together, alone)


def test_no_candidates():
    result = gradient_ascent(bowl, torch.zeros(0, 1, 2), (0.1, 0.1))
    assert result.y.shape == (0, 1, 2) and result.logdensity.shape == (0, 1)


def test_start_is_not_changed():
    init = torch.zeros(1, 1, 2)
    gradient_ascent(bowl, init, (0.1, 0.1))
    assert (init == 0).all()


@pytest.mark.parametrize(
    'arguments',
    [
        dict(init=torch.zeros(3, 2), step_length=(0.1, 0.1)),
        dict(init=torch.zeros(3, 1, 2), step_length=(0.1,)),
        dict(init=torch.zeros(3, 1, 2), step_length=(0.1, 0.1), num_steps=-1),
        dict(
            init=torch.zeros(3, 1, 2), step_length=(0.1, 0.1), step_decay=1.0
        ),
    ],
)
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match='expected|num_steps|step_decay'):
        gradient_ascent(bowl, **arguments)


def stopping(logdensity, init, num_steps):
    return stopping_ascent(
        logdensity, init, lambda y: 0.9 * torch.ones_like(y), num_steps
    )


def stepping(logdensity, init, num_steps):
    return gradient_ascent(logdensity, init, (1.9, 2.5), num_steps)


@pytest.mark.parametrize('ascend', [stepping, stopping])
@pytest.mark.parametrize('num_steps', [0, 1, 5])
def test_the_trajectory_leads_from_the_start_to_the_result(ascend, num_steps):
    """Its rows are the results of fewer steps."""
    init = torch.randn(6, 3, 2)
    result = ascend(bowl, init, num_steps)
    info = result.info
    assert info.trajectory.shape == (num_steps + 1, 6, 3, 2)
    assert info.logdensities.shape == (num_steps + 1, 6, 3)
    for steps in range(num_steps + 1):
        shorter = ascend(bowl, init, steps)
        assert torch.equal(info.trajectory[steps], shorter.y)
        assert torch.equal(info.logdensities[steps], shorter.logdensity)
    assert torch.equal(info.trajectory[0], init)
    assert torch.equal(info.trajectory[-1], result.y)
    assert not info.trajectory.requires_grad
    assert not info.logdensities.requires_grad


def test_f_never_falls_along_a_trajectory_with_huge_steps():
    result = gradient_ascent(bowl, torch.randn(50, 2, 2), (5.0, 5.0), 6)
    rises = result.info.logdensities.diff(dim=0)
    assert (rises >= 0).all()
    moved = (result.info.trajectory.diff(dim=0) != 0).any(-1).sum(0)
    assert torch.equal(moved, result.info.num_accepted)


@pytest.mark.parametrize('ascend', [stepping, stopping])
def test_nothing_is_read_back_to_the_host(ascend):
    """Tensors without data cannot be."""
    result = ascend(
        lambda y: -y.square().sum(-1), torch.zeros(3, 1, 2, device='meta'), 3
    )
    assert result.info.trajectory.shape == (4, 3, 1, 2)


def test_stopping_ascent_takes_plain_steps_until_f_hardly_changes():
    """f = -y^2 / 2 from 2, step 0.5: y halves, f rises by 3/8 y^2."""
    init = torch.tensor([[[2.0]], [[0.02]]])
    result = stopping_ascent(
        lambda y: -0.5 * y[..., 0].square(),
        init,
        lambda y: 0.5 * torch.ones_like(y),
        num_steps=5,
        min_change=0.01,
    )
    # The second changes by 0.00015 in its first step, which it keeps.
    assert result.y.flatten().tolist() == pytest.approx([2 / 2**5, 0.01])
    assert result.info.num_accepted.flatten().tolist() == [5, 1]


def test_stopping_ascent_keeps_the_step_that_fell_too_far_and_stops():
    """Step 3: 2 -> -4, f falls from -2 to -8."""
    init = torch.tensor([[[2.0]]])
    result = stopping_ascent(
        lambda y: -0.5 * y[..., 0].square(),
        init,
        lambda y: 3 * torch.ones_like(y),
        num_steps=5,
    )
    assert result.y.item() == -4 and result.logdensity.item() == -8
    assert result.info.logdensities[0].item() == -2
    # A fall within the tolerance goes on.
    result = stopping_ascent(
        lambda y: -0.5 * y[..., 0].square(),
        init,
        lambda y: 3 * torch.ones_like(y),
        num_steps=2,
        max_fall=10,
    )
    assert result.y.item() == 8


def test_stopping_ascent_does_not_step_into_nan():
    result = stopping_ascent(
        lambda y: torch.where(y[..., 0] > 1, torch.nan, y[..., 0]),
        torch.tensor([[[0.5]]]),
        lambda y: 0.4 * torch.ones_like(y),
        5,
    )
    assert result.y.item() == pytest.approx(0.9)
    assert result.logdensity.item() == pytest.approx(0.9)


def test_stopping_ascent_refuses_negative_numbers():
    with pytest.raises(ValueError, match='negative|num_steps'):
        stopping_ascent(
            bowl, torch.zeros(1, 1, 2), torch.ones_like, num_steps=-1
        )
