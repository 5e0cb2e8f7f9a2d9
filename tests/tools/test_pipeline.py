"""The tools: train, test, resume, infer and compare, on small data."""

import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from pycocotools.coco import COCO

from mmdet_ebm.evaluation.coco_matching import coco_results
from studies import compare_stages

from ..helpers import run_tool
from ..small_models import (
    CONFIGS,
    ROOT,
    shrink,
)

BCCD = next(
    (
        path
        for path in (
            os.environ.get('BCCD_ROOT', 'data/bccd'),
            ROOT / '../shared/data/bccd',
        )
        if Path(path, 'annotations/train.json').exists()
    ),
    None,
)


def shrunk_config(name, tmp_path, **changes):
    """A shipped config with a tiny model, short epochs, as a file."""
    cfg = Config.fromfile(CONFIGS / name)
    cfg.model = shrink(cfg.model)
    cfg.default_hooks.logger.interval = 1
    cfg.train_cfg.max_epochs = 1
    cfg.train_cfg.val_interval = 1
    cfg.load_from = None
    cfg.merge_from_dict(changes)
    path = tmp_path / Path(name).name
    cfg.dump(path)
    return path


def train_both(patch, plain, energy, folder):
    """Train a plain detector and an energy model on it, as a user would."""
    run_tool(patch, 'train', plain, '--work-dir', folder / 'plain')
    checkpoint = folder / 'plain' / 'epoch_1.pth'
    run_tool(
        patch,
        'train',
        energy,
        '--work-dir',
        folder / 'energy',
        '--cfg-options',
        f'load_from={checkpoint}',
    )
    return dict(
        plain=plain,
        energy=energy,
        plain_checkpoint=checkpoint,
        checkpoint=folder / 'energy' / 'epoch_1.pth',
    )


@pytest.fixture(scope='module')
def trained(digits, tmp_path_factory):
    """A plain and an energy checkpoint from the command line."""
    patch = pytest.MonkeyPatch()
    patch.setenv('DIGITS_ROOT', str(digits))
    folder = tmp_path_factory.mktemp('trained')
    plain = shrunk_config('digits/faster-rcnn_r18-half_digits.py', folder)
    energy = shrunk_config(
        'digits/faster-rcnn_r18-half_nce-plus_digits.py', folder
    )
    yield dict(folder=folder, **train_both(patch, plain, energy, folder))
    patch.undo()


def state(path):
    return torch.load(path, weights_only=True)['state_dict']


def holds(energy, plain):
    """Whether an energy detector's state is that of the plain one."""
    return all(
        torch.equal(plain[key], energy[f'detector.{key}']) for key in plain
    )


def test_energy_training_starts_from_and_keeps_the_plain_detector(trained):
    plain, energy = (
        state(trained['plain_checkpoint']),
        state(trained['checkpoint']),
    )
    assert {f'detector.{key}' for key in plain} < set(energy)
    assert holds(energy, plain)


def test_training_log_tells_truth_from_noise(trained):
    # In text: mmengine's visualizer is one for the whole process.
    (log,) = (trained['folder'] / 'energy').glob('*/*.log')
    lines = [
        dict(re.findall(r'(\w+): ([-+.\de]+)', line))
        for line in log.read_text().splitlines()
        if 'loss_energy' in line
    ]
    assert len(lines) == 2
    for line in lines:
        step = {name: float(value) for name, value in line.items()}
        assert step['loss'] == step['loss_energy']
        assert 0 <= step['acc_energy'] <= 100
        assert step['logdensity_gap'] == pytest.approx(
            step['logdensity_truth'] - step['logdensity_noise'], abs=2e-4
        )


def test_test_tool_reports_ap_and_ap90(trained, monkeypatch, tmp_path, capsys):
    run_tool(
        monkeypatch,
        'test',
        trained['energy'],
        trained['checkpoint'],
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'out.pkl',
        '--cfg-options',
        'model.refinement.ascent=False',
    )
    (written,) = tmp_path.glob('*/*.json')
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == 'testing on 4 images'
    assert shown[1].startswith('log: ')
    assert re.match(r'test: 1/1 batches in .*, AP [\d.]+, AP50', shown[2])
    assert shown[3:] == [
        f'metrics: {written}',
        f'predictions: {tmp_path}/out.pkl',
    ]
    metrics = json.loads(written.read_text())
    assert {'coco/bbox_mAP', 'coco/bbox_mAP_75', 'coco/bbox_mAP_90'} <= set(
        metrics
    )
    assert (tmp_path / 'out.pkl').exists()


def test_resume_without_a_checkpoint_starts_from_load_from(
    trained, monkeypatch, tmp_path
):
    run_tool(
        monkeypatch,
        'train',
        trained['energy'],
        '--work-dir',
        tmp_path,
        '--resume',
        '--cfg-options',
        f'load_from={trained["plain_checkpoint"]}',
    )
    plain = state(trained['plain_checkpoint'])
    energy = state(tmp_path / 'epoch_1.pth')
    assert holds(energy, plain)


def test_training_on_a_random_frozen_detector_is_refused(
    trained, monkeypatch, tmp_path
):
    with pytest.raises(SystemExit, match='load_from'):
        run_tool(
            monkeypatch, 'train', trained['energy'], '--work-dir', tmp_path
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_amp_of_a_whole_detector_on_a_cpu_is_refused(
    trained, monkeypatch, tmp_path
):
    with pytest.raises(SystemExit, match='frozen detector'):
        run_tool(
            monkeypatch,
            'train',
            trained['plain'],
            '--amp',
            '--work-dir',
            tmp_path,
        )


def test_amp_trains_with_the_learning_rate_of_the_batch(
    trained, monkeypatch, tmp_path
):
    """--amp and --auto-scale-lr: 8 images where the rate is for 16."""
    run_tool(
        monkeypatch,
        'train',
        trained['energy'],
        '--amp',
        '--auto-scale-lr',
        '--work-dir',
        tmp_path,
        '--cfg-options',
        f'load_from={trained["plain_checkpoint"]}',
        'auto_scale_lr.base_batch_size=16',
        'auto_scale_lr.enable=False',
    )
    written = Config.fromfile(tmp_path / trained['energy'].name)
    assert written.optim_wrapper.type == 'BFloat16OptimWrapper'
    checkpoints = [
        torch.load(path)
        for path in (tmp_path / 'epoch_1.pth', trained['checkpoint'])
    ]
    key = 'energy_model.head.shared_fcs.0.weight'
    mixed, full = (c['state_dict'][key] for c in checkpoints)
    assert mixed.dtype == torch.float32 and mixed.isfinite().all()
    assert not torch.equal(mixed, full)
    rates = [
        c['optimizer']['param_groups'][0]['initial_lr'] for c in checkpoints
    ]
    assert rates[0] == pytest.approx(rates[1] / 2)


def test_inference_tells_what_it_did_by_its_exit_status(
    trained, monkeypatch, tmp_path, digits, capsys
):
    folder = tmp_path / 'images'
    folder.mkdir()
    for index, path in enumerate(
        sorted((digits / 'images').glob('test_*.png'))[:3]
    ):
        (folder / f'{index}.png').write_bytes(path.read_bytes())

    def infer(*arguments):
        with pytest.raises(SystemExit) as done:
            run_tool(
                monkeypatch,
                'infer',
                trained['energy'],
                trained['checkpoint'],
                *arguments,
                '--out-dir',
                tmp_path / 'out',
                '--cfg-options',
                'model.detector.test_cfg.rcnn.score_thr=0.01',
            )
        return done.value.code

    assert infer(folder, '--batch-size', 2, '--compare') == 0
    (folder / 'broken.jpg').write_bytes(b'not an image')
    assert infer(folder, '--compare') == 3
    output = capsys.readouterr().out
    assert '3 done (3 by an earlier run), 1 skipped' in output
    assert 'broken.jpg' in output
    assert f'pictures: {tmp_path}/out/index.html' in output
    summary = json.loads((tmp_path / 'out/summary.json').read_text())
    assert (summary['done'], list(summary['skipped'])) == (3, ['broken.jpg'])
    assert len(list((tmp_path / 'out/vis').glob('*.png.jpg'))) == 3
    assert len(COCO(str(tmp_path / 'out/predictions.json')).imgs) == 3
    assert 'nowhere' in infer(tmp_path / 'nowhere')  # a message: status 1
    assert infer(folder, '--batch-size', 0) == 2


def test_interrupted_inference_says_how_to_go_on(
    trained, monkeypatch, tmp_path, capsys
):
    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        'mmdet_ebm.apis.EnergyDetInferencer.stream', interrupted
    )
    with pytest.raises(SystemExit) as done:
        run_tool(
            monkeypatch,
            'infer',
            trained['energy'],
            trained['checkpoint'],
            tmp_path,
            '--out-dir',
            tmp_path,
        )
    assert done.value.code == 130
    assert 'the same command continues' in capsys.readouterr().err


def test_evaluation_with_a_plain_checkpoint_needs_the_stages_off(
    trained, monkeypatch, tmp_path
):
    """Random energies would pass for a bad method."""
    arguments = (
        trained['energy'],
        trained['plain_checkpoint'],
        '--work-dir',
        tmp_path,
    )
    with pytest.raises(SystemExit, match='no weights of an energy model'):
        run_tool(monkeypatch, 'test', *arguments)
    run_tool(
        monkeypatch,
        'test',
        *arguments,
        '--cfg-options',
        'model.refinement.energy_nms=False',
        'model.refinement.ascent=False',
    )


def test_test_time_augmentation_runs(trained, monkeypatch, tmp_path, capsys):
    run_tool(
        monkeypatch,
        'test',
        trained['energy'],
        trained['checkpoint'],
        '--work-dir',
        tmp_path,
        '--tta',
        '--verbose',
    )
    assert list(tmp_path.glob('*/*.json'))
    shown = capsys.readouterr().out
    assert 'Hooks will be executed' in shown and 'Accumulating' in shown


def test_comparing_stages_gives_every_figure(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    out = tmp_path / 'figures.json'
    compare_stages.main(
        [
            *(str(trained[name]) for name in ('energy', 'checkpoint')),
            *('--control-config', str(trained['plain'])),
            *('--control', str(trained['plain_checkpoint'])),
            *('--resamples', '5', '--ascents', '--device', 'cpu'),
            *('--out', str(out)),
        ]
    )
    figures = json.loads(out.read_text())
    stages = figures['stages']
    assert set(stages) == {
        'plain',
        'voted',
        'clusters',
        'f alone',
        'published',
        'placed',
        'refined',
        'f alone, published schedule',
        'refined, published schedule',
        'refined, bfloat16',
        'control',
    }
    assert 'f alone - f alone, published schedule' in figures['differences']
    # The control is the same detector here: the plain stage must equal it.
    assert stages['plain']['runs'] == stages['control']['runs']
    assert set(figures['differences']['refined - control']['AP']) == {
        'difference',
        'low',
        'high',
    }


@pytest.mark.skipif(
    BCCD is None,
    reason='BCCD is not on this machine; set BCCD_ROOT to its folder',
)
def test_bccd_trains_from_real_images(monkeypatch, tmp_path):
    monkeypatch.setenv('BCCD_ROOT', str(BCCD))
    plain = shrunk_config(
        'bccd/faster-rcnn_r18-half_bccd.py',
        tmp_path,
        **{
            'train_dataloader.dataset.indices': 4,
            'train_cfg.val_interval': 10,
        },
    )
    energy = shrunk_config(
        'bccd/faster-rcnn_r18-half_nce-plus_bccd.py',
        tmp_path,
        **{
            'train_dataloader.dataset.indices': 4,
            'train_cfg.val_interval': 10,
        },
    )
    run_tool(monkeypatch, 'train', plain, '--work-dir', tmp_path / 'plain')
    run_tool(
        monkeypatch,
        'train',
        energy,
        '--work-dir',
        tmp_path / 'energy',
        '--cfg-options',
        f'load_from={tmp_path}/plain/epoch_1.pth',
    )
    assert (tmp_path / 'energy/epoch_1.pth').exists()


def test_a_plain_detector_is_refined_without_an_energy_model(
    trained, monkeypatch, tmp_path, capsys
):
    fitted = tmp_path / 'fitted.pth'
    options = ['--cfg-options', 'model.energy_model.density=fitted']
    run_tool(
        monkeypatch,
        'fit_density',
        trained['energy'],
        trained['plain_checkpoint'],
        '--out',
        fitted,
        *options,
    )
    assert 'f is not asked' in capsys.readouterr().out
    stored = state(fitted)
    assert holds(stored, state(trained['plain_checkpoint']))
    (numbers,) = (key for key in stored if key.startswith('energy_model.'))
    assert math.isinf(stored[numbers][0]) and stored[numbers][-1] == 1
    run_tool(
        monkeypatch,
        'test',
        trained['energy'],
        fitted,
        '--work-dir',
        tmp_path,
        *options,
    )
    assert 'refined' in capsys.readouterr().out


def test_tuning_tells_the_worth_of_choices_and_writes_a_config(
    trained, monkeypatch, tmp_path, capsys
):
    arguments = [
        trained['energy'],
        trained['checkpoint'],
        '--out',
        tmp_path / 'new/tuned.py',
        '--resamples',
        '5',
    ]
    run_tool(monkeypatch, 'tune', *arguments)
    shown = capsys.readouterr().out
    assert '| choice ' in shown and 'detector alone' in shown
    tuned = Config.fromfile(tmp_path / 'new/tuned.py')
    assert tuned.model.type == 'EnergyDetector'
    report = json.loads((tmp_path / 'new/tuned.json').read_text())
    assert {'as it is now', 'detector alone', 'votes 0.5'} <= set(
        report['trials']
    )
    assert not list(tmp_path.glob('new/*.jsonl'))
    run_tool(
        monkeypatch,
        'test',
        tmp_path / 'new/tuned.py',
        trained['checkpoint'],
        '--work-dir',
        tmp_path,
    )


def test_tuning_starts_from_the_numbers_of_the_config(
    trained, monkeypatch, tmp_path, capsys
):
    cfg = Config.fromfile(trained['energy'])
    cfg.model.energy_model.density = dict(temperature=1.5, side_std=0.03)
    cfg.dump(tmp_path / 'numbers.py')
    out = tmp_path / 'tuned.py'
    run_tool(
        monkeypatch,
        'tune',
        tmp_path / 'numbers.py',
        trained['checkpoint'],
        '--out',
        out,
        '--resamples',
        '5',
        '--cfg-options',
        'model.refinement.ascent_per_img=3',
    )
    assert 'never fitted' not in capsys.readouterr().out
    # What was given on the command line is not in the config.
    assert '--cfg-options model.refinement.ascent_per_img=3' in out.read_text()
    report = json.loads(out.with_suffix('.json').read_text())
    assert 'temperature x 2' in report['trials']
    numbers = Config.fromfile(out).model.energy_model.density
    assert numbers['side_std'] in (0.015, 0.03, 0.06)


def test_a_fit_goes_into_a_new_checkpoint(trained, monkeypatch, tmp_path):
    out = tmp_path / 'new/folder/fitted.pth'
    run_tool(
        monkeypatch,
        'fit_density',
        trained['energy'],
        trained['checkpoint'],
        '--out',
        out,
        '--cfg-options',
        'model.energy_model.density=fitted',
    )
    before, after = state(trained['checkpoint']), state(out)
    numbers = 'energy_model.density._extra_state'
    assert after.pop(numbers)[-1] == 1
    before.pop(numbers, None)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_interrupted_tuning_goes_on_where_it_was(
    trained, monkeypatch, tmp_path
):
    arguments = [
        trained['energy'],
        trained['checkpoint'],
        '--out',
        tmp_path / 'tuned.py',
        '--resamples',
        '5',
    ]
    run_tool(monkeypatch, 'tune', *arguments)
    whole = (tmp_path / 'tuned.json').read_text()
    seen = []

    def interrupted(image_id, *arguments):
        seen.append(image_id)
        if len(set(seen)) > 2:
            raise KeyboardInterrupt
        return coco_results(image_id, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(
            'mmdet_ebm.evaluation.coco_matching.coco_results', interrupted
        )
        with pytest.raises(KeyboardInterrupt):
            run_tool(monkeypatch, 'tune', *arguments)
    store = tmp_path / 'tuned.jsonl'
    assert len(store.read_text().splitlines()) == 3  # and what they are of
    with open(store, 'a') as file:
        file.write('{"image": 3, "res')  # cut in the middle
    done = set(seen[:-1])
    seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            'mmdet_ebm.evaluation.coco_matching.coco_results',
            lambda image_id, *rest: (
                seen.append(image_id) or coco_results(image_id, *rest)
            ),
        )
        run_tool(monkeypatch, 'tune', *arguments)
    assert seen and not done & set(seen)
    assert (tmp_path / 'tuned.json').read_text() == whole
