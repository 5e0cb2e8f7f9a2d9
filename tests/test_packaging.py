"""What a wheel brings along, and the command that runs it."""

import ast
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from setuptools import Distribution

from mmdet_ebm import __main__, shipped

from .small_models import CONFIGS, ROOT

PACKAGE = ROOT / 'mmdet_ebm'
SHIPPED = PACKAGE / '.mim/configs'
CONFIG = SHIPPED / 'bccd/faster-rcnn_r18-half_nce-plus_bccd.py'


def distribution():
    found = Distribution(dict(src_root=str(ROOT)))
    found.parse_config_files([ROOT / 'setup.cfg'])
    return found


def python_files(folder):
    return {path.relative_to(folder) for path in folder.rglob('*.py')}


@pytest.mark.parametrize('folder', ['configs', 'tools'])
def test_a_wheel_holds_all_configs_and_tools(monkeypatch, folder):
    monkeypatch.chdir(ROOT)
    build = distribution().get_command_obj('build_py')
    build.ensure_finalized()
    packed = {
        Path(file)
        for package, *_, files in build.data_files
        if package == 'mmdet_ebm'
        for file in files
    }
    wanted = {
        Path('.mim', folder, file) for file in python_files(ROOT / folder)
    }
    assert len(wanted) > 5 and wanted <= packed


def test_the_source_archive_holds_all_that_the_checkout_does():
    if not (ROOT / '.git').exists() or not shutil.which('git'):
        pytest.skip('not a git checkout')
    files = subprocess.check_output(
        ['git', 'ls-files'], cwd=ROOT, text=True
    ).splitlines()
    folders = {
        top
        for top, slash, _ in (file.partition('/') for file in files)
        if slash and not top.startswith('.')
    }
    manifest = (ROOT / 'MANIFEST.in').read_text().splitlines()
    assert {f'graft {folder}' for folder in folders} <= set(manifest)


def test_the_installed_command_is_the_module():
    (script,) = distribution().entry_points['console_scripts']
    name, _, value = script.partition(' = ')
    assert name == 'mmdet_ebm'
    assert EntryPoint(name, value, 'console_scripts').load() is __main__.main


@pytest.mark.parametrize('name', ['__main__.py', 'shipped.py'])
def test_the_command_itself_needs_the_standard_library_alone(name):
    for node in ast.walk(ast.parse((PACKAGE / name).read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            assert set(modules) <= sys.stdlib_module_names
        elif isinstance(node, ast.ImportFrom):
            assert (node.level, node.module) == (1, 'shipped') or (
                node.module in sys.stdlib_module_names
            )


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['mmdet_ebm', *arguments])
    return __main__.main()


def test_configs_are_listed_with_full_paths(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, 'configs') == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.relative_to(SHIPPED) for path in paths} == {
        path for path in python_files(CONFIGS) if '_base_' not in path.parts
    }


@pytest.mark.parametrize('pattern', ['nce-plus_bccd', 'bccd/*_nce-plus_'])
def test_a_pattern_picks_configs(monkeypatch, capsys, pattern):
    assert run(monkeypatch, 'configs', pattern) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert Path(line) == CONFIG


def test_a_pattern_that_fits_nothing_is_an_error(monkeypatch, capsys):
    assert run(monkeypatch, 'configs', 'centernet') == 1
    output = capsys.readouterr()
    assert output.out == '' and "'centernet'" in output.err


@pytest.mark.parametrize(
    'name',
    [CONFIG.name, f'bccd/{CONFIG.name}', f'configs/bccd/{CONFIG.name}'],
)
def test_a_config_is_found_by_its_name(name):
    assert shipped.find_config(name) == CONFIG


@pytest.mark.parametrize(
    'name', ['yolo.py', f'coco/{CONFIG.name}', 'small_runtime.py', 'half.py']
)
def test_a_config_that_is_not_shipped_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"'{name}', which fits 0 "):
        shipped.find_config(name)


@pytest.fixture
def other(tmp_path, monkeypatch):
    """A package with two configs and a tool that prints its arguments."""
    for file, text in {
        'configs/a/one.py': '',
        'configs/a/two.py': '',
        'configs/b/two.py': '',
        'tools/analysis/say.py': (
            '"""Says.\n\nMore."""\nfrom _say import say\nsay()\n'
        ),
        'tools/analysis/_say.py': (
            'import sys\ndef say():\n    print(*sys.argv[1:])\n'
        ),
        'tools/stop.py': 'raise SystemExit(3)\n',
    }.items():
        path = tmp_path / 'package/.mim' / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(shipped, '_SHIPPED', tmp_path / 'package/.mim')
    monkeypatch.setattr(sys, 'path', sys.path.copy())
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'package/.mim'


def test_a_name_of_several_configs_is_refused(other):
    with pytest.raises(FileNotFoundError, match='fits 2 of them'):
        shipped.find_config('two.py')
    assert shipped.find_config('b/two.py') == other / 'configs/b/two.py'


def test_a_tool_gets_the_path_of_a_shipped_config(other, monkeypatch, capsys):
    arguments = ['one.py', 'two.py', '--out-dir', 'one', 'load_from=one.py']
    assert run(monkeypatch, 'say', *arguments) == 0
    words = capsys.readouterr().out.split()
    assert words == [str(other / 'configs/a/one.py'), *arguments[1:]]


def test_a_file_of_the_user_comes_before_a_shipped_config(
    other, monkeypatch, capsys
):
    Path('one.py').write_text('')
    assert run(monkeypatch, 'say', 'one.py') == 0
    assert capsys.readouterr().out.split() == ['one.py']


def test_a_tools_exit_status_is_passed_on(other, monkeypatch):
    with pytest.raises(SystemExit, match='3'):
        run(monkeypatch, 'stop')


def test_help_names_the_tools_and_what_they_do(other, monkeypatch, capsys):
    for arguments in ([], ['-h'], ['--help']):
        assert run(monkeypatch, *arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split() for line in lines[-2:]] == [
            ['say', 'Says.'],
            ['stop'],
        ]


def test_an_unknown_tool_is_refused(monkeypatch, capsys):
    assert run(monkeypatch, 'trian') == 2
    message = capsys.readouterr().err
    assert "got 'trian'" in message and ' train' in message


def test_a_checkout_without_links_is_explained(other, monkeypatch):
    shutil.rmtree(other / 'configs')
    (other / 'configs').write_text('../../configs')  # as git does on Windows
    with pytest.raises(FileNotFoundError, match='core.symlinks'):
        shipped.shipped_configs()


def test_a_shipped_tool_runs_in_any_folder(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'mmdet_ebm', 'train', '--help'],
        cwd=tmp_path,
        env={'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert 'usage: train.py' in done.stdout
