"""A loss differentiated part by part, while the pooled features are there."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .energy_head import EnergyHead


def loss_by_parts(
    head: EnergyHead,
    parts: Iterable[tuple[Tensor, Tensor]],
    part_loss: Callable[[int, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The sum of a loss over parts of a batch, and f.

    Pooled features are what a training step mostly holds. Here those of one
    part exist at a time: the gradients in the head's parameters are computed
    with the value, before the next part is pooled, and only wait for the
    factor that the backward pass brings. Where autocast is on, the first
    layer's products have its precision, as in ``F.linear``.

    Args:
        head: Its parameters are what the loss is differentiated in.
        parts: Pooled features (R_i, C, P, Q), without a graph, and labels
            (R_i,) of each part; best a generator, which pools at need and
            keeps nothing.
        part_loss: Number of a part and f (R_i,) -> its share of the loss.

    Returns:
        The sum, once differentiable in the parameters, and f (sum R_i,)
        without a graph.

    Raises:
        ValueError: If the pooled features do not have the head's shape.
    """
    return _LossByParts.apply(head, parts, part_loss, *head.parameters())


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Precision of products under autocast; None where it is off."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(
        kind
    ):
        return torch.get_autocast_dtype(kind)
    return None


class _LossByParts(Function):
    @staticmethod
    def forward(ctx, head, parts, part_loss, *parameters):
        first = head.first_layer
        weight = first.flat_weight().detach()
        dtype = autocast_dtype(weight.device) or weight.dtype
        low = weight.to(dtype)
        grad_weight = (
            torch.zeros_like(weight) if first.weight.requires_grad else None
        )
        # All parameters but the first weight, whose gradient is much larger
        # than the others' and is summed up by the product itself.
        others = {
            i: p
            for i, p in enumerate(parameters)
            if p is not first.weight and p.requires_grad
        }
        grads = {i: torch.zeros_like(p) for i, p in others.items()}
        total, values = weight.new_zeros(()), [weight.new_zeros(0)]
        for pooled, labels in parts:
            head.check_shape(pooled)
            pooled = first.flat(pooled).to(dtype)
            products = torch.mm(pooled, low.t()).requires_grad_()
            with torch.enable_grad():
                logdensity = head.from_products(products, labels)
                loss = part_loss(len(values) - 1, logdensity)
                grad_products, *part_grads = torch.autograd.grad(
                    loss, [products, *others.values()], materialize_grads=True
                )
            for i, grad in zip(others, part_grads):
                grads[i] += grad
            if grad_weight is not None:
                _add_product(grad_weight, grad_products.t(), pooled)
            total = total + loss.detach()
            values.append(logdensity.detach())
            del pooled  # before the next part is
        if grad_weight is not None:
            index = [p is first.weight for p in parameters].index(True)
            grads[index] = first.unflat_weight(grad_weight)
        grads = [grads.get(i) for i in range(len(parameters))]
        ctx.save_for_backward(*grads)
        values = torch.cat(values)
        ctx.mark_non_differentiable(values)
        return total, values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        return (
            None,
            None,
            None,
            *(None if g is None else g * grad for g in ctx.saved_tensors),
        )


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:  # a lower precision; sums are not of it
        total += left @ right
