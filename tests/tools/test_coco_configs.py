"""The COCO set: recipes, deltas, weights, and that its page lists all."""

import re
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper

from ..conftest import CONFIGS, ROOT, build, shrink

COCO = sorted((CONFIGS / 'coco').glob('*.py'))
R101 = [path for path in COCO if '_r101_' in path.name]
JOINT = [path for path in COCO if '_joint_' in path.name]


def flat(cfg, prefix=''):
    for key, value in cfg.items():
        if isinstance(value, dict):
            yield from flat(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', str(value)


@pytest.mark.parametrize('method', ['kld-is', 'iou-net_joint'])
def test_r101_is_r50_with_another_backbone(method):
    path = CONFIGS / f'coco/faster-rcnn_r101_fpn_{method}_coco.py'
    deep, base = (
        dict(flat(Config.fromfile(p)))
        for p in (path, path.with_name(path.name.replace('_r101_', '_r50_')))
    )
    differing = {key for key in {*deep, *base} if deep[key] != base[key]}
    weights = (
        'model.backbone.init_cfg.checkpoint'
        if 'joint' in method
        else 'load_from'
    )
    assert differing == {'model.backbone.depth', weights}
    assert deep['model.backbone.depth'] == '101'


def test_all_r101_configs_are_alike_but_for_their_base():
    """So that the two above stand for all."""
    for joint in (True, False):
        texts = {
            path.read_text().replace(path.name.replace('_r101_', '_r50_'), '')
            for path in R101
            if (path in JOINT) == joint
        }
        assert len(texts) == 1


def test_every_method_is_there_for_both_backbones():
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
    assert len(R101) == len(methods) + 2 and len(JOINT) == 4


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
    for depth in (50, 101):
        base = get_config(
            f'mmdet::faster_rcnn/faster-rcnn_r{depth}_fpn_1x_coco.py',
            pretrained=True,
        )
        path = CONFIGS / f'coco/faster-rcnn_r{depth}_fpn_nce-plus_coco.py'
        assert named[path] == [base.model_path]


@pytest.mark.parametrize(
    'path', [p for p in JOINT if '_r50_' in p.name], ids=lambda path: path.stem
)
def test_joint_training_reaches_every_part_at_one_rate(path):
    cfg = Config.fromfile(path)
    assert cfg.load_from is None and not cfg.model.freeze_detector
    assert cfg.train_cfg.max_iters == 90000
    assert cfg.param_scheduler[1].milestones == [60000, 80000]
    model = build(shrink(cfg.model))
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    assert {(g['lr'], g['weight_decay']) for g in groups} == {(0.02, 1e-4)}
    for part in (
        model.neck,
        model.rpn_head,
        model.roi_head.bbox_head,
        model.roi_head.refiner,
    ):
        assert all(p.requires_grad for p in part.parameters())


def test_the_page_of_the_coco_set_lists_every_config():
    page = (ROOT / 'docs/coco.md').read_text()
    for path in COCO:
        assert f'`{path.stem}`' in page, path.stem
