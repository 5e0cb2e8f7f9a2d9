"""Checkpoints that survive a process being killed at any time."""

import os
import zipfile
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS


class AtomicLocalBackend(LocalBackend):
    """Local files that are whole or not there: written aside, then renamed."""

    def put(self, obj: bytes, filepath) -> None:
        """Write bytes to a file."""
        path = Path(filepath)
        aside = path.with_name(f'{path.name}.{os.getpid()}.partial')
        try:
            super().put(obj, aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


register_backend('atomic_local', AtomicLocalBackend, force=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """``CheckpointHook`` that never leaves a folder without a whole file.

    mmengine writes into the file itself, and with ``max_keep_ckpts`` removes
    the old checkpoint before it writes the new one.

    Args:
        *args, **kwargs: Arguments of ``CheckpointHook``. Files on other
            backends than the local disk are written by those.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if (
            self.backend_args is None
            and self.file_client_args is None
            and '://' not in str(self.out_dir)
        ):
            self.backend_args = dict(backend='atomic_local')

    def _save_checkpoint_with_step(
        self, runner, step: int, meta: dict
    ) -> None:
        keep, outdated = self.max_keep_ckpts, None
        if keep > 0 and list(self.keep_ckpt_ids)[-1:] != [step]:
            if len(self.keep_ckpt_ids) == keep:
                outdated = self.keep_ckpt_ids.popleft()
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info(
                'keep_ckpt_ids', list(self.keep_ckpt_ids)
            )
        self.max_keep_ckpts = -1  # removing comes after writing
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = keep
        if outdated is not None and is_main_process():
            path = self.file_backend.join_path(
                self.out_dir, self.filename_tmpl.format(outdated)
            )
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest whole checkpoint of a training, None without any.

    The file ``last_checkpoint`` names it, unless the process was killed while
    that was written, or the named file is gone or cut off; then the newest
    ``epoch_*.pth`` or ``iter_*.pth`` that is whole.
    """
    folder = Path(work_dir)
    candidates = sorted(
        [*folder.glob('epoch_*.pth'), *folder.glob('iter_*.pth')],
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    record = folder / 'last_checkpoint'
    if record.exists() and record.read_text().strip():
        candidates.insert(0, Path(record.read_text().strip()))
    # torch writes zip files; their directory comes last.
    whole = (
        path
        for path in candidates
        if path.is_file() and zipfile.is_zipfile(path)
    )
    return next(map(str, whole), None)
