"""How many held-out images does the fit of the density need?

The density of each checkpoint is fitted on a few images of val, chosen by
chance, several times for each number of images. Each fit refines the whole
test split. A number that val does not have takes all of val, once.

  python -m studies.fit_on_few CONFIG CHECKPOINT... --images 5 10 20 --draws 3
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from torch.utils.data import DataLoader

from mmdet_ebm.apis import build_model
from mmdet_ebm.apis.checks import exit_with_message, require_energy_model
from mmdet_ebm.evaluation import MatchedDetections
from mmdet_ebm.evaluation.bootstrap import METRICS
from mmdet_ebm.evaluation.placed_quality import fit_model
from mmdet_ebm.evaluation.stages import used
from mmdet_ebm.models import EnergyDetector

from .compare_stages import STAGES, detect
from .files import config_name, table, write_with_table


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.fit_on_few',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', type=Path, help='energy config')
    parser.add_argument(
        'checkpoints', type=Path, nargs='+', help='trained energy models'
    )
    parser.add_argument(
        '--images',
        type=int,
        nargs='+',
        default=[5, 10, 20],
        metavar='N',
        help='to fit on (default: 5 10 20)',
    )
    parser.add_argument(
        '--draws',
        type=int,
        default=3,
        help='choices of so many images (default: 3)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/fit_on_few.json'),
        help='JSON file of the figures; Markdown goes beside it',
    )
    args = parser.parse_args(arguments)
    if min(*args.images, args.draws) < 1:
        parser.error('expected --images and --draws of 1 or more')
    return args


def few_images(
    cfg: Config, number: int, num_draws: int
) -> Iterator[DataLoader]:
    """Loaders of so many images of val each, or one of all of them."""
    whole = Runner.build_dataloader(cfg.val_dataloader)
    num_images = len(whole.dataset)
    if number >= num_images:
        yield whole
        return
    for draw in range(num_draws):
        chosen = np.random.default_rng(1000 * number + draw).choice(
            num_images, number, replace=False
        )
        config = copy.deepcopy(cfg.val_dataloader)
        config.dataset.indices = np.sort(chosen).tolist()
        yield Runner.build_dataloader(config)


def fit(model: EnergyDetector, few: DataLoader) -> str:
    """What the fit says; without a match the numbers are cautious."""
    model.energy_model.density.forget()
    try:
        return fit_model(model, few)
    except ValueError as error:
        return str(error)


def run(args: argparse.Namespace) -> dict:
    """The figures."""
    cfg = Config.fromfile(args.config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    test = Runner.build_dataloader(cfg.test_dataloader)
    truth = COCO(cfg.test_evaluator.ann_file)
    few = {n: list(few_images(cfg, n, args.draws)) for n in args.images}
    figures: dict = dict(
        config=config_name(args.config), split='test', plain=[], fits=[]
    )

    def measured(model: EnergyDetector, description: str) -> dict[str, float]:
        found, _ = detect(model, test, description)
        return MatchedDetections(truth, found).average_precision()

    for index, checkpoint in enumerate(args.checkpoints):
        model = build_model(args.config, checkpoint)
        require_energy_model(model)
        with used(model, STAGES['plain']):
            figures['plain'].append(measured(model, 'plain'))
        for number, loaders in few.items():
            for draw, loader in enumerate(loaders):
                text = fit(model, loader)
                figures['fits'].append(
                    dict(
                        images=number,
                        checkpoint=index,
                        draw=draw,
                        fit=text,
                        density=model.energy_model.density.numbers(),
                        refined=measured(model, 'refined'),
                    )
                )
                write_with_table(figures, args.out, to_markdown)
    return figures


def to_markdown(figures: dict) -> str:
    """Refined minus plain by number of images, in points."""
    rows = []
    for number in sorted({fit['images'] for fit in figures['fits']}):
        of_number = [f for f in figures['fits'] if f['images'] == number]
        gains = {
            metric: [
                100
                * (
                    f['refined'][metric]
                    - figures['plain'][f['checkpoint']][metric]
                )
                for f in of_number
            ]
            for metric in METRICS
        }
        cells = [
            f'{np.mean(gains[m]):+.1f} ({min(gains[m]):+.1f} to '
            f'{max(gains[m]):+.1f})'
            for m in METRICS
        ]
        rows.append([number, len(of_number), *cells])
    return table(rows, ['images', 'fits', *METRICS])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``arguments``, ask for."""
    args = parse_args(arguments)
    with exit_with_message():
        print(to_markdown(run(args)))


if __name__ == '__main__':
    main()
