"""Several processes train as one with the joined batch, on a CPU by gloo."""

import copy

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from torch.nn.parallel import DistributedDataParallel

from mmdet_ebm.engine import join_processes

from ..processes import run_forked, share_noise
from ..small_models import batch, build, energy_model_cfg, shrink

# Objects in the images of process 0 and process 1.
COUNTS = [(3, 2), (4, 0), (1, 0), (0, 0)]
VARIANTS = {
    'NCE+': dict(loss=dict(type='NCEPlusLoss', num_samples=8)),
    'NCE+, in chunks': dict(
        loss=dict(type='NCEPlusLoss', num_samples=8), chunked=True
    ),
    'ML-MCMC': dict(loss=dict(type='MLMCMCLoss', num_samples=8)),
    'DSM': dict(loss=dict(type='DSMLoss', num_samples=8)),
}


def loss_and_gradients(model, inputs, samples):
    model.zero_grad()
    module = getattr(model, 'module', model)
    losses = model(inputs, copy.deepcopy(samples), mode='loss')
    loss, logged = module.parse_losses(losses)
    loss.backward()
    return {name: value.detach() for name, value in logged.items()}, [
        p.grad.clone() for p in module.parameters() if p.requires_grad
    ]


def cases():
    """For each variant and count: a model and a batch of two images."""
    for variant, changes in VARIANTS.items():
        cfg = energy_model_cfg()
        cfg.energy_model.pop('loss')  # else it would be merged
        cfg.energy_model.update(changes)
        cfg.energy_model.head.act_cfg = dict(type='SiLU')
        torch.manual_seed(0)
        model = build(cfg).double().train()
        torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
        for counts in COUNTS:
            inputs, samples = batch(counts)
            for sample in samples:
                sample.gt_instances.bboxes = (
                    sample.gt_instances.bboxes.double()
                )
            yield (variant, counts), model, (inputs.double(), samples)


def part_of_each_process(out):
    share_noise()
    join_processes(Config(dict(launcher='pytorch', model=dict())))
    rank = dist.get_rank()
    results = {}
    for name, model, (inputs, samples) in cases():
        wrapped = DistributedDataParallel(model)
        results[name] = loss_and_gradients(
            wrapped, inputs[rank : rank + 1], samples[rank : rank + 1]
        )
    torch.save(results, out / f'{rank}.pth')


def joint_steps():
    """Two steps: DDP raises in the second if a parameter got no gradient."""
    join_processes(Config(dict(launcher='pytorch', model=dict())))
    rank = dist.get_rank()
    two_stage = energy_model_cfg()
    two_stage.freeze_detector = False
    dense = ConfigDict(
        type='EnergyDetector',
        freeze_detector=False,
        energy_model=two_stage.energy_model,
        detector=shrink(
            get_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py').model
        ),
    )
    for cfg in (two_stage, dense):
        torch.manual_seed(0)
        model = DistributedDataParallel(build(cfg).train())
        for counts in ((3, 0), (0, 0)):
            inputs, samples = batch(counts)
            loss_and_gradients(
                model, inputs[rank : rank + 1], samples[rank : rank + 1]
            )


def whole_in_one_process(out):
    share_noise()
    torch.save(
        {
            name: loss_and_gradients(model, *pair)
            for name, model, pair in cases()
        },
        out / 'whole.pth',
    )


def test_joint_training_leaves_no_parameter_without_gradient():
    """A process without objects, and none anywhere; two kinds of detectors."""
    assert run_forked(joint_steps, processes=2) == [0, 0]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp('processes')
    assert run_forked(part_of_each_process, out, processes=2) == [0, 0]
    assert run_forked(whole_in_one_process, out) == [0]
    return [torch.load(out / f'{name}.pth') for name in ('whole', '0', '1')]


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('counts', COUNTS)
def test_gradient_and_log_are_the_joined_batchs(results, variant, counts):
    """However the objects are spread; a process without any waits for none."""
    (logged, gradients), *parts = (r[variant, counts] for r in results)
    assert {'loss_energy', 'logdensity_truth'} <= set(logged)
    assert any(g.abs().sum() > 0 for g in gradients) == (sum(counts) > 0)
    for part_logged, part_gradients in parts:
        assert list(part_logged) == list(logged)
        for mine, expected in zip(part_logged.values(), logged.values()):
            torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(
            part_gradients, gradients, rtol=1e-6, atol=1e-9
        )
