"""Files and commands that tests of several folders use."""

import os
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdet_ebm.apis.inputs import Source
from mmdet_ebm.apis.results_folder import ResultsFolder

from .small_models import CONFIGS, ROOT, build, shrink


def run_tool(monkeypatch, name, *arguments):
    """Run a tool as the command line does, without another interpreter."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / 'tools')  # as Python does for scripts
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
    return runpy.run_path(
        str(ROOT / 'tools' / f'{name}.py'), run_name='__main__'
    )


def shrunk_bccd(folder, method='_nce-plus'):
    """Write a shipped config with hardly any weights; return its path."""
    cfg = Config.fromfile(
        CONFIGS / f'bccd/faster-rcnn_r18-half{method}_bccd.py'
    )
    cfg.model = shrink(cfg.model)
    detector = cfg.model.get('detector', cfg.model)
    detector.test_cfg.rpn.update(nms_pre=40, max_per_img=20)
    detector.test_cfg.rcnn.update(score_thr=0.2, max_per_img=6)
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 72)
    cfg.load_from = None
    path = folder / f'energy{method}.py'
    cfg.dump(path)
    return path


def save_checkpoint(config, path, seed=0):
    """Write random weights, with the meta information of mmengine's."""
    torch.manual_seed(seed)
    init_default_scope('mmdet')
    cfg = Config.fromfile(config)
    state = build(cfg.model).state_dict()
    for name, value in state.items():
        if 'fc_logdensity.weight' in name:
            value.normal_()  # zeros would give no ascent
    torch.save(
        dict(
            state_dict=state,
            meta=dict(
                cfg=cfg.pretty_text,
                dataset_meta=dict(classes=cfg.metainfo.classes),
            ),
        ),
        path,
    )
    return path


def random_image(height=48, width=64, seed=0):
    """A smooth random image (H, W, 3), uint8."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def write_image(path, image=None, **options):
    """Write an image, by default a random one; return its path."""
    if image is None:
        image = random_image(**options)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def write_video(path, num_frames, codec='mp4v', size=(64, 48)):
    """Write a video of random images at 10 frames per second."""
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter_fourcc(*codec), 10, size
    )
    assert writer.isOpened()
    for seed in range(num_frames):
        writer.write(random_image(size[1], size[0], seed))
    writer.release()
    return path


def write_damaged_files(folder):
    """Write files that give no image; yield each with the reason to report.

    The folder must not exist.
    """
    folder.mkdir()
    whole = {
        suffix: cv2.imencode(suffix, random_image(96, 128))[1].tobytes()
        for suffix in ('.jpg', '.png')
    }
    for suffix, data in whole.items():
        (folder / f'cut{suffix}').write_bytes(data[: len(data) // 2])
        yield folder / f'cut{suffix}', 'truncated'
    (folder / 'empty.jpg').touch()
    yield folder / 'empty.jpg', 'the file is empty'
    (folder / 'text.png').write_text('not an image')
    yield folder / 'text.png', 'not an image of a known format'
    (folder / 'dangling.png').symlink_to(folder / 'gone.png')
    yield folder / 'dangling.png', 'cannot be opened'
    # Its header gives the size; there are no pixels.
    (folder / 'huge.ppm').write_bytes(b'P6 20000 20000 255\n')
    yield folder / 'huge.ppm', 'too many'
    # Formats without such a size must not reach OpenCV: this would be 3.5 GB.
    (folder / 'radiance.jpg').write_bytes(
        b'#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 32000 +X 32000\n'
        + bytes([2, 2, 125, 0, *[255, 0] * 500])
    )
    yield folder / 'radiance.jpg', 'not an image of a known format'
    os.mkfifo(folder / 'pipe.png')
    yield folder / 'pipe.png', 'not a regular file'
    os.mkfifo(folder / 'pipe.mp4')
    yield folder / 'pipe.mp4', 'not a regular file'
    (folder / 'endless.jpg').symlink_to('/dev/zero')
    yield folder / 'endless.jpg', 'not a regular file'
    with (folder / 'sparse.jpg').open('wb') as file:
        file.truncate(300 * 2**30)
    yield folder / 'sparse.jpg', 'bytes, over'


def assert_same_detections(first, second, atol=1e-3):
    """Predictions in JSON form agree."""
    assert first['labels'] == second['labels']
    for field in ('scores', 'bboxes', 'logdensities', 'initial_bboxes'):
        np.testing.assert_allclose(first[field], second[field], atol=atol)


def two_detections():
    """A prediction of a cat, of which all is known, and a less sure dog."""
    return dict(
        labels=[1, 0],
        scores=[0.75, 0.25],
        bboxes=[[10.0, 20.0, 50.0, 80.0], [0.0, 0.5, 100.0, 200.0]],
        logdensities=[3.5, None],
        initial_bboxes=[[8.0, 20.0, 52.0, 84.0], [0.0, 0.5, 100.0, 200.0]],
        box_std=[[1.0, 1.25, 1.5, 2.0], [None] * 4],
        box_logprobs=[-1.25, None],
        class_scores=[0.875, 0.5],
        object_probs=[0.8125, 0.375],
        qualities=[0.625, 0.25],
    )


def write_results(folder):
    """A folder as of a run: two images, a frame of a video and an array.

    Only x & y/cat.jpg, of 100 x 200 pixels, has detections.
    """
    results = ResultsFolder(folder, dict(classes=['dog', 'cat & co']))
    nothing = dict.fromkeys(two_detections(), [])
    for name, content, prediction in (
        ('x & y/cat.jpg', Path('/in/x & y/cat.jpg'), two_detections()),
        ('empty.png', Path('/in/empty.png'), nothing),
        ('clip.mp4/000000', Path('/in/clip.mp4'), nothing),
        ('00000000', np.zeros((200, 100, 3), np.uint8), nothing),
    ):
        results.save(name, prediction)
        results.finish(
            name, Source(name, content), 'signature', dict(size=[100, 200])
        )
    results.finish(
        'clip.mp4',
        Source('clip.mp4', Path('/in/clip.mp4')),
        'signature',
        dict(num_frames=1),
    )
    return Path(folder)
