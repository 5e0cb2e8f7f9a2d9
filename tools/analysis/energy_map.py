"""See the log-density around detections, and the way that the ascent took.

For each chosen detection of an image, OUT_DIR/NAME_N.png shows the box before
and after on the image, with bands of one standard deviation around its sides,
and maps of the normalised log-density over shifts of the centre and over
sizes, with lines where a Gaussian would be 1, 2 and 3 deviations from its top;
with --gif, OUT_DIR/NAME_N.gif shows the ascent step by step.
"""

import argparse
from pathlib import Path

import mmdet_ebm.process_settings  # noqa: F401

# isort: split

from mmdet_ebm.apis import build_model, read_image
from mmdet_ebm.apis.checks import exit_with_message, require_energy_model
from mmdet_ebm.engine.config_options import add_model_arguments
from mmdet_ebm.explorer.look import detect
from mmdet_ebm.models.energy_map import compute_energy_map
from mmdet_ebm.visualization import EnergyMapFigure


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument('image', help='image file')
    parser.add_argument(
        '--detection',
        type=int,
        nargs='+',
        default=[0],
        metavar='N',
        help='which detections, counted from 0 by falling score (default: 0)',
    )
    parser.add_argument(
        '--out-dir',
        type=Path,
        default=Path('energy_maps'),
        help='folder for the pictures (default: energy_maps)',
    )
    parser.add_argument(
        '--gif',
        action='store_true',
        help='also write an animated GIF of the ascent',
    )
    parser.add_argument(
        '--resolution',
        type=int,
        default=41,
        help='points along the side of a map (default: 41)',
    )
    args = parser.parse_args()
    if args.resolution < 2:
        parser.error(f'--resolution must be at least 2, got {args.resolution}')
    if not Path(args.image).is_file():
        parser.error(f'no image at {args.image}')
    return args


def draw(args: argparse.Namespace) -> None:
    """Find the detections and write their pictures."""
    model = build_model(
        args.config, args.checkpoint, args.device, args.cfg_options
    )
    require_energy_model(model)
    image = read_image(Path(args.image))
    found, sample = detect(model, image)
    detections = found.instances[0]
    missing = [n for n in args.detection if not 0 <= n < len(detections)]
    if missing:
        raise ValueError(
            f'no detection {missing[0]}: the image has '
            f'{len(detections)} (counted from 0)'
        )
    args.out_dir.mkdir(parents=True, exist_ok=True)
    order = detections.scores.argsort(descending=True, stable=True)
    for number in args.detection:
        row = int(order[number])
        energy = compute_energy_map(
            model.energy_model,
            found,
            0,
            row,
            sample.metainfo.get('scale_factor', (1.0, 1.0)),
            args.resolution,
        )
        name = model.dataset_meta['classes'][int(detections.labels[row])]
        figure = EnergyMapFigure(
            image[..., ::-1],
            energy,
            f'class {name}, score {float(detections.scores[row]):.2f};',
        )
        out = args.out_dir / f'{Path(args.image).stem}_{number}.png'
        figure.save(out)
        print(out)
        if args.gif:
            figure.animate(out.with_suffix('.gif'))
            print(out.with_suffix('.gif'))


def main() -> None:
    args = parse_args()
    with exit_with_message():
        draw(args)


if __name__ == '__main__':
    main()
