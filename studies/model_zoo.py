"""Write docs/model_zoo.md: every shipped config, and what it reached.

Figures come from the files in docs/results that the studies wrote, on test.
A config without such a file was not run, and its row says so.

  python -m studies.model_zoo
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmdet_ebm.files import write_text
from mmdet_ebm.shipped import shipped_configs

from .files import ROOT, interval, table

PAGE = ROOT / 'docs/model_zoo.md'
RESULTS = ROOT / 'docs/results'
CONFIGS = ROOT / 'configs'
# What a result is of, the latest way to use an energy model first.
_STAGES = ('refined', 'both', 'ascent')
_FOLDERS = {
    'bccd': (
        'BCCD: real photos of blood cells',
        'Small detectors, trained from scratch. 205 images to train on, 72 '
        'to test on. Put the data under `data/bccd`, or name its folder in '
        '`BCCD_ROOT`.',
    ),
    'digits': (
        'Generated digits',
        'Small detectors, trained from scratch. `python tools/make_digits.py '
        'data/digits` makes the data; 300 images to test on.',
    ),
    'photos': (
        'A few thousand photos',
        'A detector trained on COCO, frozen, and energy models from photos of '
        'COCO val2017: 2,050 in two halves, each the test of the other '
        '([how](results.md#a-good-detector-little-data)). `PHOTOS_ROOT` names '
        'the folder.',
    ),
    'coco': (
        'COCO',
        "Frozen detectors of mmdet's model zoo. [More about them](coco.md).",
    ),
    'published': (
        "The authors' weights",
        '[How to use them](published_weights.md).',
    ),
    'tracking': (
        'Tracking',
        'The figure is success AUC of the boxes of other trackers, before '
        'and after. [More](tracking.md).',
    ),
}
_HEAD = """# Model zoo

Every config that comes with the package, and what it reached on test.
`python -m studies.model_zoo` makes it from the [result files](results.md).
No weights are offered for download: train them by the command of each table.

Figures are per cent, means over the seeds.
A difference has a 95 % bootstrap interval over images, or sequences.
"""


def figures_of(config: str, results: Sequence[Mapping]) -> Mapping | None:
    """The result on test of a config: the one with most seeds and the latest
    way to use it; None if there is none."""
    known = [
        each
        for each in results
        if each.get('config') == f'configs/{config}'
        and each.get('split') == 'test'
        and 'plain' in each.get('stages', {})
        and not each.get('note')
    ]

    def rank(result: Mapping) -> tuple[int, int, int]:
        return (
            -_STAGES.index(_stage(result)),
            len(result['stages']['plain']['runs']),
            len(result['stages']),
        )

    return max(known, key=rank, default=None)


def _stage(result: Mapping) -> str:
    return next(each for each in _STAGES if each in result['stages'])


def row_of(config: str, results: Sequence[Mapping]) -> list[str]:
    """Cells of a config of a detector."""
    link = f'[`{Path(config).stem}`](../configs/{config})'
    found = figures_of(config, results)
    if found is None:
        return [link, *['not run'] * 3, '', '', '']
    stage = _stage(found)
    plain, refined = (
        found['stages'][name]['runs'] for name in ('plain', stage)
    )
    gain = found['differences'][f'{stage} - plain']
    minutes = found.get('training_minutes')
    return [
        link,
        _mean(plain, 'AP'),
        _mean(refined, 'AP'),
        *(interval(gain[name]) for name in ('AP', 'AP75')),
        str(len(plain)) + ('' if stage == _STAGES[0] else ', version 0.1'),
        f'{sum(minutes) / len(minutes):.0f} min' if minutes else '',
    ]


def _mean(runs: Sequence[Mapping], name: str) -> str:
    return f'{100 * sum(run[name] for run in runs) / len(runs):.1f}'


def tracking_rows(summary: Mapping | None) -> list[list[str]]:
    """Rows of the trackers that were refined."""
    config = 'mobilenetv2_nce-plus_tracking'
    link = f'[`{config}`](../configs/tracking/{config}.py)'
    if summary is None:
        return [[link, '', *['not run'] * 3, '']]
    rows = []
    for name, row in summary['rows'].items():
        low, high = (100 * value for value in row['interval'][0])
        after = [100 * each[0] for each in row['after']]
        rows.append(
            [
                link,
                name,
                f'{100 * row["before"][0]:.1f}',
                f'{sum(after) / len(after):.1f}',
                f'{100 * row["gain"][0]:+.1f} [{low:+.1f}, {high:+.1f}]',
                str(len(after)),
            ]
        )
    return rows


def page() -> str:
    """The text of the page."""
    results = [
        json.loads(p.read_text())
        for p in sorted(RESULTS.glob('*'))
        if p.suffix == '.json'
    ]
    results = [each for each in results if isinstance(each, dict)]
    parts = [_HEAD]
    for folder, (title, text) in _FOLDERS.items():
        configs = [
            path.relative_to(path.parents[1]).as_posix()
            for path in shipped_configs(f'{folder}/')
            if path.parent.name == folder
        ]
        if folder == 'tracking':
            file = RESULTS / 'tracking_test.json'
            known = json.loads(file.read_text()) if file.exists() else None
            rows = tracking_rows(known)
            heads = ['config', 'boxes of', 'AUC', 'refined', 'gain', 'seeds']
        else:
            rows = [
                row_of(config, results)
                for config in configs
                if _has_energy_model(config)
            ]
            heads = ['config', 'plain AP', 'refined AP', 'difference']
            heads += ['AP75', 'seeds', 'training']
        parts += [f'## {title}', text, table(rows, heads)]
        if folder != 'published':  # those are not trained here
            command = f'python tools/train.py configs/{folder}/CONFIG.py'
            parts.append(f'```sh\n{command}\n```')
    return '\n\n'.join(part.strip() for part in parts) + '\n'


def _has_energy_model(config: str) -> bool:
    """Whether it is not the config of a plain detector."""
    kinds = ('nce', 'sm', 'dsm', 'ml-', 'kld-is', 'iou-net')
    return any(f'_{kind}' in Path(config).stem for kind in kinds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    argparse.ArgumentParser(
        prog='python -m studies.model_zoo',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(arguments)
    write_text(PAGE, page())
    print(f'wrote {PAGE}')


if __name__ == '__main__':
    main()
