"""The demo, its trainings replaced by random weights."""

import json
import runpy
import shlex
from pathlib import Path

import pytest

from ..helpers import run_tool, save_checkpoint
from ..small_models import ROOT


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """The demo's main, quick; gives the trainings that it wanted."""
    main = runpy.run_path(str(ROOT / 'tools/demo.py'))['main']
    trainings = []

    def run_in_process(tool, *arguments):
        if tool.stem == 'make_digits':
            small = ('--num-train', 2, '--num-val', 2, '--num-test', 4)
            arguments = (*arguments, *small)
        with monkeypatch.context() as patch:
            try:
                run_tool(patch, tool.stem, *arguments)
            except SystemExit as done:
                assert done.code == 0

    def train_once(tool, config, work_dir, seed, **options):
        assert tool == ROOT / 'tools/train.py'
        trainings.append((config, options))
        work_dir.mkdir()
        return save_checkpoint(config, work_dir / 'epoch.pth', seed)

    def first_look(folder):  # tests/test_notebooks.py runs it
        return folder / 'first_look.png'

    monkeypatch.setitem(main.__globals__, 'first_look', first_look)
    monkeypatch.setitem(main.__globals__, 'run_tool', run_in_process)
    monkeypatch.setitem(main.__globals__, 'train_once', train_once)
    monkeypatch.setenv('DIGITS_ROOT', 'to be set')

    def run():
        arguments = ('--work-dir', 'demo', '--data-dir', 'digits')
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr('sys.argv', ['demo.py', *arguments])
        main()
        return trainings

    return run


def test_demo_ends_in_a_table_and_pictures(demo, tmp_path, capsys):
    plain, energy = demo()
    assert plain[0].name == 'faster-rcnn_r18-half_digits.py'
    assert energy[0].name == 'faster-rcnn_r18-half_nce-plus_digits.py'
    assert energy[1]['load_from'] == tmp_path / 'demo/plain/epoch.pth'
    metrics = json.loads((tmp_path / 'demo/metrics.json').read_text())
    assert list(metrics) == ['plain', 'energy_nms', 'ascent', 'refined']
    assert all(
        list(row) == ['AP', 'AP50', 'AP75', 'AP90'] for row in metrics.values()
    )
    pictures = (tmp_path / 'demo/inference/vis').glob('*.jpg')
    assert len(list(pictures)) == 4
    assert 'picture: demo/first_look.png' in (shown := capsys.readouterr().out)
    shown, _, end = shown.partition('== Done')
    assert 'INFO' not in shown and 'Using env variable' not in shown
    assert '| refined    |' in end
    assert 'pictures: demo/inference/index.html' in end
    # The next command names what is there.
    command = shlex.split(end.partition('energy_map.py')[2].splitlines()[0])
    *files, option, _ = command
    assert len(files) == 3 and all(Path(file).exists() for file in files)
    assert option == '--out-dir'
