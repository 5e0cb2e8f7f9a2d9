"""The folder of a run's results, from which a later run continues."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .inputs import Source

# COCO's name (one detection) for a field of predictions (all of an image).
# Corner boxes become x, y, width, height.
_COCO_FIELDS = {
    'scores': 'score',
    'logdensities': 'logdensity',
    'box_logprobs': 'box_logprob',
    'box_std': 'box_std',
    'masks': 'segmentation',
}


class ResultStore:
    """Predictions and pictures of a run, in a folder.

    ::

        preds/NAME.json     labels, scores, bboxes ... of an image
        vis/NAME.jpg        its picture; vis/NAME.mp4 of a video
        predictions.json    all of them in COCO's form, from :meth:`write_coco`
        settings.json       what made the predictions
        images.jsonl        what is finished, a line as each image is

    Args:
        folder: Created if need be.
        settings: What predictions depend on; JSON types.
        overwrite: Drop what an earlier run left, rather than continue it.

    Raises:
        ValueError: If the folder holds predictions made with other settings.
    """

    def __init__(
        self, folder: str | Path, settings: dict, overwrite: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ledger = self.folder / 'images.jsonl'
        self._records = self._read_ledger()
        if overwrite:
            self._drop()
        settings = json.loads(json.dumps(settings, default=str))
        written = self.folder / 'settings.json'
        if self._records and written.exists():
            changes = _differences(json.loads(written.read_text()), settings)
            if changes:
                raise ValueError(
                    f'{self.folder} holds predictions that were made with '
                    'other settings; choose another output folder, or '
                    'overwrite them (--overwrite, overwrite=True). '
                    + '; '.join(changes[:5])
                    + ('; ...' if len(changes) > 5 else '')
                )
        _write(written, json.dumps(settings, indent=1))

    def prediction_file(self, name: str) -> Path:
        return self.folder / 'preds' / f'{name}.json'

    def picture_file(self, name: str, video: bool = False) -> Path:
        return self.folder / 'vis' / f'{name}{".mp4" if video else ".jpg"}'

    # ----------------------------------------------------------- continuing

    def require_own_names(self, sources: Iterable[Source]) -> None:
        """Refuse to put one image's results in the place of another's.

        Raises:
            ValueError: If a name belongs to a file elsewhere.
        """
        for source in sources:
            path = self._records.get(source.name, {}).get('path')
            if path and source.path and path != source.path:
                raise ValueError(
                    f'{self.folder} holds the results of {path} under the '
                    f'name {source.name}, which {source.path} would get as '
                    'well; choose another output folder, name both inputs in '
                    'one run, or overwrite (--overwrite, overwrite=True)'
                )

    def finished(self, name: str, signature: str) -> dict | None:
        """The prediction for content that has not changed since, if any."""
        record = self._records.get(name)
        if record is None or record['signature'] != signature:
            return None
        try:
            return json.loads(self.prediction_file(name).read_text())
        except (OSError, ValueError):
            return None

    def num_frames(self, name: str, signature: str) -> int:
        """Frames of a finished video that has not changed; 0 without one."""
        record = self._records.get(name, {})
        if record.get('signature') != signature:
            return 0
        frames = record.get('details', {}).get('num_frames', 0)
        whole = all(
            self.finished(frame_name(name, i), signature) is not None
            for i in range(frames)
        )
        return frames if whole else 0

    def details(self, name: str) -> dict:
        """What :meth:`finish` noted of an image, frame or video."""
        return dict(self._records.get(name, {}).get('details', {}))

    def save(self, name: str, prediction: dict) -> None:
        _write(self.prediction_file(name), json.dumps(prediction))

    def finish(
        self, name: str, source: Source, signature: str, **details: Any
    ) -> None:
        """Note that an image, frame or video is finished.

        Args:
            name: The image's.
            source: Where it comes from.
            signature: The content's.
            **details: JSON types to note with it.
        """
        record = dict(
            name=name, path=source.path, signature=signature, details=details
        )
        if self._records.get(name) != record:
            self._records[name] = record
            with self._ledger.open('a') as ledger:
                ledger.write(json.dumps(record) + '\n')

    def _read_ledger(self) -> dict[str, dict]:
        records = {}
        if self._ledger.exists():
            for line in self._ledger.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # cut off as it was written
                records[record['name']] = record
        return records

    def _drop(self) -> None:
        for name in self._records:
            self.prediction_file(name).unlink(missing_ok=True)
            for video in (False, True):
                self.picture_file(name, video).unlink(missing_ok=True)
        self._ledger.unlink(missing_ok=True)
        self._records = {}

    # ------------------------------------------------------------- one file

    def write_coco(self, names: Iterable[str], classes: Sequence[str]) -> Path:
        """Write ``predictions.json`` of finished images, one at a time.

        Image ids number the images from 0, category ids the classes from 1.
        """
        names = list(names)
        images = [
            dict(id=i, file_name=name, width=size[0], height=size[1])
            for i, (name, size) in enumerate(
                (name, self.details(name)['size']) for name in names
            )
        ]
        categories = [dict(id=i + 1, name=c) for i, c in enumerate(classes)]
        target = self.folder / 'predictions.json'
        partial = target.with_suffix('.part')
        with partial.open('w') as file:
            file.write(
                f'{{"images": {json.dumps(images)},\n'
                f'"categories": {json.dumps(categories)},\n'
                '"annotations": ['
            )
            separator, count = '\n', 0
            for image_id, name in enumerate(names):
                prediction = json.loads(self.prediction_file(name).read_text())
                for annotation in coco_annotations(prediction):
                    count += 1
                    annotation.update(id=count, image_id=image_id)
                    file.write(separator + json.dumps(annotation))
                    separator = ',\n'
            file.write(']}\n')
        os.replace(partial, target)
        return target


def frame_name(video: str, number: int) -> str:
    return f'{video}/{number:06d}'


def coco_annotations(prediction: dict) -> list[dict]:
    """The detections of an image, as COCO annotations without ids."""
    annotations = []
    for row, corners in enumerate(prediction['bboxes']):
        x, y, width, height = _xywh(corners)
        annotation = dict(
            category_id=prediction['labels'][row] + 1,
            bbox=[x, y, width, height],
            area=width * height,
            iscrowd=0,
        )
        for field, name in _COCO_FIELDS.items():
            if field in prediction:
                annotation[name] = prediction[field][row]
        if 'initial_bboxes' in prediction:
            annotation['initial_bbox'] = _xywh(
                prediction['initial_bboxes'][row]
            )
        annotations.append(annotation)
    return annotations


def _xywh(corners: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = corners
    return [x1, y1, x2 - x1, y2 - y1]


def _write(path: Path, text: str) -> None:
    """Whole or not at all, even if the process ends meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.part')
    partial.write_text(text)
    os.replace(partial, path)


def _differences(old: Any, new: Any, key: str = '') -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for name in sorted({*old, *new})
            for change in _differences(
                old.get(name), new.get(name), f'{key}.{name}' if key else name
            )
        ]
    if old == new:
        return []
    return [f'{key} was {_short(old)} and is {_short(new)}']


def _short(value: Any) -> str:
    text = 'not set' if value is None else str(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
