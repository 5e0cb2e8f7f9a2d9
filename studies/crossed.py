"""Refinement on more images than a test split holds, by training crosswise.

AP90 of a few hundred images with many classes is mostly chance. So the images
of train and test are dealt into parts. For each part an energy model trains on
all the others, its density is fitted on val, and it refines this part. All
parts together are compared, as the mean over the classes and without classes.
The detector must know none of the images.

  python -m studies.crossed CONFIG plain.pth --seeds 0 1 2
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO

from mmdet_ebm.apis import build_model
from mmdet_ebm.apis.checks import exit_with_message
from mmdet_ebm.evaluation import MatchedDetections
from mmdet_ebm.evaluation.coco_matching import part_of
from mmdet_ebm.files import write_json

from .compare_stages import STAGES, detect_stages, summary, to_markdown
from .files import config_name, read_annotations, train_once

_STAGES = ('plain', 'voted', 'clusters', 'placed', 'refined')


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m studies.crossed',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', type=Path, help='energy config')
    parser.add_argument('plain', type=Path, help='checkpoint of the detector')
    parser.add_argument(
        '--parts', type=int, default=2, help='energy models (default: 2)'
    )
    parser.add_argument(
        '--epochs',
        type=int,
        help='of each training (default: those of the config)',
    )
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0],
        help='of the energy models; each is a round of its own (default: 0)',
    )
    parser.add_argument(
        '--resamples',
        type=int,
        default=1000,
        help='bootstrap resamples (default: 1000)',
    )
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/crossed')
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='JSON file of the figures (default: WORK_DIR/crossed.json)',
    )
    args = parser.parse_args(arguments)
    if args.parts < 2:
        parser.error(f'expected --parts of at least 2, got {args.parts}')
    return args


def joined(contents: Sequence[dict]) -> dict:
    """COCO annotations of several files with the same categories in one.

    Raises:
        ValueError: If two files have an image of the same id.
    """
    ids = [image['id'] for each in contents for image in each['images']]
    if len(set(ids)) < len(ids):
        raise ValueError(
            'expected each image in one split only, but '
            f'{len(ids) - len(set(ids))} ids are in several'
        )
    merged = dict(contents[0], images=[], annotations=[])
    for content in contents:
        merged['images'] += content['images']
        for each in content['annotations']:
            new = dict(each, id=len(merged['annotations']) + 1)
            merged['annotations'].append(new)
    return merged


def deal(content: dict, parts: int) -> list[tuple[dict, dict]]:
    """For each part, the annotations of the others and its own.

    Every ``parts``-th image in the order of the ids is of the same part.
    """
    ids = sorted(image['id'] for image in content['images'])
    return [
        (
            part_of(content, set(ids) - set(ids[i::parts])),
            part_of(content, ids[i::parts]),
        )
        for i in range(parts)
    ]


def _annotations(cfg: Config) -> dict:
    """Of train and test."""
    loaders = (cfg.train_dataloader, cfg.test_dataloader)
    return joined([read_annotations(each.dataset) for each in loaders])


def write_configs(args: argparse.Namespace) -> tuple[Path, list[Path]]:
    """The file of all annotations, and a config for each part."""
    folder = args.work_dir.resolve()
    content = _annotations(Config.fromfile(args.config))
    whole = folder / 'all.json'
    write_json(whole, content)
    configs = []
    for i, (others, own) in enumerate(deal(content, args.parts)):
        cfg = Config.fromfile(args.config)
        part = folder / f'part{i}'
        write_json(part / 'train.json', others)
        write_json(part / 'test.json', own)
        cfg.train_dataloader.dataset.ann_file = str(part / 'train.json')
        cfg.test_dataloader.dataset.ann_file = str(part / 'test.json')
        cfg.test_evaluator.ann_file = str(part / 'test.json')
        configs.append(folder / f'part{i}.py')
        cfg.dump(str(configs[-1]))
    return whole, configs


def run(args: argparse.Namespace) -> None:
    """Train, refine and compare."""
    whole, configs = write_configs(args)
    results: dict[str, list[list[dict]]] = {}
    seconds: dict[str, list[float]] = {}
    stages = {name: STAGES[name] for name in _STAGES}
    for config in configs:
        cfg = Config.fromfile(config)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        loader = Runner.build_dataloader(cfg.test_dataloader)
        loader.dataset.full_init()
        for number, seed in enumerate(args.seeds):
            checkpoint = train_once(
                config,
                config.with_suffix('') / f'seed{seed}',
                seed,
                args.plain.resolve(),
                max_epochs=args.epochs,
            )
            model = build_model(str(config), str(checkpoint))
            for name, found, cost in detect_stages(model, loader, stages):
                of_seeds = results.setdefault(name, [[] for _ in args.seeds])
                of_seeds[number] += found
                seconds.setdefault(name, []).append(cost)
    truth = COCO(str(whole))
    by_class, all_objects = (
        summary(
            {
                stage: [
                    MatchedDetections(truth, found, by_class)
                    for found in of_seeds
                ]
                for stage, of_seeds in results.items()
            },
            seconds,
            args.resamples,
        )
        for by_class in (True, False)
    )
    figures = dict(
        config=config_name(args.config),
        split='test',
        images=len(truth.imgs),
        parts=args.parts,
        epochs=args.epochs,
        seeds=args.seeds,
        **by_class,
        all_objects=all_objects,
    )
    print(f'Means of the classes:\n\n{to_markdown(by_class)}\n')
    print(f'All objects at once:\n\n{to_markdown(all_objects)}')
    write_json(args.out or args.work_dir / 'crossed.json', figures)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line, or ``arguments``, ask for."""
    args = parse_args(arguments)
    with exit_with_message():
        run(args)


if __name__ == '__main__':
    main()
