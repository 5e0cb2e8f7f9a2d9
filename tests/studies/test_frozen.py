"""What is stored of a frozen detector gives what the detector gives."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdet_ebm.evaluation.coco_matching import coco_results
from mmdet_ebm.models import Refinement
from studies.files import small_config_file
from studies.frozen import FrozenDetector


@pytest.fixture
def frozen(plain, digits, monkeypatch):
    monkeypatch.setenv('DIGITS_ROOT', str(digits))
    detector = FrozenDetector(
        small_config_file('digits', 'nce-plus'), plain, 'cpu'
    )
    detector.model.box_source.test_cfg.score_thr = 0.0
    torch.nn.init.normal_(
        detector.model.energy_model.head.fc_logdensity.weight
    )
    return detector


@pytest.mark.parametrize('ascent', [False, True])
def test_results_are_those_of_the_whole_model(frozen, ascent):
    model = frozen.model
    model.refinement = Refinement(energy_nms=False, ascent=ascent)
    loader = Runner.build_dataloader(frozen.cfg.test_dataloader)
    expected = []
    for batch in loader:
        with torch.no_grad():
            for sample in model.test_step(batch):
                expected += coco_results(
                    sample.img_id,
                    sample.pred_instances,
                    loader.dataset.cat_ids,
                )
    found = frozen.results('test', model.energy_model if ascent else None)
    assert len(found) == len(expected) > 10
    for mine, theirs in zip(found, expected):
        assert mine['bbox'] == pytest.approx(theirs['bbox'], abs=1e-3)
        for name in ('image_id', 'category_id', 'score'):
            assert mine[name] == theirs[name]
    assert (found != frozen.results('test')) == ascent


def test_training_views_are_what_the_energy_model_trains_on(frozen):
    views = frozen.training_views(2, 0)
    assert len(views) == 2 * 8
    loss = frozen.model.energy_model.loss(
        [m[None] for m in views[0]['features']],
        [views[0]['boxes']],
        [views[0]['labels']],
        [views[0]['image_size']],
    )
    assert loss['loss_energy'] > 0


def test_views_with_other_boxes(frozen, digits):
    views = frozen.training_views(1, 0)
    file = 'annotations/train_noise-0.1.json'
    noisy = frozen.with_boxes_of(views, file)
    for view, other in zip(views, noisy):
        moved = (view['boxes'] - other['boxes']).abs()
        assert 0 < moved.max() < view['boxes'].max()
        assert torch.equal(view['labels'], other['labels'])
    cut = json.loads((digits / file).read_text())
    cut['annotations'] = cut['annotations'][1:]
    (digits / 'annotations/cut.json').write_text(json.dumps(cut))
    with pytest.raises(ValueError, match='does not list the images'):
        frozen.with_boxes_of(views, 'annotations/cut.json')


def test_configs_of_the_small_data_sets_are_found():
    for data in ('digits', 'bccd'):
        for kind in ('', 'nce-plus', 'iou-net'):
            Config.fromfile(small_config_file(data, kind))
    assert small_config_file('bccd', 'control').exists()
    assert small_config_file('digits', 'nce-plus', 'atss').exists()
