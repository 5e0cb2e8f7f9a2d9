"""What does not go together is refused at the start, with advice."""

import json
import re

import pytest
import torch

from mmdet_ebm.apis import build_model

from ..helpers import run_tool, save_checkpoint, write_image
from .test_pipeline import shrunk_config

PLAIN = 'digits/faster-rcnn_r18-half_digits.py'
ENERGY = 'digits/faster-rcnn_r18-half_nce-plus_digits.py'


@pytest.fixture(scope='module')
def files(digits, tmp_path_factory):
    """Configs and untrained checkpoints that fit."""
    patch = pytest.MonkeyPatch()
    patch.setenv('DIGITS_ROOT', str(digits))
    folder = tmp_path_factory.mktemp('files')
    plain = shrunk_config(PLAIN, folder)
    energy = shrunk_config(ENERGY, folder)
    yield dict(
        plain=plain,
        energy=energy,
        plain_checkpoint=save_checkpoint(plain, folder / 'plain.pth'),
        checkpoint=save_checkpoint(energy, folder / 'energy.pth'),
    )
    patch.undo()


@pytest.fixture
def complaint(files, monkeypatch, tmp_path):
    """The message with which a tool refuses."""

    def run(tool, config, checkpoint, *options):
        arguments = {
            'train': (
                '--work-dir',
                tmp_path,
                '--cfg-options',
                f'load_from={checkpoint}',
                *options,
            ),
            'test': (
                checkpoint,
                '--work-dir',
                tmp_path,
                '--cfg-options',
                'env_cfg.cudnn_benchmark=False',
                *options,
            ),
            'infer': (
                checkpoint,
                tmp_path,
                '--cfg-options',
                'env_cfg.cudnn_benchmark=False',
                *options,
            ),
        }[tool]
        with pytest.raises(SystemExit) as caught:
            run_tool(monkeypatch, tool, config, *arguments)
        message = caught.value.code
        assert isinstance(message, str) and message.startswith('error: ')
        return message

    return run


ALL = ('train', 'test', 'infer')


def test_inference_without_an_energy_model(files, complaint):
    message = complaint('infer', files['plain'], files['plain_checkpoint'])
    assert 'no energy model' in message and 'docs/' in message


@pytest.mark.parametrize('tool', ['test', 'infer'])
def test_plain_checkpoint_with_an_energy_config(files, complaint, tool):
    """Random energies would pass for a bad method."""
    message = complaint(tool, files['energy'], files['plain_checkpoint'])
    assert 'no weights of an energy model' in message
    assert 'ascent=False' in message


@pytest.mark.parametrize('tool', ALL)
def test_checkpoint_of_other_classes(files, complaint, tool):
    """A frozen detector would train on with a random box head."""
    message = complaint(
        tool,
        files['energy'],
        files['checkpoint'],
        'model.detector.roi_head.bbox_head.num_classes=3',
        'model.energy_model.head.num_classes=3',
    )
    assert 'trained for 10 classes (0, 1, 2, 3, 4, ...)' in message
    assert 'num_classes=3' in message and 'set num_classes=10' in message


@pytest.mark.parametrize('tool', ALL)
def test_checkpoint_of_another_detector(files, complaint, tool):
    message = complaint(
        tool,
        files['energy'],
        files['checkpoint'],
        'model.detector.roi_head.bbox_head.fc_out_channels=24',
    )
    assert 'not of the model of this config' in message
    assert 'fc_cls' in message or 'shared_fcs' in message


@pytest.mark.parametrize('tool', ALL)
@pytest.mark.parametrize(
    'content, expected',
    [(None, 'no checkpoint at'), ('text', 'cannot be read as a checkpoint')],
)
def test_checkpoint_that_is_none(
    files, complaint, tool, tmp_path, content, expected
):
    path = tmp_path / 'none.pth'
    if content:
        path.write_text(content)
    assert expected in complaint(tool, files['energy'], path)


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_data_set_of_other_classes(files, complaint, tool):
    loader = f'{tool}_dataloader.dataset'
    message = complaint(
        tool,
        files['energy'],
        files['checkpoint'],
        f'{loader}.metainfo.classes=(one,two)',
    )
    assert f'{loader} has 2 classes (one, two)' in message
    assert 'num_classes=10' in message and 'metainfo' in message


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_class_names_that_the_annotations_do_not_have(
    files, complaint, tool, digits, tmp_path
):
    """mmdet leaves their objects out without a word."""
    annotations = json.loads((digits / f'annotations/{tool}.json').read_text())
    for category in annotations['categories']:
        category['name'] = f'digit {category["name"]}'
    file = tmp_path / 'renamed.json'
    file.write_text(json.dumps(annotations))
    message = complaint(
        tool,
        files['energy'],
        files['checkpoint'],
        f'{tool}_dataloader.dataset.ann_file={file}',
    )
    assert 'renamed.json does not have: 0, 1, 2, 3, 4, ...' in message
    assert 'has digit 0, digit 1' in message


@pytest.mark.parametrize(
    'tool, key, name',
    [
        ('train', 'train_dataloader.dataset.ann_file', 'annotation file'),
        ('train', 'val_evaluator.ann_file', 'annotation file'),
        ('test', 'test_dataloader.dataset.ann_file', 'annotation file'),
        ('test', 'test_evaluator.ann_file', 'annotation file'),
        ('test', 'test_dataloader.dataset.data_prefix.img', 'image folder'),
    ],
)
def test_missing_data(files, complaint, tool, key, name):
    message = complaint(
        tool, files['energy'], files['checkpoint'], f'{key}=gone'
    )
    assert f'no {name}' in message and 'gone' in message
    assert key.replace('.img', '') in message and 'DIGITS_ROOT' in message


@pytest.mark.parametrize('tool', ['train', 'infer'])
@pytest.mark.parametrize(
    'option, expected',
    [
        ('head.in_channels=16', 'in_channels=8 and .*in_channels is 16'),
        (
            'featmap_strides=(4,8,16,32,64,128)',
            r'strides \(4, 8, 16, 32\) and .*128\)',
        ),
        ('featmap_strides=(8,16,32,64)', r'strides \(4, 8, 16, 32\)'),
    ],
)
def test_levels_that_the_detector_does_not_have(
    files, complaint, tool, option, expected
):
    message = complaint(
        tool,
        files['energy'],
        files['checkpoint'],
        f'model.energy_model.{option}',
    )
    assert re.search(expected, message)
    assert 'eave it out' in message


@pytest.mark.parametrize('tool', ALL)
def test_types_that_were_not_imported(files, complaint, tool):
    message = complaint(
        tool,
        files['energy'],
        files['checkpoint'],
        'model.type=EnergyDetectr',
    )
    assert 'no model type EnergyDetectr' in message
    assert 'custom_imports' in message


@pytest.mark.parametrize('tool', ALL)
def test_config_that_does_not_exist(files, complaint, tool, tmp_path):
    assert 'none.py' in complaint(
        tool, tmp_path / 'none.py', files['checkpoint']
    )


def test_a_first_layer_that_is_stored_flat_is_taken(files, tmp_path):
    """As heads were stored before it got the shape of the pooled features."""
    loaded = torch.load(files['checkpoint'], weights_only=True)
    key = 'energy_model.head.shared_fcs.0.weight'
    weight = loaded['state_dict'][key]
    loaded['state_dict'][key] = weight.flatten(1)
    torch.save(loaded, tmp_path / 'flat.pth')
    model = build_model(files['energy'], tmp_path / 'flat.pth', 'cpu')
    assert torch.equal(model.state_dict()[key], weight)


def test_an_out_dir_that_is_a_file(files, monkeypatch, tmp_path):
    (tmp_path / 'out').touch()
    write_image(tmp_path / 'x.png')
    with pytest.raises(SystemExit, match='error: .*File exists.*out'):
        run_tool(
            monkeypatch,
            'infer',
            files['energy'],
            files['checkpoint'],
            tmp_path / 'x.png',
            '--out-dir',
            tmp_path / 'out',
        )


@pytest.mark.parametrize('option', ['--resume', '--cfg-options'])
def test_resuming_what_is_no_training(files, monkeypatch, tmp_path, option):
    values = [files['checkpoint']]
    if option == '--cfg-options':
        values = ['resume=True', f'load_from={values[0]}']
    with pytest.raises(SystemExit, match='error: .*energy.pth cannot be res'):
        run_tool(
            monkeypatch,
            'train',
            files['energy'],
            '--work-dir',
            tmp_path,
            option,
            *values,
        )


def test_fitting_on_a_split_that_is_not_there(files, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match='no val_dataloader.*other split'):
        run_tool(
            monkeypatch,
            'fit_density',
            files['energy'],
            files['checkpoint'],
            '--out',
            tmp_path / 'new/fitted.pth',
            '--cfg-options',
            'val_dataloader=None',
            'val_evaluator=None',
            'val_cfg=None',
            'model.energy_model.density=fitted',
        )
    assert not (tmp_path / 'new').exists()
