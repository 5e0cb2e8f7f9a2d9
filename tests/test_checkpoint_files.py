"""Checkpoints are read, and nothing in them is run."""

import collections
import functools
import http.server
import io
import pickle
import threading

import mmengine.runner.checkpoint
import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader

from mmdet_ebm.checkpoint_files import load_checkpoint_file, restrict_loading

restrict_loading()


class Calls:
    """An object that is pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Built(Calls):
    """The same, with a state that the result is given."""

    def __init__(self, state, function, *arguments):
        super().__init__(function, *arguments)
        self.state = state

    def __reduce__(self):
        return *self.call, self.state


def saved(path, **content):
    torch.save(content, path)
    return path


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Where a server shows the files of the folder ``served``."""
    (tmp_path / 'served').mkdir()
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=tmp_path / 'served'
    )
    monkeypatch.setattr(handler.func, 'log_message', lambda *_: None)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_a_download_runs_nothing(address, tmp_path, monkeypatch):
    trace = tmp_path / 'trace'
    saved(tmp_path / 'served/evil.pth', bomb=Calls(open, str(trace), 'w'))
    url = f'{address}/evil.pth'
    with pytest.raises(ValueError, match='cannot be read as a checkpoint'):
        load_checkpoint_file(url)
    # A name that mmengine itself turns into an address.
    monkeypatch.setattr(
        mmengine.runner.checkpoint, 'get_torchvision_models', {'m': url}.copy
    )
    for name in (url, 'torchvision://m'):
        with pytest.raises(pickle.UnpicklingError):
            CheckpointLoader.load_checkpoint(name)
    assert not trace.exists()


def test_a_download_gives_its_weights(address, tmp_path):
    saved(tmp_path / 'served/good.pth', state_dict=dict(w=torch.ones(2)))
    loaded = load_checkpoint_file(f'{address}/good.pth')
    assert loaded['state_dict']['w'].tolist() == [1, 1]


def test_a_local_file_runs_nothing_whatever_torch_is_told(
    tmp_path, monkeypatch
):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    trace = tmp_path / 'trace'
    path = saved(tmp_path / 'evil.pth', bomb=Calls(open, str(trace), 'w'))
    with pytest.raises(ValueError, match='cannot be read as a checkpoint'):
        load_checkpoint_file(path)
    assert not trace.exists()


def test_resuming_does_not_run_the_config_that_a_checkpoint_holds(tmp_path):
    """mmengine's resume parses meta['config'] as Python."""
    trace = tmp_path / 'trace'
    path = saved(
        tmp_path / 'evil.pth',
        state_dict={},
        meta=dict(epoch=1, iter=1, config=f"open({str(trace)!r}, 'w')"),
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
    )
    runner = Runner(
        torch.nn.Identity(),
        str(tmp_path / 'work'),
        train_dataloader=torch.utils.data.DataLoader([0]),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        experiment_name=tmp_path.name,
    )
    runner.resume(str(path))
    assert runner.iter == 1 and not trace.exists()


def test_history_and_numbers_of_numpy_come_back_as_they_were(tmp_path):
    content = dict(
        history=HistoryBuffer([1.0, 2.0], [1, 1]),
        number=np.float32(0.1),
        array=np.arange(6, dtype='>i4').reshape(2, 3),
        flags=np.array([True, False]),
    )
    again = saved(tmp_path / 'a.pth', **content)
    for _ in range(2):  # what was read can be written and read again
        loaded = torch.load(again, weights_only=True)
        again = saved(tmp_path / 'b.pth', **loaded)
    assert loaded['history'].mean() == 1.5
    assert type(loaded['history']) is HistoryBuffer
    assert type(loaded['history']._log_history) is np.ndarray
    assert loaded['number'] == content['number']
    assert type(loaded['number']) is np.float32
    for name in ('array', 'flags'):
        np.testing.assert_array_equal(loaded[name], content[name])
        assert loaded[name].dtype.str[1:] == content[name].dtype.str[1:]
        # Others can read it, who do not know this package.
        assert b'mmdet_ebm' not in pickle.dumps(loaded[name])


def test_names_of_numpy_1_are_known():
    data = pickle.dumps(np.float64(0.5), 2).replace(b'._core.', b'.core.')
    assert torch._weights_only_unpickler.load(io.BytesIO(data)) == 0.5


# The state of a dtype with a field of objects.
OBJECTS = (3, '|', None, ('x',), {'x': (np.dtype('O'), 0)}, 8, 8, 63)


@pytest.mark.parametrize(
    'payload',
    [
        np.array([None]),
        np.array(['a']),
        np.zeros(1, 'f8,O'),
        Calls(np.dtype, 'O'),
        Calls(np.dtype, 'f8,O'),
        Calls(np.dtype, '(100000000,)f8'),
        Calls(np.ndarray, (3,), 'O'),
        Calls(np._core.multiarray.scalar, 'O', b''),
        Calls(getattr, HistoryBuffer, '__init__'),
        Built(OBJECTS, np.dtype, 'f8', False, True),  # numpy takes this
        Built(dict(_log_history=1), HistoryBuffer),
    ],
)
def test_what_is_no_plain_number_is_refused(tmp_path, payload):
    path = saved(tmp_path / 'bad.pth', payload=payload)
    with pytest.raises(ValueError, match='cannot be read as') as caught:
        load_checkpoint_file(path)
    # torch's advice is to read the file without these limits.
    assert 'weights_only' not in str(caught.value)
    assert 'add_safe_globals' not in str(caught.value)


def test_a_history_brings_no_functions(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    state = dict(history.__getstate__(), statistics_methods=dict(mean=set))
    path = saved(tmp_path / 'a.pth', h=Built(state, HistoryBuffer))
    loaded = load_checkpoint_file(path)['h']
    assert loaded.statistics('mean') == 2


def with_versions(versions):
    """A dictionary of weights with what torch notes beside it."""
    weights = collections.OrderedDict(w=torch.ones(1))
    weights._metadata = versions
    return weights


@pytest.mark.parametrize(
    'content',
    [
        None,
        [1],
        torch.ones(2),
        {1: torch.ones(2)},
        dict(state_dict=None),
        dict(state_dict=[1]),
        dict(state_dict={1: torch.ones(2)}),
        dict(state_dict=with_versions(5)),
        with_versions({'': 5}),
        dict(meta=None),
        dict(meta=[1]),
        dict(meta=dict(dataset_meta=None)),
        dict(meta=dict(dataset_meta={1: 2})),
        dict(meta=dict(dataset_meta=dict(classes=3))),
        dict(meta=dict(dataset_meta=dict(Classes=(None, None)))),
        dict(meta=dict(CLASSES='abc')),
    ],
    ids=str,
)
def test_what_has_not_the_form_of_a_checkpoint_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='a.pth is not a checkpoint: '):
        load_checkpoint_file(tmp_path / 'a.pth')


@pytest.mark.parametrize(
    'content', [b'', b'text', b'\x80', bytes(5000), b'PK\5\6' + bytes(18)]
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / 'a.pth').write_bytes(content)
    with pytest.raises(ValueError, match='cannot be read as') as caught:
        load_checkpoint_file(tmp_path / 'a.pth')
    assert 'weights_only=False' not in str(caught.value)


def test_flipped_bits_are_noticed(tmp_path):
    """torch itself reads other numbers and says nothing."""
    path = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=dict(weight=torch.full((100,), 7.0))), path)
    content = path.read_bytes()
    seven = np.float32(7).tobytes()
    path.write_bytes(content.replace(seven, np.float32(8).tobytes(), 1))
    read = torch.load(path, weights_only=True)['state_dict']['weight']
    assert read[0] == 8
    with pytest.raises(ValueError, match='damaged: .*checksum'):
        load_checkpoint_file(path)


def test_files_of_old_versions_of_torch_are_read(tmp_path):
    path = tmp_path / 'old.pth'
    weights = dict(state_dict=dict(weight=torch.ones(3)))
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    assert load_checkpoint_file(path)['state_dict']['weight'].sum() == 3
