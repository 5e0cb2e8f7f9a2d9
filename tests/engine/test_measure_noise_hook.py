"""The noise of a training is as wide as the detector's errors."""

from types import SimpleNamespace

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS
from mmengine.structures import InstanceData
from torch import nn

from mmdet_ebm.engine import MeasureNoiseHook, measure_noise
from mmdet_ebm.engine import measure_noise_hook as module
from mmdet_ebm.ops import relative_to_boxes

from ..small_models import build, energy_model_cfg

CENTRE, SIZE = 0.03, 0.06


class Images:
    """A data set of images with ten objects each; the last is a crowd."""

    def __init__(self, number):
        self.number = number
        self.read = []

    def __len__(self):
        return self.number

    def get_data_info(self, index):
        self.read.append(index)
        generator = torch.Generator().manual_seed(index)
        # Far from each other, so that only one match is possible.
        corner = 300.0 * torch.arange(10)[:, None].expand(-1, 2)
        size = 20 + 80 * torch.rand(10, 2, generator=generator)
        boxes = torch.cat([corner, corner + size], 1)
        instances = [
            dict(bbox=box, bbox_label=row % 3, ignore_flag=row == 9)
            for row, box in enumerate(boxes.tolist())
        ]
        return dict(instances=instances, seed=index)


class Errs(nn.Module):
    """A detector with errors of known spread, and with false positives."""

    factor = 1.0

    def predict(self, inputs, samples):
        assert not self.training
        info = samples[0].metainfo
        truth = torch.tensor([each['bbox'] for each in info['instances']])
        labels = torch.tensor([e['bbox_label'] for e in info['instances']])
        generator = torch.Generator().manual_seed(info['seed'])
        error = torch.randn(10, 4, generator=generator)
        error *= self.factor * torch.tensor([CENTRE, CENTRE, SIZE, SIZE])
        error[9] = 0.15  # the crowd must not count
        # The others are of another class, or doubles of a lower score.
        sample = DetDataSample()
        sample.pred_instances = InstanceData(
            bboxes=torch.cat([relative_to_boxes(error, truth), truth, truth]),
            scores=torch.cat([torch.ones(10), torch.full((20,), 0.1)]),
            labels=torch.cat([labels, (labels + 1) % 3, labels]),
        )
        return [sample]


class Passes(nn.Module):
    """A preprocessor that changes nothing."""

    def forward(self, data, training):
        return data


@pytest.fixture
def new_runner(monkeypatch):
    """Makes runners before their first step."""

    def pipeline(info):
        return dict(inputs=0, data_samples=DetDataSample(metainfo=info))

    monkeypatch.setattr(module, '_test_pipeline', lambda cfg: pipeline)

    def new_runner(val=True, **loss):
        cfg = energy_model_cfg()
        cfg.energy_model.uncertainty = {}
        cfg.energy_model.loss = {**cfg.energy_model.loss, **loss}
        model = build(cfg)
        model.detector, model.data_preprocessor = Errs(), Passes()
        train, val = (
            SimpleNamespace(dataloader=SimpleNamespace(dataset=Images(number)))
            for number in (60, 80 if val else 0)
        )
        lines = []
        return SimpleNamespace(
            model=model.train(),
            iter=0,
            cfg=ConfigDict(),
            lines=lines,
            logger=SimpleNamespace(info=lines.append),
            train_loop=train,
            val_loop=val if val.dataloader.dataset.number else None,
        )

    return new_runner


def widths(model):
    return model.energy_model.loss_energy.method.noise.sigmas


KNOWN = torch.tensor([[0.5], [1.0], [2.0]]) * torch.tensor(
    [CENTRE, CENTRE, SIZE, SIZE]
)


def test_the_noise_becomes_as_wide_as_the_errors(new_runner):
    runner = new_runner(sigmas='measured')
    HOOKS.build(dict(type='MeasureNoiseHook')).before_train(runner)
    torch.testing.assert_close(widths(runner.model), KNOWN, rtol=0.1, atol=0.0)
    estimator = runner.model.energy_model.uncertainty_estimator
    torch.testing.assert_close(estimator.noise.sigmas, widths(runner.model))
    assert estimator.wide.std(0)[0] < 1.5 * CENTRE
    (line,) = runner.lines
    assert '720 detections on 80 images of val' in line
    assert f'{float(widths(runner.model)[2, 3]):.4f}' in line
    assert runner.model.training


def test_dsm_gets_one_width_for_each_dimension(new_runner):
    loss = dict(type='DSMLoss', sigma='measured', num_samples=8)
    cfg = energy_model_cfg()
    cfg.energy_model.loss = loss
    cfg.energy_model.uncertainty = {}
    cfg.energy_model.head.act_cfg = dict(type='SiLU')
    model = build(cfg)
    model.energy_model.set_spread(KNOWN[1])
    method = model.energy_model.loss_energy.method
    torch.testing.assert_close(method.sigma, KNOWN[1])
    torch.testing.assert_close(
        model.energy_model.uncertainty_estimator.noise.sigmas, KNOWN
    )


@pytest.mark.parametrize(
    'split, val, read', [('train', True, 'train'), ('val', False, 'train')]
)
def test_the_split_can_be_chosen(new_runner, split, val, read):
    runner = new_runner(val=val, sigmas='measured')
    MeasureNoiseHook(num_images=7, split=split).before_train(runner)
    assert f'7 images of {read}' in runner.lines[0]
    # From everywhere in the split.
    assert runner.train_loop.dataloader.dataset.read[-1] > 40


def test_checkpoints_hold_what_was_measured(new_runner):
    runner = new_runner(sigmas='measured')
    MeasureNoiseHook().before_train(runner)
    state = runner.model.energy_model.state_dict()
    again = new_runner(sigmas='measured')
    again.model.energy_model.load_state_dict(state)
    torch.testing.assert_close(
        widths(again.model), widths(runner.model), rtol=0, atol=0
    )
    torch.testing.assert_close(
        again.model.energy_model.uncertainty_estimator.wide,
        runner.model.energy_model.uncertainty_estimator.wide,
    )
    # A resumed training does not measure.
    again.iter = 5
    again.model.detector.factor = 0.1
    MeasureNoiseHook().before_train(again)
    assert not again.lines
    assert torch.equal(widths(again.model), widths(runner.model))


def test_numbers_stay_and_add_nothing_to_the_state(new_runner):
    runner = new_runner()
    before = widths(runner.model).clone()
    MeasureNoiseHook().before_train(runner)
    assert torch.equal(widths(runner.model), before) and not runner.lines
    assert not any('loss' in key for key in runner.model.state_dict())


def test_what_cannot_be_measured_is_refused(new_runner):
    runner = new_runner(sigmas='measured')
    with pytest.raises(ValueError, match='at least 20 .* has 9 on 1 images'):
        MeasureNoiseHook(num_images=1).before_train(runner)
    runner.model.freeze_detector = False
    with pytest.raises(ValueError, match='freeze_detector=True, got False'):
        MeasureNoiseHook().before_train(runner)
    with pytest.raises(ValueError, match="'train' or 'val', got 200 and 'te"):
        MeasureNoiseHook(split='test')


def test_training_with_unknown_noise_is_refused(new_runner):
    loss = new_runner(sigmas='measured').model.energy_model.loss_energy
    with pytest.raises(ValueError, match='MeasureNoiseHook'):
        loss(lambda y: -y.square().sum(-1), torch.zeros(2, 4))
    with pytest.raises(ValueError, match='four positive numbers'):
        loss.set_spread(torch.tensor([0.1, 0.1, 0.0, 0.1]))
    with pytest.raises(ValueError, match="expected sigmas='measured'"):
        new_runner().model.energy_model.set_spread(torch.ones(4))


def test_a_few_wrong_matches_do_not_widen_the_noise():
    errors = torch.randn(1000, 4) * 0.05
    usual = module.error_spread(errors)
    torch.testing.assert_close(
        usual, torch.full((4,), 0.05), rtol=0.1, atol=0.0
    )
    errors[:50] = 0.5
    assert (module.error_spread(errors) < 1.15 * usual).all()


def test_an_image_without_boxes_has_no_errors():
    empty = InstanceData(
        bboxes=torch.zeros(0, 4),
        scores=torch.zeros(0),
        labels=torch.zeros(0).long(),
    )
    assert module.relative_errors(empty, []).shape == (0, 4)


def test_the_hook_is_added_where_noise_is_to_be_measured():
    loss = dict(type='NCEPlusLoss', sigmas='measured')
    cfg = Config(dict(model=dict(energy_model=dict(loss=loss))))
    measure_noise(cfg)
    measure_noise(cfg)
    assert cfg.custom_hooks == [dict(type='MeasureNoiseHook')]
    for model in (dict(), dict(energy_model=dict(loss=dict(sigmas=[0.1])))):
        cfg = Config(dict(model=model))
        measure_noise(cfg)
        assert not cfg.get('custom_hooks')
