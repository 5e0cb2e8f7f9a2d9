"""The published algorithm, plainly: what the benchmark compares with.

Written from its description (arXiv 2005.01698 and its public code's known
costs); nothing here is used by the package.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmdet_ebm.ops import relative_to_boxes

SIGMAS, BETA, NUM_SAMPLES = (0.075, 0.15, 0.3), 0.1, 127
PUBLISHED_ASCENT = dict(
    num_steps=10, step_length=(80e-5, 32e-4), step_decay=0.5
)


def refine_in_lists(
    logdensity: Callable[[Sequence[Tensor]], Tensor],
    boxes: Sequence[Tensor],
    step_length: tuple[float, float],
    num_steps: int,
    step_decay: float,
) -> list[Tensor]:
    """Gradient ascent with lists of images.

    A step runs one forward and a full backward pass (gradients of weights and
    feature maps included, where those require them) and a second forward pass
    that judges the step.

    Args:
        logdensity: Corners of each image, (K_i, 4) -> f of all, (sum K_i,).
        boxes: Initial boxes of each image.
        step_length: For centre and size, in relative space.
        num_steps: Steps.
        step_decay: Factor on a box's steps after one that was refused.
    """
    counts = [len(b) for b in boxes]
    relative = [torch.zeros_like(b) for b in boxes]
    lengths = [
        b.new_tensor(step_length).repeat_interleave(2).repeat(len(b), 1)
        for b in boxes
    ]

    def evaluate(points: Sequence[Tensor]) -> Tensor:
        return logdensity(
            [relative_to_boxes(t, b) for t, b in zip(points, boxes)]
        )

    for _ in range(num_steps):
        points = [t.detach().requires_grad_() for t in relative]
        values = evaluate(points)
        values.sum().backward(retain_graph=True)  # of the feature maps
        moved = [
            t.detach() + step * t.grad for t, step in zip(points, lengths)
        ]
        with torch.no_grad():
            new_values = evaluate(moved)
        keep = (new_values >= values.detach()).split(counts)
        for i, kept in enumerate(keep):
            relative[i] = torch.where(kept[:, None], moved[i], relative[i])
            lengths[i] = torch.where(
                kept[:, None], lengths[i], lengths[i] * step_decay
            )
    return [relative_to_boxes(t, b) for t, b in zip(relative, boxes)]


def sample_noise_of_object(
    sigmas: Sequence[float], num_samples: int
) -> tuple[Tensor, Tensor]:
    """Offsets (M, 4) around one object, and their log q (M,)."""
    widths = torch.tensor(sigmas)
    component = torch.randint(len(sigmas), (num_samples,))
    offsets = widths[component][:, None] * torch.randn(num_samples, 4)
    densities = torch.stack(
        [
            torch.distributions.Normal(0.0, sigma)
            .log_prob(offsets)
            .sum(1)
            .exp()
            for sigma in sigmas
        ]
    )
    return offsets, densities.mean(0).log()


def nce_step(
    logdensity: Callable[[Tensor, int], Tensor],
    boxes: Sequence[Tensor],
    sigmas: Sequence[float],
    beta: float,
    num_samples: int,
) -> Tensor:
    """NCE+ loss, noise drawn object by object.

    Args:
        logdensity: Corners (R, S, 4), all objects of the batch -> f (R, S).
        boxes: Ground truth of each image.
        sigmas: Widths of the noise.
        beta: Width of the positive's shift relative to the noise.
        num_samples: Noise samples, beside the positive.
    """
    corners, noise_logprobs = [], []
    for box in torch.cat(list(boxes)):
        offsets, logprob = sample_noise_of_object(sigmas, num_samples)
        shift, _ = sample_noise_of_object([beta * s for s in sigmas], 1)
        density = torch.stack(
            [
                torch.distributions.Normal(0.0, sigma)
                .log_prob(shift)
                .sum(1)
                .exp()
                for sigma in sigmas
            ]
        ).mean(0)
        offsets = torch.cat([shift, offsets])
        corners.append(relative_to_boxes(offsets, box))
        noise_logprobs.append(torch.cat([density.log(), logprob]))
    logits = logdensity(torch.stack(corners)) - torch.stack(noise_logprobs)
    return (logits.logsumexp(1) - logits[:, 0]).mean()
