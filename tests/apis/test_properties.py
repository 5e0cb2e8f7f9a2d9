"""Results and the ledger, for any names, numbers and interruptions."""

import json
import math
import tempfile
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.structures import InstanceData

from mmdet_ebm.apis.inputs import Source
from mmdet_ebm.apis.results import (
    coco_annotations,
    to_instances,
    to_prediction,
)
from mmdet_ebm.apis.results_folder import ResultsFolder

from ..properties import boxes, few

any_float = st.floats(width=32)
names = st.text(
    st.characters(exclude_characters='/\0', exclude_categories=['Cs']),
    min_size=1,
    max_size=20,
).filter(lambda name: name not in ('.', '..'))


def rows_of(scores):
    return st.lists(
        st.tuples(st.integers(0, 80), scores, boxes(), any_float, boxes()),
        max_size=4,
    )


detections = rows_of(any_float)


def instances_of(rows):
    labels, scores, corners, logdensities, initial = (
        zip(*rows) if rows else [[]] * 5
    )
    return InstanceData(
        labels=torch.tensor(labels, dtype=torch.int64),
        scores=torch.tensor(scores),
        bboxes=torch.tensor(corners).view(-1, 4),
        logdensities=torch.tensor(logdensities),
        initial_bboxes=torch.tensor(initial).view(-1, 4),
    )


@few
@given(detections)
def test_predictions_survive_json_and_back(rows):
    """Numbers that are not finite become NaN; the rest stays exactly."""
    instances = instances_of(rows)
    prediction = to_prediction(instances)
    text = json.dumps(prediction, allow_nan=False)
    back = to_instances(json.loads(text))
    for name in prediction:
        value = instances[name]
        if value.is_floating_point():
            value = torch.where(value.isfinite(), value, math.nan)
        torch.testing.assert_close(
            back[name], value, rtol=0, atol=0, equal_nan=True
        )


@few
@given(detections)
def test_coco_annotations_hold_the_same_boxes(rows):
    prediction = to_prediction(instances_of(rows))
    annotations = coco_annotations(prediction)
    assert len(annotations) == len(rows)
    for annotation, corners in zip(annotations, prediction['bboxes']):
        x, y, width, height = annotation['bbox']
        assert width > 0 and height > 0
        assert [x, y] == corners[:2]
        assert annotation['area'] == width * height


@few
@given(st.dictionaries(names, st.integers(0, 9), max_size=5), st.data())
def test_a_ledger_that_was_cut_off_keeps_what_was_whole(noted, data):
    """A process may be killed in the middle of its last line."""
    with tempfile.TemporaryDirectory() as path:
        folder = ResultsFolder(path, {})
        for name, number in noted.items():
            source = Source(name, Path('/images') / name)
            folder.finish(name, source, str(number), dict(number=number))
        ledger = Path(path, 'images.jsonl')
        written = ledger.read_bytes() if noted else b''
        whole = written[: written[:-1].rfind(b'\n') + 1]
        cut = data.draw(st.integers(len(whole), max(0, len(written) - 2)))
        if noted:
            ledger.write_bytes(written[:cut])
        again = ResultsFolder(path, {})
        for name in list(noted)[:-1]:
            assert again.details(name) == dict(number=noted[name])
        # The next line is not lost in the rest of the cut one.
        again.finish('next', Source('next', Path('/next')), '1', dict(a=1))
        assert ResultsFolder(path, {}).details('next') == dict(a=1)


@few
@given(names, rows_of(st.floats(0, 1, width=32)))
def test_what_is_saved_under_a_name_is_found_under_it(name, rows):
    prediction = to_prediction(instances_of(rows))
    with tempfile.TemporaryDirectory() as path:
        folder = ResultsFolder(path, {})
        folder.save(name, prediction)
        folder.finish(name, Source(name, Path('/x')), 'signature', {})
        again = ResultsFolder(path, {})
        assert again.finished(name, 'signature') == prediction
        assert again.finished(name, 'another') is None
