"""The whole study, and what it refuses; the trainings are elsewhere."""

import json

import pytest

from studies import compare_stages, train_and_compare
from studies.files import small_config_file


@pytest.fixture
def trained(monkeypatch):
    """Calls of ``train_once``, which trains nothing here."""
    calls = []

    def train_once(config, work_dir, seed, load_from=None):
        calls.append((config, work_dir, seed, load_from))
        return work_dir / 'epoch.pth'

    monkeypatch.setattr(train_and_compare, 'train_once', train_once)
    monkeypatch.setattr(train_and_compare, 'training_minutes', lambda _: 1.5)
    return calls


@pytest.fixture
def compared(monkeypatch):
    """Calls of ``compare_stages``, which compares nothing here."""
    calls = []

    def compare(arguments):
        calls.append(compare_stages.parse_args(arguments))
        calls[-1].out.parent.mkdir(parents=True, exist_ok=True)
        calls[-1].out.write_text('{"stages": 1}')

    monkeypatch.setattr(compare_stages, 'main', compare)
    return calls


def test_control_and_energy_model_start_from_the_same_detector(
    trained, compared, tmp_path
):
    train_and_compare.main(
        ['bccd', '--seeds', '3', '4', '--work-dir', str(tmp_path)]
    )
    kinds = ('', 'nce-plus', 'control')
    configs = [small_config_file('bccd', kind) for kind in kinds]
    assert [call[0] for call in trained] == 2 * configs
    assert [call[2] for call in trained] == [3, 3, 3, 4, 4, 4]
    plain = tmp_path / 'seed3/plain/epoch.pth'
    assert [call[3] for call in trained[:3]] == [None, plain, plain]
    val, test = compared
    assert (val.split, test.split) == ('val', 'test')
    assert test.out == tmp_path / 'test.json'
    assert json.loads(test.out.read_text()) == dict(
        stages=1, training_minutes=[1.5, 1.5]
    )
    for args in (val, test):
        for found, kind in (
            (args.checkpoints, 'nce-plus'),
            (args.control, 'control'),
        ):
            assert found == [
                str(tmp_path / f'seed{seed}/{kind}/epoch.pth')
                for seed in (3, 4)
            ]


def test_dino_starts_from_the_backbone_of_faster_rcnn(
    trained, compared, tmp_path
):
    train_and_compare.main(
        f'digits --detector dino --seeds 0 --work-dir {tmp_path}'.split()
    )
    folders = [call[1].name for call in trained]
    assert folders == ['backbone', 'plain', 'nce-plus', 'control']
    assert trained[1][3] == tmp_path / 'seed0/backbone/epoch.pth'


def test_minutes_of_a_training_are_those_of_its_steps(tmp_path):
    for number, lines in enumerate(
        (
            [
                dict(time=2.0, loss=1.0, step=20),
                dict(time=4.0, loss=1, step=40),
            ],
            [dict(time=3.0, loss=1.0, step=60), dict(time=90.0, step=60)],
        )
    ):
        log = tmp_path / str(number) / 'vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text('\n'.join(map(json.dumps, lines)))
    assert train_and_compare.training_minutes(tmp_path) == 3.0


def test_an_unknown_detector_is_refused(capsys):
    with pytest.raises(SystemExit):
        train_and_compare.main(['digits', '--detector', 'nothing'])
    assert 'no energy config of nothing' in capsys.readouterr().err


def test_table_of_stages():
    run = dict(AP=0.5, AP50=0.7, AP75=0.6, AP90=0.1)
    better = {metric: value + 0.02 for metric, value in run.items()}
    interval = dict(difference=0.021, low=-0.01, high=0.05)
    lines = compare_stages.to_markdown(
        dict(
            stages=dict(
                plain=dict(runs=[run, better], seconds_per_image=[0.1, 0.2])
            ),
            differences={'ascent - plain': dict.fromkeys(run, interval)},
        )
    ).splitlines()
    cells = [[cell.strip() for cell in line.split('|')] for line in lines]
    assert cells[0][1:7] == [
        'stage',
        'AP',
        'AP50',
        'AP75',
        'AP90',
        's / image',
    ]
    assert cells[2][1:3] == ['plain', '51.0 (50.0 to 52.0)']
    assert cells[2][6] == '0.150'
    assert cells[3][1:3] == ['ascent - plain', '+2.1 [-1.0, +5.0]']
    assert cells[3][6] == ''
