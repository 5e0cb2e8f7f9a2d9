"""Detect, refine and draw on images, lists of images and folders."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, Optional, Sequence, Union

import torch
from mmcv.transforms import Compose
from mmdet.apis import init_detector
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn
from tqdm import tqdm

from ..visualization import draw_refinement

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


@dataclass
class InferenceReport:
    """What a run over images produced.

    Attributes:
        results: COCO-style ``images``, ``annotations`` (with ``score``) and
            ``categories``.
        skipped: Path and reason of each image without a result.
        pictures: Drawn images.
    """
    results: dict
    skipped: dict[str, str] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)


def build_model(config: Union[str, Config],
                checkpoint: str,
                device: Optional[str] = None,
                cfg_options: Optional[dict] = None) -> nn.Module:
    """A detector in eval mode with its weights, on a device.

    Args:
        config: Config file or config.
        checkpoint: Weights; those of the energy model must be among them.
        device: For example 'cuda:0'; the first GPU, or the CPU without one.
        cfg_options: Changes to the config.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If the config has an energy model and the checkpoint has
            no weights for it: refining with random energies would harm boxes.
    """
    if '://' not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(f'no checkpoint at {checkpoint}')
    if device is None:
        device = 'cuda:0' if torch.cuda.is_available() else 'cpu'
    if isinstance(config, str):
        config = Config.fromfile(config)
    if cfg_options:
        config.merge_from_dict(cfg_options)
    require_energy_weights(config, checkpoint)
    return init_detector(config, checkpoint, device=device)


def require_energy_weights(config: Config, checkpoint: str) -> None:
    """Refuse to refine with random energies, which would harm boxes.

    Raises:
        ValueError: If the config has an energy model and refines with it, and
            the checkpoint has no weights for it.
    """
    roi_head = config.model.get('roi_head', {})
    stages = roi_head.get('refinement', {})
    if 'refiner' not in roi_head or not (stages.get('energy_nms', True)
                                         or stages.get('ascent', True)):
        return
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    if not any('roi_head.refiner.' in key
               for key in loaded.get('state_dict', loaded)):
        raise ValueError(
            f'{checkpoint} holds no weights of an energy model (no key with '
            '"roi_head.refiner"); train one with this config, use the plain '
            "detector's config, or switch both stages of "
            'model.roi_head.refinement off')


def list_images(inputs: Union[str, Path, Sequence[Union[str, Path]]],
                recursive: bool = False) -> list[Path]:
    """Image files named by a path, a list of paths or folders.

    A folder stands for the image files in it, by name; a file that is named
    itself is taken whatever its suffix.

    Raises:
        FileNotFoundError: If a path does not exist or a folder has no image.
    """
    if isinstance(inputs, (str, Path)):
        inputs = [inputs]
    files = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            found = sorted(
                path for path in entry.glob('**/*' if recursive else '*')
                if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
            if not found:
                raise FileNotFoundError(
                    f'no image in the folder {entry} (looked for '
                    f'{", ".join(IMAGE_SUFFIXES)}'
                    f'{"" if recursive else "; not in its subfolders"})')
            files += found
        elif entry.exists():
            files.append(entry)
        else:
            raise FileNotFoundError(f'no file or folder {entry}')
    return files


def predict_images(
    model: nn.Module, paths: Sequence[Path]
) -> Iterator[tuple[Path, Union[DetDataSample, Exception]]]:
    """Yield each image's result, or the error that its reading raised."""
    pipeline_cfg = [
        step for step in get_test_pipeline_cfg(model.cfg)
        if 'LoadAnnotations' not in step['type']
    ]
    pipeline = Compose(pipeline_cfg)
    for index, path in enumerate(paths):
        try:
            data = pipeline(dict(img_path=str(path), img_id=index))
        except Exception as error:  # noqa: BLE001  one bad file is not all
            yield path, error
            continue
        batch = dict(inputs=[data['inputs']],
                     data_samples=[data['data_samples']])
        with torch.no_grad():
            yield path, model.test_step(batch)[0]


def infer_folder(model: nn.Module,
                 paths: Sequence[Path],
                 out_dir: Union[str, Path],
                 score_thr: float = 0.3,
                 draw: bool = True) -> InferenceReport:
    """Run on images, write ``predictions.json`` and pictures.

    Args:
        model: From :func:`build_model`.
        paths: From :func:`list_images`.
        out_dir: Receives ``predictions.json`` with all detections and
            ``pictures/``, numbered as the images so that equal names in
            different folders do not meet.
        score_thr: Class score from which a detection is drawn.
        draw: Whether to draw.

    Returns:
        The report; an unreadable image is logged and listed in ``skipped``.
    """
    out_dir = Path(out_dir)
    (out_dir / 'pictures').mkdir(parents=True, exist_ok=True)
    classes = tuple(model.dataset_meta['classes'])
    report = InferenceReport(dict(
        images=[], annotations=[],
        categories=[dict(id=i + 1, name=c) for i, c in enumerate(classes)]))
    progress = tqdm(predict_images(model, paths), total=len(paths),
                    unit='image', desc='refining')
    for index, (path, sample) in enumerate(progress):
        if isinstance(sample, Exception):
            report.skipped[str(path)] = f'{type(sample).__name__}: {sample}'
            progress.write(f'skipped {path}: {sample}')
            continue
        _append_coco(report.results, index, path, sample)
        if draw:
            picture = out_dir / 'pictures' / f'{index:05d}_{path.stem}.png'
            draw_refinement(path, sample.pred_instances, classes, picture,
                            score_thr)
            report.pictures.append(picture)
    (out_dir / 'predictions.json').write_text(json.dumps(report.results))
    return report


def _append_coco(results: dict, image_id: int, path: Path,
                 sample: DetDataSample) -> None:
    height, width = sample.ori_shape[:2]
    results['images'].append(
        dict(id=image_id, file_name=str(path), width=width, height=height))
    fields = sample.pred_instances.cpu()
    for row in range(len(fields)):
        x1, y1, x2, y2 = fields.bboxes[row].tolist()
        entry = dict(
            id=len(results['annotations']) + 1,
            image_id=image_id,
            category_id=int(fields.labels[row]) + 1,
            bbox=[x1, y1, x2 - x1, y2 - y1],
            area=(x2 - x1) * (y2 - y1),
            iscrowd=0,
            score=float(fields.scores[row]))
        if 'logdensities' in fields:
            entry['logdensity'] = float(fields.logdensities[row])
        if 'initial_bboxes' in fields:
            x1, y1, x2, y2 = fields.initial_bboxes[row].tolist()
            entry['initial_bbox'] = [x1, y1, x2 - x1, y2 - y1]
        results['annotations'].append(entry)
