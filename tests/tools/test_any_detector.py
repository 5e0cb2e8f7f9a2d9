"""The tools with a dense and a query-based detector in the wrapper."""

import json

import pytest

from studies import compare_stages

from ..helpers import run_tool
from ..small_models import ROOT
from .test_pipeline import holds, shrunk_config, state, train_both

STAGES = {
    'atss': {
        'plain',
        'voted',
        'clusters',
        'f alone',
        'published',
        'placed',
        'refined',
    },
    'dino': {'plain', 'f alone', 'placed', 'refined'},  # it has no NMS
}


@pytest.fixture(scope='module', params=STAGES)
def trained(request, digits, tmp_path_factory):
    """Configs and checkpoints of the plain detector and the wrapped one."""
    patch = pytest.MonkeyPatch()
    patch.setenv('DIGITS_ROOT', str(digits))
    folder = tmp_path_factory.mktemp(request.param)
    stem = f'digits/{request.param}_r18-half'
    # What is hardly trained is hardly sure of anything.
    threshold = 'test_cfg.score_thr'
    plain = shrunk_config(
        f'{stem}_digits.py', folder, **{f'model.{threshold}': 0.0}
    )
    energy = shrunk_config(
        f'{stem}_nce-plus_digits.py',
        folder,
        **{f'model.detector.{threshold}': 0.0},
    )
    both = train_both(patch, plain, energy, folder)
    yield dict(name=request.param, **both)
    patch.undo()


def test_training_keeps_the_plain_detector(trained, monkeypatch, tmp_path):
    plain, energy = (
        state(trained['plain_checkpoint']),
        state(trained['checkpoint']),
    )
    assert holds(energy, plain)
    assert any(key.startswith('energy_model.') for key in energy)
    with pytest.raises(SystemExit, match='load_from'):
        run_tool(
            monkeypatch, 'train', trained['energy'], '--work-dir', tmp_path
        )


def test_evaluation_plain_and_with_augmentation(
    trained, monkeypatch, tmp_path
):
    with pytest.raises(SystemExit, match='no weights of an energy model'):
        run_tool(
            monkeypatch,
            'test',
            trained['energy'],
            trained['plain_checkpoint'],
            '--work-dir',
            tmp_path,
        )
    run_tool(
        monkeypatch,
        'test',
        trained['energy'],
        trained['checkpoint'],
        '--work-dir',
        tmp_path,
        '--tta',
    )
    (written,) = tmp_path.glob('*/*.json')
    assert 'coco/bbox_mAP_90' in json.loads(written.read_text())


def test_stages_compared_with_the_plain_checkpoint(
    trained, monkeypatch, tmp_path
):
    monkeypatch.chdir(ROOT)
    out = tmp_path / 'figures.json'
    compare_stages.main(
        [
            *(str(trained[name]) for name in ('energy', 'checkpoint')),
            *('--control-config', str(trained['plain'])),
            *('--control', str(trained['plain_checkpoint'])),
            *('--resamples', '5', '--device', 'cpu', '--out', str(out)),
        ]
    )
    stages = json.loads(out.read_text())['stages']
    assert set(stages) == STAGES[trained['name']] | {'control'}
    assert stages['plain']['runs'] == stages['control']['runs']


def test_inference_on_a_folder(trained, monkeypatch, tmp_path, digits):
    folder = tmp_path / 'images'
    folder.mkdir()
    for path in sorted((digits / 'images').glob('test_*.png'))[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SystemExit) as done:
        run_tool(
            monkeypatch,
            'infer',
            trained['energy'],
            trained['checkpoint'],
            folder,
            '--out-dir',
            tmp_path / 'out',
            '--pred-score-thr',
            '0.0',
            '--uncertainty',
        )
    assert done.value.code == 0
    written = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert len(written['images']) == 2
    assert len(written['annotations']) > 0
    assert all(
        'logdensity' in a and len(a['box_std']) == 4
        for a in written['annotations']
    )
