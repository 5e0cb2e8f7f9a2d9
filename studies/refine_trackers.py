"""Refine trackers with energy models of several seeds, and sum it up.

For each checkpoint and tracker: the density is fitted on the held-out tracks
and the boxes of all test sequences are refined. Then the tracker of our own
runs over them (--own). What is done is not repeated.

The boxes of the trackers lie in BOXES/TRACKER/NAME.txt, of the held-out tracks
as well as of the test sequences (tools/run_tracker.py). Gains are means over
the checkpoints, with 95 % bootstrap intervals over the sequences. The row
"same centres" has the tracker's centres with the sizes of the refined boxes.

  python -m studies.refine_trackers CONFIG seed0.pth seed1.pth \\
      --data data/tracking --boxes boxes --out work_dirs/study/tracking
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from mmengine.config import Config
from tqdm import tqdm

from mmdet_ebm.apis.checks import exit_with_message
from mmdet_ebm.apis.tracking import (
    FIGURES,
    build_tracking_model,
    read_tracker,
)
from mmdet_ebm.evaluation import fit_tracker
from mmdet_ebm.files import write_json
from mmdet_ebm.models.trackers import TrackRefiner
from mmdet_ebm.tracking import (
    Track,
    bootstrap_interval,
    evaluate_boxes,
    find_tracks,
    read_boxes,
    read_frame,
    write_boxes,
)

from .files import table

TRACKERS = ('CSRT', 'VitTrack', 'NanoTrack')
OWN = 'EnergySOT'


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.refine_trackers',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config of the energy model')
    parser.add_argument('checkpoints', nargs='+', help='one for each seed')
    parser.add_argument(
        '--data',
        type=Path,
        required=True,
        help='folder with train/ and test/, in the layout of OTB',
    )
    parser.add_argument(
        '--boxes', type=Path, required=True, help="the trackers' boxes"
    )
    parser.add_argument(
        '--trackers', nargs='+', default=list(TRACKERS), metavar='NAME'
    )
    parser.add_argument(
        '--own', action='store_true', help=f'also run {OWN}, the own tracker'
    )
    parser.add_argument(
        '--out', type=Path, required=True, help='folder for boxes and figures'
    )
    return parser.parse_args(arguments)


def refine_once(
    args: argparse.Namespace, cfg: Config, seed: int, tracker: str
) -> None:
    """Fit and refine, unless it is done."""
    folder = args.out / f'seed{seed}' / tracker
    if (folder / 'facts.json').exists():
        return
    model = build_tracking_model(cfg, args.checkpoints[seed])
    held_out = find_tracks(args.data / 'train', 'otb', cfg.held_out)
    tracks = find_tracks(args.data / 'test', 'otb')
    source = args.boxes / tracker
    fit = fit_tracker(model, held_out, read_tracker(source, held_out))
    boxes = read_tracker(source, tracks)
    refiner, seconds = TrackRefiner(model), []
    for track in tqdm(tracks, f'seed {seed}, {tracker}', disable=None):
        refined = refiner.track(track, boxes[track.name])
        _write(folder, track, refined.boxes)
        seconds += refined.seconds[1:].tolist()
    facts = dict(fit=asdict(fit), seconds_per_frame=float(np.median(seconds)))
    write_json(folder / 'facts.json', facts)


def track_once(args: argparse.Namespace, cfg: Config, seed: int) -> None:
    """Run the tracker of our own, unless it is done."""
    folder = args.out / f'seed{seed}' / OWN
    if (folder / 'facts.json').exists():
        return
    cfg = cfg.copy()
    cfg.model.type = OWN
    model = build_tracking_model(cfg, args.checkpoints[seed])
    tracks = find_tracks(args.data / 'test', 'otb')
    for track in tqdm(tracks, f'seed {seed}, {OWN}', disable=None):
        boxes = [track.boxes[0]]
        for number, path in enumerate(track.frames):
            frame = read_frame(path)
            if frame is None:
                raise ValueError(f'{path} is damaged')
            if number == 0:
                model.init(frame, track.boxes[0])
            else:
                boxes.append(model.track(frame).box)
        _write(folder, track, np.array(boxes))
    write_json(folder / 'facts.json', {})


def _write(folder: Path, track: Track, boxes: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_boxes(folder / f'{track.name}.txt', boxes, 1)


def with_centres(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Boxes (T, 4) of the same size, around the centres of others (T, 4)."""
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    centre = (others[:, :2] + others[:, 2:]) / 2
    return np.concatenate([centre - half, centre + half], 1)


def summary_of(args: argparse.Namespace) -> dict:
    """Figures of all trackers, before and after."""
    tracks = find_tracks(args.data / 'test', 'otb')

    def figures(boxes: Callable[[Track], np.ndarray]) -> np.ndarray:
        """(sequences, figures)"""
        return np.array(
            [
                [
                    getattr(evaluate_boxes(boxes(t), t.boxes), n)
                    for n in FIGURES
                ]
                for t in tracks
            ]
        )

    def of(folder: Path) -> Callable[[Track], np.ndarray]:
        return lambda track: read_boxes(folder / f'{track.name}.txt', 1)

    seeds = range(len(args.checkpoints))
    before = {name: figures(of(args.boxes / name)) for name in args.trackers}
    rows = {}
    for name, old in before.items():
        folders = [args.out / f'seed{seed}' / name for seed in seeds]
        refined = [figures(of(folder)) for folder in folders]
        resized = [
            figures(_with_centres_of(of(args.boxes / name), of(folder)))
            for folder in folders
        ]
        facts = [json.loads((f / 'facts.json').read_text()) for f in folders]
        rows[name] = dict(_row(old, refined), held_out=facts)
        rows[f'{name}, same centres'] = _row(old, resized)
    if args.own:
        after = [figures(of(args.out / f'seed{s}' / OWN)) for s in seeds]
        for name, old in before.items():
            rows[f'{OWN} instead of {name}'] = _row(old, after)
    return dict(
        sequences=[track.name for track in tracks],
        frames=sum(len(track.frames) for track in tracks),
        figures=list(FIGURES),
        rows=rows,
    )


def _with_centres_of(
    centres: Callable[[Track], np.ndarray],
    sizes: Callable[[Track], np.ndarray],
) -> Callable[[Track], np.ndarray]:
    return lambda track: with_centres(sizes(track), centres(track))


def _row(before: np.ndarray, after: Sequence[np.ndarray]) -> dict:
    """Means, and gains with intervals.

    Args:
        before: (sequences, figures).
        after: The same of each seed.
    """
    gains = np.mean(after, 0) - before
    return dict(
        before=before.mean(0).tolist(),
        after=[each.mean(0).tolist() for each in after],
        gain=gains.mean(0).tolist(),
        interval=[bootstrap_interval(column) for column in gains.T],
        by_sequence=dict(
            before=before.tolist(), after=np.mean(after, 0).tolist()
        ),
    )


def to_markdown(summary: Mapping) -> str:
    """AUC and precision in per cent, with the gains of AUC."""

    def percent(value: float) -> str:
        return f'{100 * value:.1f}'

    lines = []
    for name, row in summary['rows'].items():
        auc = [each[0] for each in row['after']]
        low, high = (100 * value for value in row['interval'][0])
        lines.append(
            [
                name,
                percent(row['before'][0]),
                f'{100 * np.mean(auc):.1f} '
                f'({percent(min(auc))} to {percent(max(auc))})',
                f'{100 * row["gain"][0]:+.2f} [{low:+.2f}, {high:+.2f}]',
                percent(row['before'][1]),
                percent(float(np.mean([each[1] for each in row['after']]))),
            ]
        )
    heads = ['boxes', 'AUC', 'after', 'gain', 'P20', 'after']
    return table(lines, heads)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``arguments``, ask for."""
    args = parse_args(arguments)
    with exit_with_message():
        cfg = Config.fromfile(args.config)
        for seed in range(len(args.checkpoints)):
            for tracker in args.trackers:
                refine_once(args, cfg, seed, tracker)
            if args.own:
                track_once(args, cfg, seed)
        summary = summary_of(args)
    print(to_markdown(summary))
    write_json(args.out / 'summary.json', summary)


if __name__ == '__main__':
    main()
