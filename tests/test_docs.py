"""The documentation's commands, run as they stand on a small detector."""

import contextlib
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.hub import get_config

from mmdet_ebm.datasets import DigitsConfig, generate_digits

from .helpers import save_checkpoint, write_image, write_video
from .small_models import ROOT, shrink

DOCS = ROOT / 'docs'
FIRST = 'add_to_your_detector.md'
# The commands of the other pages use what the first one made.
DETECTORS = 'detectors.md'
FASTER = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
MASK = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
RETINA = 'retinanet/retinanet_r50_fpn_1x_coco.py'
NOT_RUN = (
    'pip install -e .',  # tools/install.sh does that
    # A detector of hardly any weights finds nothing that matches; the tool's
    # own test runs it.
    'python tools/analysis/calibration.py my_energy.py '
    'work_dirs/my_energy/epoch_12.pth --out calibration/mine',
)


def blocks(page):
    """Language and text of the fenced blocks of a page, in order."""
    return re.findall(
        r'^```(\w+)\n(.*?)^```$', (DOCS / page).read_text(), re.M | re.S
    )


def small_config(base, data):
    """One of mmdet's configs, for the digits and with hardly any weights."""
    cfg = get_config(f'mmdet::{base}')
    cfg.model = shrink(cfg.model)
    model = cfg.model
    for parent in (model, model.get('roi_head', {})):
        for head in ('bbox_head', 'mask_head'):
            if head in parent:
                parent[head].num_classes = 10
    if 'rpn' in model.test_cfg:
        model.test_cfg.rpn.update(nms_pre=40, max_per_img=20)
    model.test_cfg.get('rcnn', model.test_cfg).update(
        score_thr=0.05 if 'rpn' in model.test_cfg else 0.0, max_per_img=5
    )
    metainfo = dict(classes=tuple('0123456789'))
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=str(data),
            ann_file=f'annotations/{split}.json',
            data_prefix=dict(img='images/'),
            metainfo=metainfo,
        )
        for step in loader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (96, 96)
        if split != 'train':
            cfg[f'{split}_evaluator'].ann_file = str(
                data / f'annotations/{split}.json'
            )
    cfg.train_cfg.val_interval = 12
    cfg.metainfo = metainfo
    return cfg


def small_digits(folder):
    """Two images for each split, their objects with masks."""
    data = generate_digits(
        folder, DigitsConfig(num_images=dict(train=2, val=2, test=2))
    )
    for split in ('train', 'val', 'test'):
        file = data / f'annotations/{split}.json'
        annotations = json.loads(file.read_text())
        for each in annotations['annotations']:
            x, y, w, h = each['bbox']
            each['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        file.write_text(json.dumps(annotations))
    return data


def run_line(line, status):
    """One command of a page; gives its exit status."""
    words = shlex.split(line, comments=True)
    if words[:2] == ['echo', '$?']:
        assert line.split('#')[1].strip() == str(status), line
        return 0
    if words[:2] == ['python', '-c']:
        return subprocess.run([sys.executable, *words[1:]]).returncode
    assert words[0] == 'python', line
    try:
        if words[1] == '-m':
            sys.argv = words[2:]
            runpy.run_module(words[2], run_name='__main__', alter_sys=True)
        else:
            assert words[1].startswith('tools/'), line
            sys.argv = words[1:]
            runpy.run_path(str(ROOT / words[1]), run_name='__main__')
    except SystemExit as done:
        assert not isinstance(done.code, str), f'{line}: {done.code}'
        return done.code or 0
    return 0


def run_page(page):
    """All blocks of a page, in the user's folder; gives what they print."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        run_blocks(page)
    return output.getvalue()


def run_blocks(page):
    status = 0
    lines = 0
    for language, text in blocks(page):
        file = re.match(r'# (\w+\.py)\n', text)
        if file or text.startswith('_base_'):
            Path(file.group(1) if file else 'my_energy.py').write_text(text)
        elif language == 'python':
            exec(compile(text, page, 'exec'), {})
        else:
            assert language == 'bash', language
            for line in text.splitlines():
                if line in NOT_RUN:
                    continue
                # A status must be spoken of, unless it is 0.
                assert status == 0 or line.startswith('echo $?'), line
                status = run_line(line, status)
                lines += 1
    assert status == 0 and lines > 0


def follow_first_page(base, folder):
    """A user's folder, with one of mmdet's detectors, after page one."""
    data = small_digits(folder / 'data')
    small_config(base, data).dump('my_detector.py')
    save_checkpoint('my_detector.py', 'my_detector.pth')
    for name in (
        'photos/a.jpg',
        'photos/b.png',
        'image.jpg',
        'damaged/good.png',
    ):
        write_image(Path(name), seed=len(name))
    Path('damaged/bad.jpg').write_text('not an image')
    write_video(Path('clip.mp4'), 2)
    return run_page(FIRST)


@pytest.fixture(scope='module')
def users(tmp_path_factory):
    """Enters the folder of a user of a detector; gives page one's output."""
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, 'argv', sys.argv)
    patch.syspath_prepend(ROOT / 'tools')
    patch.setenv('PYTHONPATH', str(ROOT))
    folders, outputs = {}, {}

    def enter(base):
        if base not in folders:
            folders[base] = tmp_path_factory.mktemp('user')
            patch.chdir(folders[base])
            outputs[base] = follow_first_page(base, folders[base])
        patch.chdir(folders[base])
        return outputs[base]

    yield enter
    patch.undo()


@pytest.mark.parametrize('base', [FASTER, MASK, RETINA])
def test_five_minutes_lead_to_a_refined_detector(users, base):
    output = users(base)
    assert re.search(r'AP -?[\d.]+ plain, -?[\d.]+ refined', output)
    prediction = json.loads(Path('outputs/preds/a.jpg.json').read_text())
    assert prediction['initial_bboxes'] != prediction['bboxes']
    assert ('masks' in prediction) == (base == MASK)
    assert Path('outputs/vis/a.jpg.jpg').exists()
    annotations = json.loads(Path('outputs/predictions.json').read_text())
    assert len(annotations['images']) == 2


def test_the_recipe_for_few_images_trains(users):
    """With numbers for the noise: this detector has no errors to measure."""
    users(RETINA)
    run_line(
        'python tools/train.py my_short.py --cfg-options '
        'train_cfg.max_epochs=1 train_cfg.val_interval=1 '
        'model.energy_model.loss.sigmas=(0.05,0.1)',
        status=0,
    )
    stored = torch.load('work_dirs/my_short/epoch_1.pth', weights_only=True)
    assert any('energy_model.neck' in key for key in stored['state_dict'])


@pytest.mark.parametrize(
    'base, page',
    [
        (FASTER, 'exports.md'),
        (FASTER, 'inference.md'),
        (FASTER, 'methods.md'),
        (FASTER, 'options.md'),
        (FASTER, 'troubleshooting.md'),
        (FASTER, 'uncertainty.md'),
        (MASK, 'inference.md'),
    ],
)
def test_commands_of_the_other_pages_run(users, base, page):
    users(base)
    run_page(page)


def test_commands_for_another_detector_run(users):
    users(RETINA)
    output = run_page(DETECTORS)
    assert re.search(r'^\| voted +\|', output, re.M)
    assert re.search(r'^\| refined - plain +\|', output, re.M)
