"""Running a function in processes of its own, several of which may talk."""

import os
import socket
import traceback

import pytest
import torch
import torch.multiprocessing as mp

from mmdet_ebm.core import langevin, noise
from mmdet_ebm.core.methods import score_matching


def run_forked(function, *arguments, processes=1):
    """Call ``function`` in forked processes; their exit codes.

    With several, mmengine's launcher finds the environment of torchrun.
    """
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    context = mp.get_context('fork')  # modules are loaded already
    children = [
        context.Process(
            target=_child, args=(function, arguments, rank, processes, port)
        )
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        if child.is_alive():
            child.kill()
            raise TimeoutError('a process hangs')
    return [child.exitcode for child in children]


def _child(function, arguments, rank, processes, port):
    torch.set_num_threads(1)
    if processes > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(processes),
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
        )
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        raise


def share_noise(monkeypatch=None):
    """From now on all objects of a process get the same noise.

    Then the noise of an object depends neither on the batch nor on the
    process that it is in. Importing ``shared_noise`` does the same. Without
    ``monkeypatch`` it stays so: for processes that end.
    """

    def draw(sampler, shape, generator, **options):
        row = sampler(
            (1, *shape[1:]),
            generator=torch.Generator(options['device']).manual_seed(7),
            **options,
        )
        return row.expand(shape).clone()

    for module in (noise, langevin, score_matching):
        (monkeypatch or pytest.MonkeyPatch()).setattr(module, 'draw', draw)
