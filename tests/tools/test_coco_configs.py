"""The COCO set: recipes, deltas, weights, and that its page lists all."""

import re
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper

from ..small_models import CONFIGS, ROOT, build, shrink

COCO = sorted((CONFIGS / 'coco').glob('*.py'))
JOINT = [path for path in COCO if '_joint_' in path.name]


def test_every_method_is_there():
    methods = {
        path.name.split('_')[3]
        for path in COCO
        if path.name.startswith('faster-rcnn_r50')
    }
    assert methods == {
        'nce-plus',
        'nce',
        'ml-is',
        'kld-is',
        'ml-mcmc-8',
        'sm',
        'dsm',
        'iou-net',
    }
    assert len(JOINT) == 2


def test_frozen_detectors_come_from_mmdet_itself():
    listed = '\n'.join(
        path.read_text()
        for path in (Path(mmdet.__file__).parent / '.mim/configs').glob(
            '*/metafile.yml'
        )
    )
    named = {
        path: re.findall(r"^load_from = '(.*)'$", path.read_text(), re.M)
        for path in COCO
    }
    for path, urls in named.items():
        for url in urls:
            assert f'Weights: {url}\n' in listed, path
    base = get_config(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', pretrained=True
    )
    path = CONFIGS / 'coco/faster-rcnn_r50_fpn_nce-plus_coco.py'
    assert named[path] == [base.model_path]


@pytest.mark.parametrize('path', JOINT, ids=lambda path: path.stem)
def test_joint_training_reaches_every_part_at_one_rate(path):
    cfg = Config.fromfile(path)
    assert cfg.load_from is None and not cfg.model.freeze_detector
    assert cfg.train_cfg.max_iters == 90000
    assert cfg.param_scheduler[1].milestones == [60000, 80000]
    model = build(shrink(cfg.model))
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    assert {(g['lr'], g['weight_decay']) for g in groups} == {(0.02, 1e-4)}
    for part in (
        model.detector.neck,
        model.detector.rpn_head,
        model.detector.roi_head.bbox_head,
        model.energy_model,
    ):
        assert all(p.requires_grad for p in part.parameters())


def test_the_page_of_the_coco_set_lists_every_config():
    page = (ROOT / 'docs/coco.md').read_text()
    for path in COCO:
        assert f'`{path.stem}`' in page, path.stem
