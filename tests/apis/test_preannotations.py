"""Files that annotation tools take, read as they read them."""

import json
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest

from mmdet_ebm.apis import SavedResults
from mmdet_ebm.apis.preannotations import (
    CVAT_ATTRIBUTES,
    cvat_labels,
    label_studio_interface,
    write_cvat,
    write_label_studio,
)

from ..helpers import write_results

CLASSES = ('dog', 'cat & co')


@pytest.fixture
def images(tmp_path):
    return [
        i for i in SavedResults(write_results(tmp_path / 'out')) if i.is_file
    ]


@pytest.fixture
def tasks(images, tmp_path):
    path = tmp_path / 'tasks.json'
    write_label_studio(images, CLASSES, path, '/data/local-files/?d=photos/')
    return json.loads(path.read_text())


@pytest.fixture
def annotations(images, tmp_path):
    write_cvat(images, CLASSES, tmp_path / 'x.xml')
    return ElementTree.parse(tmp_path / 'x.xml').getroot()


def test_label_studio_finds_images_whatever_their_names(tasks):
    addresses = [urlsplit(task['data']['image']) for task in tasks]
    assert {address.path for address in addresses} == {'/data/local-files/'}
    assert [parse_qs(address.query) for address in addresses] == [
        {'d': ['photos/empty.png']},
        {'d': ['photos/x & y/cat.jpg']},
    ]


def test_label_studio_gets_boxes_in_per_cent_of_the_image(tasks):
    empty, (prediction,) = [task['predictions'] for task in tasks]
    assert empty[0]['result'] == [] and empty[0]['score'] == 0
    assert prediction['score'] == 0.5
    first, second = prediction['result']
    assert first['value'] == dict(
        x=10,
        y=10,
        width=40,
        height=30,
        rotation=0,
        rectanglelabels=['cat & co'],
    )
    assert (first['original_width'], first['original_height']) == (100, 200)
    assert first['score'] == 0.75 and first['id'] != second['id']


def test_label_studio_tells_people_what_is_known_of_a_box(tasks):
    first, second = tasks[1]['predictions'][0]['result']
    assert first['meta']['text'] == [
        'log-probability -1.25',
        'deviations of x1, y1, x2, y2 in pixels: 1, 1.2, 1.5, 2',
        'expected quality 0.62',
    ]
    assert second['meta']['text'] == ['expected quality 0.25']


def test_regions_name_the_tags_of_the_labelling_interface(tasks):
    view = ElementTree.fromstring(label_studio_interface(CLASSES))
    image, labels = view.find('Image'), view.find('RectangleLabels')
    assert image.get('value') == '$image' and 'image' in tasks[0]['data']
    assert labels.get('toName') == image.get('name')
    assert [label.get('value') for label in labels] == list(CLASSES)
    for region in tasks[1]['predictions'][0]['result']:
        assert region['from_name'] == labels.get('name')
        assert region['to_name'] == image.get('name')
        assert set(region['value'][region['type']]) <= set(CLASSES)


def test_cvat_gets_corners_in_pixels_under_the_names_of_the_images(
    annotations,
):
    assert annotations.tag == 'annotations'
    assert annotations.findtext('version') == '1.1'
    empty, image = annotations.findall('image')
    assert empty.attrib == dict(
        id='0', name='empty.png', width='100', height='200'
    )
    assert (image.get('id'), image.get('name')) == ('1', 'x & y/cat.jpg')
    first, _ = image
    corners = [float(first.get(n)) for n in ('xtl', 'ytl', 'xbr', 'ybr')]
    assert corners == [10, 20, 50, 80] and len(empty) == 0
    assert first.get('label') == 'cat & co' and first.get('source') == 'auto'


def test_cvats_attributes_are_what_is_known_of_a_box(annotations):
    first, second = annotations.findall('image')[1]
    known = {a.get('name'): float(a.text) for a in first}
    assert known == dict(
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
    )
    assert [a.get('name') for a in second] == [
        'score',
        'class_score',
        'object_prob',
        'quality',
    ]


def test_labels_of_a_cvat_task_have_these_attributes(annotations):
    labels = json.loads(cvat_labels(CLASSES))
    for label, element in zip(labels, annotations.iterfind('.//label')):
        assert label['name'] == element.findtext('name')
        names = [attribute['name'] for attribute in label['attributes']]
        assert names == list(CVAT_ATTRIBUTES)
        assert names == [e.text for e in element.iterfind('.//attribute/name')]
    assert [label['name'] for label in labels] == list(CLASSES)
