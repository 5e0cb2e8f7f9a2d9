"""The folder of a run's results. A later run continues from it."""

import io
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from boltons.fileutils import atomic_save
from boltons.jsonutils import JSONLIterator

from .inputs import VIDEO_SUFFIXES, Source
from .results import coco_annotations, is_prediction


class ResultsFolder:
    """Predictions and pictures of a run, in a folder.

    ::

        preds/NAME.json     labels, scores, bboxes ... of an image
        vis/NAME.jpg        its picture; vis/NAME.mp4 of a video
        predictions.json    all of them in COCO's form, from :meth:`write_coco`
        settings.json       the settings that made the predictions
        images.jsonl        the finished images, one on a line

    Args:
        folder: Is created if it does not exist.
        settings: All that predictions depend on; JSON types.
        overwrite: Remove the results of earlier runs first.

    Raises:
        ValueError: If the folder holds predictions made with other settings.
    """

    def __init__(
        self, folder: str | Path, settings: dict, overwrite: bool = False
    ) -> None:
        self.path = Path(folder)
        self.path.mkdir(parents=True, exist_ok=True)
        self._ledger = self.path / 'images.jsonl'
        self._records = self._read_ledger()
        if overwrite:
            self._remove_results()
        # Through JSON, so that tuples compare as the lists they become.
        settings = json.loads(json.dumps(settings, default=str))
        written = self.path / 'settings.json'
        if self._records and written.exists():
            try:
                made_with = json.loads(written.read_text('utf-8'))
            except (ValueError, RecursionError):
                made_with = 'damaged, which settings.json is,'
            changes = _differences(made_with, settings)
            if changes:
                raise ValueError(
                    f'{self.path} holds predictions that were made with '
                    'other settings; choose another output folder, or '
                    'overwrite them (--overwrite, overwrite=True). '
                    + '; '.join(changes[:5])
                    + ('; ...' if len(changes) > 5 else '')
                )
        write_file(written, json.dumps(settings, indent=1))

    def prediction_file(self, name: str) -> Path:
        return _prediction_file(self.path, name)

    def picture_file(self, name: str, video: bool = False) -> Path:
        return self.path / 'vis' / f'{name}{".mp4" if video else ".jpg"}'

    def require_own_names(self, sources: Iterable[Source]) -> None:
        """Refuse inputs whose results would replace those of other files.

        Raises:
            ValueError: If a name belongs to a file elsewhere.
        """
        for source in sources:
            path = self._records.get(source.name, {}).get('path')
            if path and source.path and path != source.path:
                raise ValueError(
                    f'{self.path} holds the results of {path} under the '
                    f'name {source.name}, which {source.path} would get as '
                    'well; choose another output folder, name both inputs in '
                    'one run, or overwrite (--overwrite, overwrite=True)'
                )

    def finished(self, name: str, signature: str) -> dict | None:
        """The prediction of an image; None if missing or out of date."""
        if self._records.get(name, {}).get('signature') != signature:
            return None
        return _read_prediction(self.prediction_file(name))

    def num_frames(self, name: str, signature: str) -> int:
        """Frames of a video, all of which are finished; 0 if they are not."""
        if self._records.get(name, {}).get('signature') != signature:
            return 0
        count = self.details(name).get('num_frames', 0)
        frames = (frame_name(name, number) for number in range(count))
        if any(self.finished(frame, signature) is None for frame in frames):
            return 0
        return count

    def details(self, name: str) -> dict:
        """What :meth:`finish` noted of an image, frame or video."""
        return dict(self._records.get(name, {}).get('details', {}))

    def save(self, name: str, prediction: dict) -> None:
        write_file(self.prediction_file(name), json.dumps(prediction))

    def finish(
        self, name: str, source: Source, signature: str, details: dict
    ) -> None:
        """Note that an image, frame or video is finished.

        Args:
            name: Of the image, frame or video.
            source: Where it comes from.
            signature: Of its content.
            details: JSON types, noted with it.
        """
        record = dict(
            name=name, path=source.path, signature=signature, details=details
        )
        if self._records.get(name) != record:
            self._note(record)

    def forget_picture(self, name: str) -> None:
        """Note that the picture of a name is about to be replaced.

        A process that is killed before it notes the new one would otherwise
        leave it under the settings of the old one.
        """
        record = self._records.get(name, {})
        if 'picture' in record.get('details', {}):
            details = dict(record['details'])
            del details['picture']
            self._note(dict(record, details=details))

    def write_coco(self, names: Iterable[str], classes: Sequence[str]) -> None:
        """Write ``predictions.json``; one image at a time is in memory.

        Image ids number the images from 0, category ids the classes from 1.
        """
        names = list(names)
        images = []
        for image_id, name in enumerate(names):
            width, height = self.details(name)['size']
            images.append(
                dict(id=image_id, file_name=name, width=width, height=height)
            )
        categories = [dict(id=i + 1, name=c) for i, c in enumerate(classes)]
        with write_whole(self.path / 'predictions.json') as file:
            file.write(
                f'{{"images": {json.dumps(images)},\n'
                f'"categories": {json.dumps(categories)},\n'
                '"annotations": ['
            )
            count = 0
            for image_id, name in enumerate(names):
                prediction = json.loads(
                    self.prediction_file(name).read_text('utf-8')
                )
                for annotation in coco_annotations(prediction):
                    file.write(',\n' if count else '\n')
                    count += 1
                    annotation.update(id=count, image_id=image_id)
                    file.write(json.dumps(annotation))
            file.write(']}\n')

    def _read_ledger(self) -> dict[str, dict]:
        if not self._ledger.exists():
            return {}
        content = self._ledger.read_bytes()
        if content and not content.endswith(b'\n'):
            # A process that was killed left a part of a line. The next one
            # must not go on in it.
            with self._ledger.open('a') as ledger:
                ledger.write('\n')
        return _records(content)

    def _note(self, record: dict) -> None:
        self._records[record['name']] = record
        with self._ledger.open('a', encoding='utf-8') as ledger:
            ledger.write(json.dumps(record) + '\n')

    def _remove_results(self) -> None:
        for name in self._records:
            for file in (
                self.prediction_file(name),
                self.picture_file(name),
                self.picture_file(name, video=True),
            ):
                # A link to elsewhere may lie on the way.
                if file.parent.resolve().is_relative_to(self.path.resolve()):
                    file.unlink(missing_ok=True)
        self._ledger.unlink(missing_ok=True)
        self._records = {}


@dataclass(frozen=True)
class SavedImage:
    """The result of an image or video frame, as a folder holds it.

    Attributes:
        name: Of the image; ``NAME/000012`` is a frame.
        path: Of the image file or video; None if it was an array.
        width: In pixels.
        height: In pixels.
        prediction: See :func:`to_prediction`; boxes in the image's pixels.
    """

    name: str
    path: str | None
    width: int
    height: int
    prediction: dict

    @property
    def is_file(self) -> bool:
        """Whether there is an image file: no array, no frame of a video."""
        return (
            self.path is not None
            and Path(self.path).suffix.lower() not in VIDEO_SUFFIXES
        )


class SavedResults:
    """What a folder of results holds, in the order of the names. Reads only.

    Iteration yields a :class:`SavedImage` for each image and frame that is
    finished; one at a time is in memory.

    Args:
        folder: A ``ResultsFolder``, also of a run that was interrupted.

    Attributes:
        classes: Names of the labels.

    Raises:
        FileNotFoundError: If the folder holds no results.
        ValueError: If the results are damaged, or without predictions.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        ledger = self.path / 'images.jsonl'
        if not ledger.exists():
            raise FileNotFoundError(
                f'no results in {folder}: expected a folder that '
                'tools/infer.py wrote, with an images.jsonl in it'
            )
        self._records = {
            name: record
            for name, record in sorted(_records(ledger.read_bytes()).items())
            if 'size' in record['details']
        }
        if self._records and not any(
            _prediction_file(self.path, name).exists()
            for name in self._records
        ):
            raise ValueError(
                f'{folder} holds no predictions; run tools/infer.py without '
                '--no-save-pred'
            )
        settings = self.path / 'settings.json'
        try:
            self.classes = tuple(
                json.loads(settings.read_text('utf-8'))['classes']
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f'{settings} is damaged: it has no list of classes'
            ) from error

    def __iter__(self) -> Iterator[SavedImage]:
        for name, record in self._records.items():
            prediction = _read_prediction(_prediction_file(self.path, name))
            if prediction is not None:
                width, height = record['details']['size']
                yield SavedImage(
                    name, record.get('path'), width, height, prediction
                )


@contextmanager
def write_whole(path: Path, text_mode: bool = True) -> Iterator[IO]:
    """Open a file to write, which becomes complete or is not there.

    Its folder is made. Until it is complete it has a name that no other
    process uses, so that several can write to one folder. That name is short,
    as the file's own may be as long as names can be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{secrets.token_hex(8)}.part')
    try:
        with atomic_save(
            path, text_mode=text_mode, part_file=part.name
        ) as file:
            yield file
    finally:
        part.unlink(missing_ok=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Write a file, which is complete or not there, and its folder."""
    data = content if isinstance(content, bytes) else content.encode()
    with write_whole(path, text_mode=False) as file:
        file.write(data)


def _prediction_file(folder: Path, name: str) -> Path:
    return folder / 'preds' / f'{name}.json'


def _read_prediction(file: Path) -> dict | None:
    """A prediction; None if it is missing or damaged."""
    try:
        prediction = json.loads(file.read_text('utf-8'))
    except (OSError, ValueError, RecursionError):
        return None
    return prediction if is_prediction(prediction) else None


def _records(ledger: bytes) -> dict[str, dict]:
    """The records of a ledger by name; what is no record is passed over."""
    lines = JSONLIterator(
        io.StringIO(ledger.decode(errors='replace')), ignore_errors=True
    )
    return {line['name']: line for line in lines if _is_record(line)}


def _is_record(line: Any) -> bool:
    """Whether a line of the ledger is one that ``finish`` writes.

    A name must lead to files below the folder: neither absolute nor upwards.
    """
    try:
        name, details = Path(line['name']), line['details']
        size = details.get('size', [details.get('num_frames', 0)])
        return (
            not name.is_absolute()
            and '..' not in name.parts
            and '\0' not in str(name)
            and isinstance(line['signature'], str)
            and all(isinstance(number, int) for number in size)
            and len(size) == (2 if 'size' in details else 1)
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def frame_name(video: str, number: int) -> str:
    return f'{video}/{number:06d}'


def _differences(old: Any, new: Any, key: str = '') -> list[str]:
    """What changed between two JSON values, by dotted keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for name in sorted({*old, *new})
            for change in _differences(
                old.get(name), new.get(name), f'{key}.{name}'
            )
        ]
    if old == new:
        return []
    return [f'{key[1:]} was {_short(old)} and is {_short(new)}']


def _short(value: Any) -> str:
    text = 'not set' if value is None else str(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
