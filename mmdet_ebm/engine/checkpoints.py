"""Checkpoints that remain usable if the process is killed."""

from pathlib import Path

from boltons.fileutils import atomic_save
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ..checkpoint_files import load_checkpoint_file


class AtomicLocalBackend(LocalBackend):
    """Writes local files that are complete or not there."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file; on an error the old file remains."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        # A process that was killed may have left its part of the file.
        with atomic_save(filepath, overwrite_part=True) as file:
            file.write(obj)


register_backend('atomic_local', AtomicLocalBackend, force=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """``CheckpointHook`` that keeps a complete checkpoint at all times.

    mmengine overwrites files in place. With ``max_keep_ckpts`` it removes the
    old checkpoint before it writes the new one.

    Args:
        *args, **kwargs: Arguments of ``CheckpointHook``. If they name another
            backend than the local disk, that backend writes the files.
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
        self.max_keep_ckpts = -1  # remove below, after writing
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
    """Find the newest whole checkpoint of a training; None without any.

    This is the one that the file ``last_checkpoint`` names. If that file or
    the checkpoint is missing or damaged, by a kill or by a disk, it is the
    newest whole one of ``epoch_*.pth`` and ``iter_*.pth``.

    Raises:
        ValueError: If there are checkpoints and all of them are damaged. A
            training that began anew would overwrite them.
    """
    folder = Path(work_dir)
    candidates = sorted(
        [*folder.glob('epoch_*.pth'), *folder.glob('iter_*.pth')],
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    written = len(candidates)
    record = folder / 'last_checkpoint'
    if record.is_file():
        name = record.read_text(errors='surrogateescape').strip()
        candidates.insert(0, Path(name))
    for path in candidates:
        if _is_whole(path):
            return str(path)
    if written:
        raise ValueError(
            f'none of the {written} checkpoints in {work_dir} can be read; '
            f'the newest is {candidates[-written]}. Bring back a whole one, '
            'or move them away to begin anew'
        )
    return None


def _is_whole(path: Path) -> bool:
    try:
        load_checkpoint_file(path)
    except (OSError, ValueError):
        return False
    return True
