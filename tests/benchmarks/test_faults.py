"""The comparisons of the command that breaks runs can fail."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import faults


def checkpoint(folder, value, iteration=12):
    folder.mkdir()
    torch.save(
        dict(
            state_dict=dict(weight=torch.full((2,), value)),
            meta=dict(iter=iteration),
        ),
        folder / f'iter_{iteration}.pth',
    )
    return folder


def test_other_weights_and_iterations_are_noticed(tmp_path):
    whole = checkpoint(tmp_path / 'whole', 1.0)
    faults.require_same_weights(checkpoint(tmp_path / 'same', 1.0), whole)
    with pytest.raises(faults.Fault, match='other weight'):
        faults.require_same_weights(checkpoint(tmp_path / 'b', 1.1), whole)
    with pytest.raises(faults.Fault, match='other iterations'):
        faults.require_same_weights(
            checkpoint(tmp_path / 'c', 1.0, iteration=10), whole
        )


def results(folder, score, lines=1):
    (folder / 'preds').mkdir(parents=True)
    (folder / 'preds/a.json').write_text(json.dumps(dict(scores=[score])))
    (folder / 'predictions.json').write_text('[]')
    (folder / 'images.jsonl').write_text('{}\n' * lines)
    return folder


def test_other_predictions_are_noticed(tmp_path):
    bench = SimpleNamespace(folder=tmp_path)
    results(tmp_path / 'predictions', 0.5)
    faults.require_same_predictions(bench, results(tmp_path / 'same', 0.5))
    with pytest.raises(faults.Fault, match='other predictions'):
        faults.require_same_predictions(bench, results(tmp_path / 'b', 0.6))
    with pytest.raises(faults.Fault, match='another ledger'):
        faults.require_same_predictions(
            bench, results(tmp_path / 'c', 0.5, lines=0)
        )
