"""Mixed precision on a CPU: the head in bfloat16, pooling and f in float32."""

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS

from ..small_models import batch, build, energy_model_cfg


def test_the_head_computes_in_bfloat16_and_its_weights_stay_float32():
    model = build(energy_model_cfg()).train()
    torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
    head = model.energy_model.head
    seen = {}
    model.detector.neck.register_forward_hook(
        lambda module, args, out: seen.update(feature=out[0].dtype)
    )
    head.register_forward_hook(
        lambda module, args, out: seen.update(
            pooled=args[0].dtype, logdensity=out.dtype
        )
    )
    head.fc_logdensity.register_forward_hook(
        lambda module, args, out: seen.update(hidden=args[0].dtype)
    )
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='BFloat16OptimWrapper',
            accumulative_counts=2,
            optimizer=dict(type='SGD', lr=0.01),
        ),
    )
    assert isinstance(wrapper, OPTIM_WRAPPERS.get('BFloat16OptimWrapper'))
    before = head.fc_logdensity.weight.clone()
    inputs, samples = batch()
    for _ in range(2):
        assert torch.equal(head.fc_logdensity.weight, before)
        with wrapper.optim_context(model):
            losses = model.loss(inputs, samples)
        wrapper.update_params(model.parse_losses(losses)[0])
    assert seen == dict(
        feature=torch.bfloat16,
        hidden=torch.bfloat16,
        pooled=torch.float32,
        logdensity=torch.float32,
    )
    after = head.fc_logdensity.weight
    assert after.dtype == torch.float32 and not torch.equal(after, before)
