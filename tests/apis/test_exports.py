"""Results for other tools, read back with the library of each tool."""

import csv
import json
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.mask import encode

from mmdet_ebm.apis import SavedResults, to_supervision
from mmdet_ebm.apis.exports import (
    COLUMNS,
    select,
    table_rows,
    write_csv,
    write_fiftyone,
    write_parquet,
)

from ..helpers import two_detections, write_results

CLASSES = ('dog', 'cat & co')
NAN = float('nan')


@pytest.fixture
def results(tmp_path):
    return SavedResults(write_results(tmp_path / 'out'))


def test_supervision_has_boxes_names_and_what_is_known_of_them():
    supervision = pytest.importorskip('supervision')
    found = to_supervision(two_detections(), CLASSES)
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.xyxy[0], [10, 20, 50, 80])
    np.testing.assert_array_equal(found.confidence, [0.75, 0.25])
    np.testing.assert_array_equal(found.class_id, [1, 0])
    expected = dict(
        class_name=['cat & co', 'dog'],
        logdensity=[3.5, NAN],
        box_logprob=[-1.25, NAN],
        class_score=[0.875, 0.5],
        object_prob=[0.8125, 0.375],
        quality=[0.625, 0.25],
        box_std=[[1, 1.25, 1.5, 2], [NAN] * 4],
        initial_bbox=[[8, 20, 52, 84], [0, 0.5, 100, 200]],
    )
    assert set(found.data) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found.data[name], values)
    # Its own selection takes the data along.
    sure = found[found.data['quality'] > 0.5]
    assert sure.data['class_name'].tolist() == ['cat & co']
    assert sure.data['box_std'].shape == (1, 4)
    assert found.mask is None


def test_supervision_takes_masks_and_no_detections():
    pytest.importorskip('supervision')
    nothing = to_supervision(select(two_detections(), 2.0), CLASSES)
    assert len(nothing) == 0 and nothing.data['box_std'].shape == (0, 4)
    mask = np.zeros((4, 6), np.uint8, order='F')
    mask[1:3, 2:5] = 1
    runs = encode(mask)
    runs['counts'] = runs['counts'].decode()
    prediction = dict(
        labels=[0], scores=[0.5], bboxes=[[2.0, 1.0, 5.0, 3.0]], masks=[runs]
    )
    found = to_supervision(prediction, CLASSES)
    assert found.mask.dtype == bool
    np.testing.assert_array_equal(found.mask[0], mask)
    assert set(found.data) == {'class_name'}


def test_selection_keeps_the_fields_of_the_better_detections():
    chosen = select(two_detections(), 0.75)
    assert chosen == {k: v[:1] for k, v in two_detections().items()}
    assert select(two_detections(), 0.25) == two_detections()


def test_rows_have_all_columns_and_none_where_nothing_is_known(results):
    image = next(i for i in results if i.prediction['labels'])
    sure, unsure = table_rows(image, CLASSES)
    assert sure == dict(
        image='x & y/cat.jpg',
        path='/in/x & y/cat.jpg',
        width=100,
        height=200,
        label=1,
        class_name='cat & co',
        score=0.75,
        logdensity=3.5,
        box_logprob=-1.25,
        class_score=0.875,
        object_prob=0.8125,
        quality=0.625,
        x1=10.0,
        y1=20.0,
        x2=50.0,
        y2=80.0,
        std_x1=1.0,
        std_y1=1.25,
        std_x2=1.5,
        std_y2=2.0,
        initial_x1=8.0,
        initial_y1=20.0,
        initial_x2=52.0,
        initial_y2=84.0,
    )
    assert list(unsure) == list(COLUMNS)
    assert unsure['logdensity'] is None and unsure['std_y2'] is None
    # A model without refinement gives neither.
    for field in ('qualities', 'box_std'):
        del image.prediction[field]
    plain = table_rows(image, CLASSES)[0]
    assert list(plain) == list(COLUMNS)
    assert plain['quality'] is None and plain['std_x1'] is None


def test_csv_is_the_rows(results, tmp_path):
    write_csv(results, CLASSES, tmp_path / 'x.csv')
    with (tmp_path / 'x.csv').open(newline='') as file:
        sure, unsure = csv.DictReader(file)
    assert list(sure) == list(COLUMNS)
    assert sure['image'] == 'x & y/cat.jpg' and float(sure['std_y1']) == 1.25
    assert unsure['box_logprob'] == ''


def test_pandas_reads_the_same_from_csv_and_parquet(results, tmp_path):
    pandas = pytest.importorskip('pandas')
    pytest.importorskip('pyarrow')
    write_csv(results, CLASSES, tmp_path / 'x.csv')
    write_parquet(results, CLASSES, tmp_path / 'x.parquet')
    tables = (
        pandas.read_csv(tmp_path / 'x.csv'),
        pandas.read_parquet(tmp_path / 'x.parquet'),
    )
    for table in tables:
        assert list(table) == list(COLUMNS)
        assert table['class_name'].tolist() == ['cat & co', 'dog']
        np.testing.assert_array_equal(table['box_logprob'], [-1.25, NAN])
        np.testing.assert_array_equal(table['x2'], [50, 100])
        best = table[table['quality'] > 0.5]
        assert best['image'].tolist() == ['x & y/cat.jpg']
    assert tables[1]['label'].dtype == np.int32


def test_parquet_of_no_detections_has_the_columns(tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    write_parquet([], CLASSES, tmp_path / 'x.parquet')
    table = parquet.read_table(tmp_path / 'x.parquet')
    assert table.num_rows == 0
    assert {f.name: str(f.type) for f in table.schema} == {
        name: 'double' if kind == 'float64' else kind
        for name, kind in COLUMNS.items()
    }


def test_fiftyone_gets_full_paths_and_numbers_to_filter_by(results, tmp_path):
    path = tmp_path / 'x.json'
    write_fiftyone([i for i in results if i.is_file], CLASSES, path)
    coco = COCO(str(path))
    assert [i['file_name'] for i in coco.imgs.values()] == [
        '/in/empty.png',
        '/in/x & y/cat.jpg',
    ]
    sure, unsure = coco.anns.values()
    assert sure == dict(
        id=1,
        image_id=1,
        category_id=2,
        bbox=[10.0, 20.0, 40.0, 60.0],
        area=2400.0,
        iscrowd=0,
        score=0.75,
        logdensity=3.5,
        box_logprob=-1.25,
        class_score=0.875,
        object_prob=0.8125,
        quality=0.625,
        std_x1=1.0,
        std_y1=1.25,
        std_x2=1.5,
        std_y2=2.0,
        initial_bbox=[8.0, 20.0, 44.0, 64.0],
    )
    assert coco.cats[2]['name'] == 'cat & co'
    assert 'std_x1' not in unsure and 'logdensity' not in unsure
    assert None not in json.loads(path.read_text())['annotations'][1].values()


@pytest.mark.parametrize('library', ['supervision', 'parquet'])
def test_a_missing_library_is_named_with_its_extra(
    monkeypatch, tmp_path, library
):
    name = dict(supervision='supervision', parquet='pyarrow')[library]
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf'mmdet_ebm\[{library}\]'):
        if library == 'supervision':
            to_supervision(two_detections(), CLASSES)
        else:
            write_parquet([], CLASSES, tmp_path / 'x.parquet')
    assert not list(tmp_path.iterdir())
