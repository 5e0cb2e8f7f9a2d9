"""The notebooks run from top to bottom, and show what they say they do.

They train for a shorter time here.
"""

import json
import re

import matplotlib
import pytest
import torch

from .small_models import ROOT

NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


@pytest.fixture(autouse=True)
def _headless():
    backend = matplotlib.get_backend()
    matplotlib.use('Agg')
    yield
    matplotlib.use(backend)
    torch.set_num_threads(1)


def cells(path, kind):
    return [
        ''.join(cell['source'])
        for cell in json.loads(path.read_text())['cells']
        if cell['cell_type'] == kind
    ]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path, capsys):
    names = {}
    for number, source in enumerate(cells(path, 'code')):
        source = source.replace('range(300)', 'range(100)')  # of training
        exec(compile(source, f'{path.name}, cell {number}', 'exec'), names)
    shown = capsys.readouterr().out
    before, after = re.findall(r'mean IoU ([\d.]+) \w+, ([\d.]+)', shown)[0]
    assert float(after) > float(before) + 0.05
    seen, hidden = re.findall(r'deviation ([\d.]+)', shown)
    assert float(hidden) > float(seen)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    for text in cells(path, 'markdown'):
        for link in re.findall(r'\]\(([^)#]+)', text):
            assert (path.parent / link).exists(), link
