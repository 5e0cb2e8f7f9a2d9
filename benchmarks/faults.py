"""Kill trainings and inference at every stage, and see that nothing is lost.

  python -m benchmarks.faults

Each case breaks a real run of tools/train.py or tools/infer.py, runs it again,
and compares what is left with that of an unbroken run: the same weights, bit
by bit, or the same predictions. It takes about ten minutes on one core. The
cases of a full disk need the right to mount a file system in memory, and are
left out without it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tabulate import tabulate

from mmdet_ebm.datasets import DigitsConfig, generate_digits
from mmdet_ebm.engine import latest_checkpoint

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'configs/digits/faster-rcnn_r18-half_nce-plus_digits.py'
# A module beside the config, which dies where BREAK says.
BREAKER = '''
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmdet_ebm.engine import fit_density_hook
from mmdet_ebm.engine.checkpoints import AtomicLocalBackend

STAGE = os.environ.get('BREAK')

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

@HOOKS.register_module()
class Breaker(Hook):
    """Kills its process, or one of its workers, at a stage."""

    priority = 'VERY_LOW'

    def before_train(self, runner):
        if STAGE == 'before the first step':
            die()
        if STAGE == 'during the fit of the density':
            fit_density_hook.fit_model = die

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter != 6:
            return
        if STAGE == 'within an epoch':
            die()
        if STAGE == 'a worker dies':
            for pid in open(f'/proc/self/task/{os.getpid()}/children'):
                for child in pid.split():
                    os.kill(int(child), signal.SIGKILL)
        if STAGE == 'while a checkpoint is written':
            def half(self, data, path):
                with open(str(path) + '.part', 'wb') as file:
                    file.write(data[: len(data) // 2])
                    file.flush()
                    die()
            AtomicLocalBackend.put = half

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if STAGE == 'during validation' and runner.iter > 6:
            die()
'''
KILLED = (
    'before the first step',
    'within an epoch',
    'while a checkpoint is written',
    'during validation',
    'during the fit of the density',
)


class Fault(Exception):
    """What was lost, or is different."""


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Fault(what)


class Bench:
    """Small data, a config and a random detector in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        number = dict(train=16, val=4, test=24)
        generate_digits(folder / 'digits', DigitsConfig(num_images=number))
        self.environment = {
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(folder), str(ROOT)]),
            'DIGITS_ROOT': str(folder / 'digits'),
            'OMP_NUM_THREADS': '1',
        }
        os.environ['DIGITS_ROOT'] = self.environment['DIGITS_ROOT']
        (folder / 'breaker.py').write_text(BREAKER)
        cfg = Config.fromfile(CONFIG)
        init_default_scope('mmdet')
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        torch.save(
            dict(state_dict=model.detector.state_dict()), folder / 'plain.pth'
        )
        # A detector of random weights finds something, and quickly.
        cfg.model.detector.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
        cfg.model.energy_model.loss.num_samples = 7
        cfg.load_from = str(folder / 'plain.pth')
        cfg.train_dataloader.update(batch_size=4, num_workers=1)
        cfg.train_cfg.update(max_epochs=3, val_interval=1)
        cfg.default_hooks.checkpoint.update(
            by_epoch=False, interval=2, max_keep_ckpts=2
        )
        cfg.custom_imports.imports.append('breaker')
        cfg.custom_hooks = [
            *cfg.get('custom_hooks', []),
            dict(type='Breaker'),
        ]
        cfg.randomness = dict(seed=5)
        self.config = folder / 'config.py'
        cfg.dump(self.config)

    def run(
        self, tool: str, *arguments: object, stage: str = ''
    ) -> subprocess.CompletedProcess:
        """A tool in a process of its own, broken at a stage."""
        return subprocess.run(
            self.command(tool, *arguments),
            env={**self.environment, 'BREAK': stage},
            capture_output=True,
            text=True,
            timeout=600,
        )

    def command(self, tool: str, *arguments: object) -> list[str]:
        script = str(ROOT / 'tools' / f'{tool}.py')
        return [sys.executable, script, *map(str, arguments)]

    def train(
        self, work_dir: Path, *more: str, stage: str = ''
    ) -> subprocess.CompletedProcess:
        return self.run(
            'train', self.config, '--work-dir', work_dir, *more, stage=stage
        )

    def infer(self, out: Path) -> subprocess.CompletedProcess:
        """A run over the test images."""
        return self.run('infer', *self._of_inference(out))

    def start_inference(self, out: Path, stderr: int) -> subprocess.Popen:
        """The same, without waiting for its end."""
        return subprocess.Popen(
            self.command('infer', *self._of_inference(out)),
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
        )

    def _of_inference(self, out: Path) -> list[object]:
        checkpoint = self.folder / 'whole/iter_12.pth'
        photos = self.folder / 'photos'
        return [
            *(self.config, checkpoint, photos),
            *('--out-dir', out, '--device', 'cpu'),
        ]


def require_success(done: subprocess.CompletedProcess, what: str) -> None:
    last = (done.stderr or done.stdout).strip().splitlines()[-1:]
    require(done.returncode == 0, f'{what} ended with {last}')


def require_same_weights(work_dir: Path, whole: Path) -> None:
    ours, theirs = (
        torch.load(latest_checkpoint(str(each)), weights_only=False)
        for each in (work_dir, whole)
    )
    require(ours['meta']['iter'] == theirs['meta']['iter'], 'other iterations')
    for name, value in theirs['state_dict'].items():
        require(torch.equal(ours['state_dict'][name], value), f'other {name}')


def resume(bench: Bench, work_dir: Path) -> None:
    """Go on, and compare with the unbroken run."""
    require_success(bench.train(work_dir, '--resume'), 'the second run')
    require_same_weights(work_dir, bench.folder / 'whole')


def killed_training(stage: str) -> Callable[[Bench, Path], str]:
    def case(bench: Bench, work_dir: Path) -> str:
        done = bench.train(work_dir, stage=stage)
        require(
            done.returncode == -signal.SIGKILL,
            f'it was not killed, but ended with {done.returncode}',
        )
        left = latest_checkpoint(str(work_dir))
        resume(bench, work_dir)
        return f'resumed from {Path(left).name}' if left else 'began anew'

    return case


def worker_dies(bench: Bench, work_dir: Path) -> str:
    done = bench.train(work_dir, stage='a worker dies')
    require(done.returncode not in (0, None), 'nothing was said')
    resume(bench, work_dir)
    return done.stderr.strip().splitlines()[-1][:60]


def clock_set_back(bench: Bench, work_dir: Path) -> str:
    """The newest checkpoint has the oldest date."""
    bench.train(work_dir, stage='within an epoch')
    newest = latest_checkpoint(str(work_dir))
    require(newest is not None, 'there is no checkpoint')
    os.utime(newest, (1, 1))
    require(latest_checkpoint(str(work_dir)) == newest, 'an older one is used')
    resume(bench, work_dir)
    return f'resumed from {Path(newest).name}'


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system in memory of so many bytes."""
    folder.mkdir()
    subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', folder],
        check=True,
        capture_output=True,
    )
    try:
        yield
    finally:
        subprocess.run(['umount', folder], check=False)


def enlarge(folder: Path) -> None:
    subprocess.run(['mount', '-o', 'remount,size=1g', folder], check=True)


def full_disk_of_training(bench: Bench, work_dir: Path) -> str:
    size = (bench.folder / 'whole/iter_12.pth').stat().st_size
    with small_disk(work_dir, int(2.5 * size)):
        done = bench.train(work_dir)
        require(done.returncode not in (0, None), 'it all went on the disk')
        left = latest_checkpoint(str(work_dir))
        require(left is not None, 'no checkpoint is whole')
        enlarge(work_dir)
        resume(bench, work_dir)
    return f'resumed from {Path(str(left)).name}'


def predictions(out: Path) -> dict[str, str]:
    """The text of each prediction by name."""
    return {p.name: p.read_text() for p in (out / 'preds').glob('*.json')}


def require_same_predictions(bench: Bench, out: Path) -> None:
    whole = bench.folder / 'predictions'
    require(predictions(out) == predictions(whole), 'other predictions')
    ours, theirs = (
        json.loads((each / 'predictions.json').read_text())
        for each in (out, whole)
    )
    require(ours == theirs, 'another predictions.json')
    lines = (out / 'images.jsonl').read_text().splitlines()
    require(len(set(lines)) == len(predictions(whole)), 'another ledger')


def finish(bench: Bench, out: Path) -> None:
    done = bench.infer(out)
    require_success(done, 'the last run')
    require_same_predictions(bench, out)


def killed_inference(bench: Bench, out: Path) -> str:
    """Several times, at other images, until all are done."""
    kills = 0
    for least in (1, 6, 13, 20):
        process = bench.start_inference(out, subprocess.DEVNULL)
        ledger = out / 'images.jsonl'
        while process.poll() is None:
            lines = ledger.read_bytes().count(b'\n') if ledger.exists() else 0
            if lines >= least:
                process.kill()
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    finish(bench, out)
    return f'{kills} kills'


def two_at_once(bench: Bench, out: Path) -> str:
    processes = [bench.start_inference(out, subprocess.PIPE) for _ in range(2)]
    codes = []
    for process in processes:
        _, errors = process.communicate(timeout=600)
        require('Traceback' not in errors, errors.strip()[-200:])
        codes.append(process.returncode)
    require(0 in codes, f'none of them finished: {codes}')
    finish(bench, out)
    return f'exit statuses {codes}'


def full_disk_of_inference(bench: Bench, out: Path) -> str:
    whole = bench.folder / 'predictions'
    size = sum(p.stat().st_size for p in whole.rglob('*') if p.is_file())
    with small_disk(out, size // 2):
        done = bench.infer(out)
        require(done.returncode not in (0, None), 'it all went on the disk')
        require('Traceback' not in done.stderr, 'a traceback')
        enlarge(out)
        finish(bench, out)
    return done.stderr.strip().splitlines()[-1][-60:]


CASES: dict[str, Callable[[Bench, Path], str]] = {
    **{
        f'training, killed {stage}': killed_training(stage) for stage in KILLED
    },
    'training, a worker dies': worker_dies,
    'training, the clock is set back': clock_set_back,
    'training, the disk is full': full_disk_of_training,
    'inference, killed': killed_inference,
    'inference, two at once': two_at_once,
    'inference, the disk is full': full_disk_of_inference,
}


def prepare(bench: Bench) -> None:
    """The unbroken training and inference."""
    photos = bench.folder / 'photos'
    photos.mkdir()
    for path in (bench.folder / 'digits/images').glob('test_*.png'):
        shutil.copy(path, photos)
    require_success(bench.train(bench.folder / 'whole'), 'the unbroken run')
    done = bench.infer(bench.folder / 'predictions')
    require_success(done, 'the unbroken inference')


def may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / 'disk', 1 << 20):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.faults',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--cases', nargs='+', help='only those with one of these words'
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; the exit status is 1 if something was lost."""
    args = parse_args(arguments)
    names = [
        name
        for name in CASES
        if not args.cases or any(word in name for word in args.cases)
    ]
    mounts = may_mount()
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        prepare(bench)
        for number, name in enumerate(names):
            if 'disk' in name and not mounts:
                rows.append([name, 'left out: may not mount'])
                continue
            try:
                outcome = CASES[name](bench, Path(folder) / f'case{number}')
                rows.append([name, f'nothing lost ({outcome})'])
            except (Fault, subprocess.TimeoutExpired) as fault:
                rows.append([name, f'FAILED: {fault}'])
                failed = True
            print(*rows[-1], sep=': ', flush=True)
    print()
    print(tabulate(rows, ['case', 'outcome'], tablefmt='github'))
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
