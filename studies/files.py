"""Where things are, and how the studies write their results."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from mmengine.config import ConfigDict
from tabulate import tabulate

from mmdet_ebm.engine import experiments
from mmdet_ebm.files import write_json, write_text

ROOT = Path(__file__).resolve().parent.parent


def run_tool(name: str, *arguments: object) -> None:
    """Run a tool of tools/."""
    experiments.run_tool(ROOT / 'tools' / f'{name}.py', *arguments)


def train_once(
    config: Path,
    work_dir: Path,
    seed: int,
    load_from: Path | None = None,
    max_epochs: int | None = None,
) -> Path:
    """The last checkpoint of a training that runs if it has not yet."""
    return experiments.train_once(
        ROOT / 'tools/train.py',
        config,
        work_dir,
        seed,
        load_from,
        max_epochs=max_epochs,
    )


def small_config_file(
    data: str, kind: str = '', detector: str = 'faster-rcnn'
) -> Path:
    """A config of the small data sets: of a plain detector without a kind."""
    kind = f'{kind}_' if kind else ''
    return ROOT / f'configs/{data}/{detector}_r18-half_{kind}{data}.py'


def config_name(path: str | Path) -> str:
    """How results name a config: in this project, or without its folder."""
    path = Path(path).resolve()
    inside = path.is_relative_to(ROOT)
    return path.relative_to(ROOT).as_posix() if inside else path.name


def table(rows: Iterable[Sequence], headers: Sequence[str]) -> str:
    """Rows in Markdown, their cells as they are."""
    return tabulate(rows, headers, tablefmt='github', disable_numparse=True)


def mean_and_range(values: Sequence[float]) -> str:
    """Fractions in per cent."""
    low, high = 100 * min(values), 100 * max(values)
    return f'{100 * sum(values) / len(values):.1f} ({low:.1f} to {high:.1f})'


def read_annotations(dataset: ConfigDict) -> dict:
    """The annotation file of a data set's config."""
    path = Path(dataset.get('data_root') or '', dataset.ann_file)
    return json.loads(path.read_text())


def interval(difference: Mapping[str, float], decimals: int = 1) -> str:
    """A difference of fractions with its interval, in per cent."""
    middle, low, high = (
        f'{100 * difference[key]:+.{decimals}f}'
        for key in ('difference', 'low', 'high')
    )
    return f'{middle} [{low}, {high}]'


def write_with_table(
    figures: dict, out: Path, to_markdown: Callable[[dict], str]
) -> None:
    """Figures as JSON, and as Markdown beside it."""
    write_json(out, figures)
    write_text(out.with_suffix('.md'), to_markdown(figures))
