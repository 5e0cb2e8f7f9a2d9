"""The command lines of tracking on a generated video."""

import json

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmdet_ebm.tracking import read_boxes
from tests.helpers import run_tool
from tests.small_models import CONFIGS
from tests.small_trackers import TRACKER, tracker_model
from tests.tracking.videos import write_lines, write_otb

CONFIG_NAMES = sorted(p.name for p in (CONFIGS / 'tracking').glob('*.py'))


@pytest.fixture
def files(tmp_path):
    """Config, checkpoint, sequences, and boxes of a tracker."""
    cfg = Config(dict(default_scope='mmdet', model=TRACKER))
    cfg.custom_imports = dict(imports=['mmdet_ebm.models'])
    cfg.dump(tmp_path / 'config.py')
    model = tracker_model()
    torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    for name in ('a', 'b'):
        boxes = write_otb(tmp_path / 'data', name, num_frames=4)
        shifted = boxes + [[0.0], [1], [2], [1]]
        write_lines(tmp_path / 'boxes' / f'{name}.txt', shifted, 1)
    return tmp_path


@pytest.mark.parametrize('name', CONFIG_NAMES)
def test_shipped_models_train_and_refine(name):
    cfg = Config.fromfile(CONFIGS / 'tracking' / name)
    model = MODELS.build(cfg.model)
    model.train()
    corners = torch.tensor([[40.0, 30, 90, 100]])
    inputs = torch.rand(1, 2, 3, 128, 128)
    sample = DetDataSample(gt_instances=InstanceData(bboxes=corners))
    losses = model(inputs, [[sample, sample]], mode='loss')
    losses['loss_energy'].backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == key.startswith('backbone.'), key
    model.eval()
    frame = np.zeros((90, 120, 3), np.uint8)
    box = np.array([30.0, 20, 70, 60])
    found = model.refine(frame, model.template(frame, box), box[None])
    assert np.isfinite(found.boxes).all()


def test_a_model_is_trained_by_the_usual_tool_and_resumed(files, monkeypatch):
    cfg = Config.fromfile(
        CONFIGS / 'tracking' / 'mobilenetv2_nce-plus_tracking.py'
    )
    cfg.model = TRACKER
    tracks = dict(
        type='SOTFolderDataset',
        data_root=str(files / 'data'),
        pipeline=cfg.train_pipeline,
    )
    tracks['pipeline'][2].size = TRACKER['patch_size']
    cfg.train_dataloader.update(
        batch_size=2, num_workers=0, persistent_workers=False
    )
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', dataset=tracks, times=3
    )
    cfg.train_cfg.max_iters = 2
    cfg.default_hooks.checkpoint.interval = 1
    cfg.work_dir = str(files / 'work')
    cfg.dump(files / 'train.py')
    run_tool(monkeypatch, 'train', files / 'train.py')
    run_tool(
        monkeypatch,
        'train',
        files / 'train.py',
        '--resume',
        '--cfg-options',
        'train_cfg.max_iters=3',
    )
    trained = torch.load(files / 'work' / 'iter_3.pth', weights_only=False)
    assert trained['meta']['iter'] == 3
    assert not (files / 'work' / 'iter_1.pth').exists()


def arguments(files, *more):
    return [
        files / 'config.py',
        files / 'model.pth',
        '--data',
        files / 'data',
        '--boxes',
        files / 'boxes',
        *more,
    ]


def test_boxes_are_fitted_and_refined(files, monkeypatch, capsys):
    density = files / 'density.json'
    run_tool(monkeypatch, 'fit_tracker', *arguments(files, '--out', density))
    assert 'Held-out AUC' in capsys.readouterr().out
    density.write_text(json.dumps(dict(temperature=1.0, side_std=0.1)))
    run_tool(
        monkeypatch,
        'refine_tracks',
        *arguments(
            files,
            '--density',
            density,
            '--out',
            files / 'out',
            '--uncertainty',
            '--pictures',
        ),
    )
    assert {path.name for path in (files / 'out').glob('*.jpg')} == {
        'a.jpg',
        'b.jpg',
    }
    assert 'interval' in capsys.readouterr().out
    own = read_boxes(files / 'boxes' / 'a.txt', 1)
    refined = read_boxes(files / 'out' / 'a.txt', 1)
    assert np.abs(refined - own)[1:].max() > 0.05
    std = np.loadtxt(files / 'out' / 'a_std.txt', delimiter=',')
    assert std.shape == (4, 4)
    assert (std[1:] > 0).all()
    figures = json.loads((files / 'out' / 'figures.json').read_text())
    assert set(figures['sequences']) == {'a', 'b'}
    gain = figures['mean']['auc']
    assert gain['low'] <= gain['gain'] <= gain['high']


@pytest.mark.parametrize('content', ['{"temperature": ', '[1]', '{"a": "b"}'])
def test_a_bad_file_of_numbers_is_named(files, monkeypatch, content):
    density = files / 'density.json'
    density.write_text(content)
    more = ('--density', density, '--out', files / 'out')
    with pytest.raises(SystemExit, match='density.json'):
        run_tool(monkeypatch, 'refine_tracks', *arguments(files, *more))


def test_weights_that_are_not_finite_or_missing_are_refused(
    files, monkeypatch
):
    whole = torch.load(files / 'model.pth', weights_only=False)
    name = next(
        n
        for n, value in whole['state_dict'].items()
        if n.startswith('energy_model') and n.endswith('weight')
    )
    for spoil, message in (
        (lambda state: state[name].fill_(torch.nan), 'NaN or infinite'),
        (lambda state: state.pop(name), f'{name} is not in the checkpoint'),
    ):
        spoil(whole['state_dict'])
        torch.save(whole, files / 'model.pth')
        more = ('--out', files / 'out')
        with pytest.raises(SystemExit, match=message):
            run_tool(monkeypatch, 'refine_tracks', *arguments(files, *more))


def test_true_boxes_after_the_first_frame_change_nothing(files, monkeypatch):
    outputs = []
    for corrupted in (False, True):
        if corrupted:
            for name in ('a', 'b'):
                file = files / 'data' / name / 'groundtruth_rect.txt'
                first = file.read_text().splitlines()[0]
                file.write_text('\n'.join([first] + ['1,1,9,9'] * 3))
        out = files / f'out{corrupted}'
        run_tool(monkeypatch, 'refine_tracks', *arguments(files, '--out', out))
        outputs.append([(out / f'{n}.txt').read_text() for n in 'ab'])
    assert outputs[0] == outputs[1]


def test_what_does_not_fit_is_named(files, monkeypatch):
    (files / 'boxes' / 'b.txt').unlink()
    with pytest.raises(SystemExit, match=r'no boxes .*b\.txt'):
        run_tool(
            monkeypatch,
            'refine_tracks',
            *arguments(files, '--out', files / 'out'),
        )


def test_the_tracker_runs_in_the_test_loop_and_on_a_video(
    files, monkeypatch, capsys
):
    cfg = Config.fromfile(
        CONFIGS / 'tracking' / 'energy-sot_mobilenetv2_nce-plus_tracking.py'
    )
    cfg.model = dict(TRACKER, type='EnergySOT')
    cfg.test_dataloader.dataset.data_root = str(files / 'data')
    cfg.work_dir = str(files / 'work')
    cfg.dump(files / 'sot.py')
    run_tool(monkeypatch, 'test', files / 'sot.py', files / 'model.pth')
    assert 'sot/AUC' in capsys.readouterr().out
    run_tool(
        monkeypatch,
        'track',
        files / 'sot.py',
        files / 'model.pth',
        files / 'data' / 'a' / 'img',
        '--init',
        '12,40,24,20',
        '--out',
        files / 'run',
    )
    rows = json.loads((files / 'run' / 'boxes.json').read_text())
    assert len(rows) == 4
    assert rows[0] == dict(box=[12, 40, 36, 60], confidence=1.0)
    boxes = read_boxes(files / 'run' / 'boxes.txt', 1)
    np.testing.assert_allclose(boxes[2], rows[2]['box'], atol=0.02)
    assert (files / 'run' / 'video.mp4').stat().st_size > 0


def test_a_tracker_that_opencv_lacks_is_named(files, monkeypatch):
    with pytest.raises(SystemExit, match='NanoTrack'):
        run_tool(
            monkeypatch,
            'run_tracker',
            'NanoTrack',
            '--data',
            files / 'data',
            '--weights',
            files,
            '--out',
            files / 'own',
        )
