"""Speed of pooling, refinement and training, as ratios measured in one run.

  python -m benchmarks pooling      against mmcv's pooling
  python -m benchmarks refinement   against the published loop
  python -m benchmarks detector     as a share of the detector's inference
  python -m benchmarks training     against the published step and the head's
                                    matrix products alone
  python -m benchmarks growth       with boxes, samples and sizes
  python -m benchmarks all

Contenders run in turn, so that all meet the same machine; a figure is the
median (and quartiles) of the ratio, round by round. Weights and feature maps
are random; boxes are injected, of sizes and numbers like COCO's. On a CPU set
OMP_NUM_THREADS to the number of free cores.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

import torch

from mmdet_ebm.files import write_json

from .detector import detector
from .growth import growth
from .pooling import pooling
from .refinement import refinement
from .scene import Run, Sizes
from .timing import Report, environment
from .training import training

SECTIONS: Mapping[str, Callable[[Run], None]] = dict(
    pooling=pooling,
    refinement=refinement,
    detector=detector,
    training=training,
    growth=growth,
)


def main(
    arguments: Sequence[str] | None = None, sizes: Sizes | None = None
) -> None:
    """Run what the command line asks for.

    Args:
        arguments: Instead of those of the process.
        sizes: Instead of those of COCO and R50-FPN.
    """
    args = parse_args(arguments)
    device = torch.device(args.device)
    info = environment(device)
    print(
        ', '.join(f'{key} {value}' for key, value in info.items()), flush=True
    )
    run = Run(device, args.rounds, sizes or Sizes(), Report())
    for name, section in SECTIONS.items():
        if args.what in (name, 'all'):
            section(run)
    if args.out:
        figures = dict(info, rounds=args.rounds, figures=run.report.rows)
        write_json(args.out, figures)


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('what', choices=[*SECTIONS, 'all'])
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu'
    )
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--out', type=Path, help='JSON file to write')
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error(f'--rounds must be at least 1, got {args.rounds}')
    return args


if __name__ == '__main__':
    main()
