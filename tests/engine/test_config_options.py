"""Changes to a config on a command line."""

import argparse

import pytest

from mmdet_ebm.engine.config_options import ConfigOptions


def parse(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)
    return parser.parse_args(['--cfg-options', *words]).cfg_options


@pytest.mark.parametrize('name', ['my data', 'a,b', '[a] (b', "it's"])
def test_a_path_stays_as_it_is(tmp_path, name):
    path = tmp_path / name / 'epoch_1.pth'
    path.parent.mkdir()
    path.touch()
    assert parse(f'load_from={path}') == dict(load_from=str(path))


def test_other_values_are_those_of_mmengine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / '3').touch()
    assert parse('a=3', 'b=[1, x]', 'c=1,2', 'd=None', 'e=no/where') == dict(
        a=3, b=[1, 'x'], c=[1, 2], d=None, e='no/where'
    )


def test_a_dict_is_refused_with_a_word_on_how_to_write_it(capsys):
    with pytest.raises(SystemExit):
        parse('model.density=dict(temperature=2.0,side_std=0.04)')
    message = capsys.readouterr().err
    assert 'side_std=0.04' in message and 'a.b.x=1 a.b.y=2' in message
