"""What the fuzz command counts as a result, and the first cases of it."""

import math

import pytest
import torch

from benchmarks.fuzz import TARGETS, require, run_case

# Those that need no model.
QUICK = ('boxes', 'images', 'coco_files', 'options', 'inputs')


@pytest.mark.parametrize('name', QUICK)
def test_the_first_cases_give_results_or_errors_of_ours(name):
    outcomes = {
        run_case(None, TARGETS[name], f'1 {name} {case}') for case in range(12)
    }
    assert outcomes <= {'result', 'refused'} and 'result' in outcomes


def fails(fuzz, draw, folder):
    return {}['no such key']


def refuses(fuzz, draw, folder):
    raise ValueError('sigma must be positive')


def gives_nonsense(fuzz, draw, folder):
    require(bool(torch.tensor(math.nan).isfinite()), 'a box is not finite')


def test_what_goes_wrong_is_told_from_what_is_refused():
    assert run_case(None, refuses, '') == 'refused'
    assert run_case(None, fails, '').startswith("KeyError: 'no such key'")
    assert run_case(None, gives_nonsense, '').startswith('Wrong: a box')
