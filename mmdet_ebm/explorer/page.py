"""The explorer's page, by Gradio."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch

from ..apis.inputs import expand_inputs
from ..decoding import UnreadableInput, read_image
from ..models import EnergyDetector
from ..visualization import EnergyMapFigure, draw_refinement
from ..visualization.refinement import BEFORE_COLOUR, zoomed
from .look import RANKINGS, Choices, Look

# Asks Gradio not to tell its makers that it is used.
os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')
try:
    import gradio
except ImportError as error:
    raise ImportError(
        "the explorer needs gradio: pip install 'mmdet_ebm[explore]'"
    ) from error

_VIEWS = ('over each other', 'side by side', 'slider')
_COLUMNS = ('number', 'label', 'score', 'class_score', 'quality', 'moved')
_NO_CHOICE = 'Click a box in the picture, or a row of the table.'
_HOW_TO_READ = """
Orange and dashed: the detector's box. Green: where the energy model puts it.
Bands: one standard deviation of each side.
The maps show the log-density of the box when its centre or its size changes.
Bright is likely; the lines are where a Gaussian would be at 1, 2 and 3
deviations. The white path is the way of the ascent and to the medians.
"""


def build_page(
    model: EnergyDetector,
    folder: str | Path | None = None,
    score_thr: float = 0.3,
) -> 'gradio.Blocks':
    """The page, not yet served.

    Args:
        model: With its weights, in eval mode.
        folder: Images to choose from, beside those that are dropped.
        score_thr: Boxes with a lower score are not drawn at first.

    Raises:
        ValueError: If the folder has no images.
    """
    images = {} if folder is None else _images_below(folder)
    as_it_is = model.energy_model.density.temperature
    page = _Page(model, images)
    with gradio.Blocks(title='mmdet_ebm: look inside') as blocks:
        look = gradio.State(None)
        number = gradio.State(None)
        gradio.Markdown(
            '# What the energy model sees\n'
            'Drop an image or choose one. Click a box to look inside.'
        )
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                chosen = gradio.Dropdown(
                    list(images),
                    value=None,
                    label='image of the folder',
                    elem_id='chosen',
                    visible=bool(images),
                )
                dropped = gradio.Image(
                    label='or drop one here',
                    sources=['upload', 'clipboard'],
                    elem_id='dropped',
                    height=150,
                )
                threshold = gradio.Slider(
                    0,
                    1,
                    score_thr,
                    step=0.05,
                    label='draw boxes from this score on',
                )
                view = gradio.Radio(
                    list(_VIEWS), value=_VIEWS[0], label='before and after'
                )
                with gradio.Accordion('the density', open=True):
                    prior = gradio.Checkbox(
                        True,
                        label="the detector's box is evidence (prior)",
                        elem_id='prior',
                    )
                    as_fitted = gradio.Checkbox(
                        True,
                        label=f'temperature as fitted ({as_it_is:.3g})',
                        elem_id='as_fitted',
                    )
                    warmth = gradio.Slider(
                        0.05,
                        20,
                        round(min(max(as_it_is, 0.05), 20.0), 2),
                        label='temperature T: larger trusts f less',
                        interactive=True,
                    )
                    ranking = gradio.Radio(
                        list(RANKINGS), value=RANKINGS[0], label='ranking'
                    )
            with gradio.Column(scale=3):
                both = gradio.Image(
                    label='detections',
                    interactive=False,
                    elem_id='both',
                    format='png',
                )
                with gradio.Row(visible=False) as pair:
                    before = gradio.Image(label='before', interactive=False)
                    after = gradio.Image(
                        label='after', interactive=False, elem_id='after'
                    )
                slider = gradio.ImageSlider(
                    label='before | after', interactive=False, visible=False
                )
                table = gradio.Dataframe(
                    headers=list(_COLUMNS),
                    interactive=False,
                    label='detections by falling score; click one',
                    elem_id='table',
                    max_height=220,
                )
        status = gradio.Markdown(_NO_CHOICE, elem_id='status')
        around = gradio.Image(
            label='inside', interactive=False, elem_id='around', format='png'
        )
        gradio.Markdown(_HOW_TO_READ)
        gradio.Markdown('### Move the box, and see what the density says')
        with gradio.Row():
            moves = [
                gradio.Slider(-0.3, 0.3, 0, step=0.005, label=label)
                for label in (
                    'shift in x / width',
                    'shift in y / height',
                    'log of width ratio',
                    'log of height ratio',
                )
            ]
        with gradio.Row():
            reading = gradio.Markdown('', elem_id='reading')
            probe = gradio.Image(
                label='the moved box',
                interactive=False,
                elem_id='probe',
                format='png',
                height=420,
            )
        with gradio.Row():
            as_json = gradio.DownloadButton(
                'export JSON', elem_id='json', interactive=False
            )
            as_picture = gradio.DownloadButton(
                'export picture', elem_id='picture', interactive=False
            )

        choices = [prior, as_fitted, warmth, ranking]
        scene = [both, before, after, slider]
        inside = [number, status, around, *moves, reading, probe]
        files = [as_json, as_picture]
        looked = [look, table, *scene, *inside, *files]
        # One at a time: all share the model.
        one = dict(concurrency_limit=1, concurrency_id='model')
        chosen.change(
            page.look_at_chosen, [chosen, threshold, *choices], looked, **one
        )
        dropped.upload(
            page.look_at, [dropped, threshold, *choices], looked, **one
        )
        # While something moves, only its latest place counts.
        last = dict(**one, trigger_mode='always_last')
        for each in choices:
            each.input(
                page.look_again,
                [look, number, threshold, *choices],
                looked,
                **last,
            )
        threshold.input(page.draw, [look, threshold], scene, **last)
        view.change(_arrange, [view], [both, pair, slider])
        for picture in (both, after):
            picture.select(
                page.click, [look, threshold], [*inside, *files], **one
            )
        table.select(page.choose_row, [look], [*inside, *files], **one)
        for each in moves:
            each.input(
                page.read,
                [look, number, *moves],
                [reading, probe],
                show_progress='hidden',
                **last,
            )
    return blocks


class _Page:
    """What happens when something is clicked.

    Args:
        model: Shared by all visitors, who wait for each other.
        images: Files by their names.
    """

    def __init__(self, model: EnergyDetector, images: dict[str, Path]) -> None:
        self.model = model
        self.images = images
        self._folder = tempfile.TemporaryDirectory(prefix='mmdet_ebm_')

    def look_at_chosen(
        self, name: str | None, threshold: float, *choices: Any
    ) -> list[Any]:
        if name is None:
            return self._nothing()
        try:
            image = read_image(self.images[name])
        except UnreadableInput as error:
            raise gradio.Error(f'{name}: {error}') from error
        return self.look_at(mmcv.bgr2rgb(image), threshold, *choices)

    def look_at(
        self, image: np.ndarray | None, threshold: float, *choices: Any
    ) -> list[Any]:
        if image is None:
            return self._nothing()
        look = Look(self.model, image, _chosen(*choices))
        number = 0 if len(look.instances) else None
        return self._all_of(look, number, threshold)

    def look_again(
        self,
        look: Look | None,
        number: int | None,
        threshold: float,
        *choices: Any,
    ) -> list[Any]:
        """The same image and, as far as it can be told, the same box."""
        if look is None:
            return self._nothing()
        again = Look(self.model, look.image, _chosen(*choices))
        if number is not None:
            number = _same_box(look, number, again)
        return self._all_of(again, number, threshold)

    def draw(self, look: Look | None, threshold: float) -> list[Any]:
        """The picture with both, before, after, and the pair of the two."""
        if look is None:
            return [None] * 4
        classes, image = look.classes, look.image
        both = draw_refinement(image, look.instances, classes, threshold)
        after = draw_refinement(
            image, look.instances, classes, threshold, compare=False
        )
        before = draw_refinement(
            image,
            look.plain,
            classes,
            threshold,
            compare=False,
            colour=BEFORE_COLOUR,
        )
        return [both, before, after, (before, after)]

    def click(
        self, look: Look | None, threshold: float, event: gradio.SelectData
    ) -> list[Any]:
        """A box was clicked in a picture; elsewhere, nothing changes."""
        number = None
        if look is not None:
            _, zoom = zoomed(look.image)
            x, y = (torch.tensor(event.index) / zoom[:2]).tolist()
            number = look.at(x, y, threshold)
        if number is None:
            return [gradio.skip()] * len(self._inside(None, None))
        return self._inside(look, number)

    def choose_row(
        self, look: Look | None, event: gradio.SelectData
    ) -> list[Any]:
        """A row of the table was clicked."""
        if look is None:
            return self._inside(None, None)
        return self._inside(look, int(event.row_value[0]))

    def read(
        self, look: Look | None, number: int | None, *moves: float
    ) -> tuple[str, np.ndarray | None]:
        """What the density says of the moved box, and a picture of it."""
        if look is None or number is None:
            return '', None
        relative = torch.tensor([moves], dtype=torch.float32)
        boxes = torch.cat(
            [
                look.moved(number, relative),
                look.instances.bboxes[number][None],
            ]
        )
        known = look.read(number, boxes)
        moved, placed = (
            dict(
                f=float(known.logdensity[i]),
                logprob=float(known.logprob[i]),
                quality=float(known.quality[i]),
            )
            for i in range(2)
        )
        rows = [
            f'| {title} | {box["f"]:.2f} | {box["logprob"]:.2f} | '
            f'{box["quality"]:.2f} |'
            for title, box in (('moved', moved), ('placed', placed))
        ]
        text = '\n'.join(
            [
                '| box | f | log-probability | expected quality |',
                '|---|---|---|---|',
                *rows,
            ]
        )
        return text, _moved_picture(look, number, boxes[:1])

    # ------------------------------------------------------ parts of a page

    def _all_of(
        self, look: Look, number: int | None, threshold: float
    ) -> list[Any]:
        rows = look.table()
        return [
            look,
            [[_shown(row.get(key)) for key in _COLUMNS] for row in rows],
            *self.draw(look, threshold),
            *self._inside(look, number),
        ]

    def _inside(self, look: Look | None, number: int | None) -> list[Any]:
        """Of a detection: everything below the table."""
        zeros = [0.0] * 4
        if look is None or number is None:
            files = [gradio.DownloadButton(interactive=False)] * 2
            return [None, _NO_CHOICE, None, *zeros, '', None, *files]
        row = look.table()[number]
        title = f'{row["label"]}, score {row["score"]:.2f}'
        energy = look.energy_map(number)
        picture = EnergyMapFigure(look.image, energy, f'{title};').picture()
        parts = ''.join(
            f', {name} {row[key]:.2f}'
            for key, name in (
                ('object_prob', 'probability of an object'),
                ('quality', 'expected quality'),
            )
            if key in row
        )
        std = ', '.join(f'{value:.1f}' for value in row['std'])
        status = (
            f'**Box {number}: {title}** (class score '
            f'{row["class_score"]:.2f}{parts}); deviations of x1, y1, x2, '
            f'y2: {std} px'
        )
        return [
            number,
            status,
            picture,
            *zeros,
            *self.read(look, number, *zeros),
            *self._exports(look, number, row, energy, picture),
        ]

    def _exports(
        self, look: Look, number: int, row: dict, energy: Any, picture: Any
    ) -> list[Any]:
        folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        as_json, as_picture = folder / 'box.json', folder / 'box.png'
        path = energy.corners.tolist()
        values = energy.logdensity.tolist()
        choices = vars(look.choices)
        report = dict(**row, choices=choices, path=path, logdensities=values)
        as_json.write_text(json.dumps(report, indent=1))
        mmcv.imwrite(mmcv.rgb2bgr(picture), str(as_picture))
        return [
            gradio.DownloadButton(value=str(file), interactive=True)
            for file in (as_json, as_picture)
        ]

    def _nothing(self) -> list[Any]:
        return [None, None, *[None] * 4, *self._inside(None, None)]


def _images_below(folder: str | Path) -> dict[str, Path]:
    sources = [each for each in expand_inputs(folder) if not each.is_video]
    return {each.name: Path(each.content) for each in sources}


def _chosen(
    prior: bool, as_fitted: bool, temperature: float, ranking: str
) -> Choices:
    return Choices(prior, None if as_fitted else temperature, ranking)


def _same_box(look: Look, number: int, again: Look) -> int | None:
    """The detection that began nearest to where another began."""
    if not len(again.instances):
        return None
    old, new = (
        each.instances.get('initial_bboxes', each.instances.bboxes)
        for each in (look, again)
    )
    far = (new - old[number]).abs().sum(1)
    other = again.instances.labels != look.instances.labels[number]
    return int((far + 1e6 * other).argmin())


def _moved_picture(look: Look, number: int, moved: torch.Tensor) -> np.ndarray:
    """The surroundings of a detection, with the moved box (1, 4) dashed."""
    one = look.instances[number : number + 1].clone()
    corners = torch.cat([one.bboxes, moved])
    low, high = corners[:, :2].amin(0), corners[:, 2:].amax(0)
    margin = (high - low).max() / 2
    height, width = look.image.shape[:2]
    x1, y1 = (low - margin).clamp(min=0).long().tolist()
    x2, y2 = (high + margin).ceil().long().tolist()
    x2, y2 = min(x2, width), min(y2, height)
    offset = torch.tensor([x1, y1, x1, y1])
    one.bboxes, one.initial_bboxes = one.bboxes - offset, moved - offset
    part = np.ascontiguousarray(look.image[y1:y2, x1:x2])
    return draw_refinement(part, one, look.classes, score_thr=0.0)


def _arrange(view: str) -> list[Any]:
    return [gradio.update(visible=view == each) for each in _VIEWS]


def _shown(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def serve(
    page: 'gradio.Blocks', port: int | None = None, in_browser: bool = False
) -> None:
    """Serve the page to this machine alone, until it is interrupted.

    Args:
        page: From :func:`build_page`.
        port: A free one from 7860 on by default.
        in_browser: Also open it.
    """
    _, address, _ = page.launch(
        server_name='127.0.0.1',
        server_port=port,
        inbrowser=in_browser,
        share=False,
        show_error=True,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f'the explorer is at {address}; Ctrl-C ends it', flush=True)
    page.block_thread()
