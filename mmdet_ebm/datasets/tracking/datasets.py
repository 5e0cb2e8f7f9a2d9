"""Tracks to train on: of videos, and of the objects of still images."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset

from ...tracking import find_tracks


class _Tracks(BaseDataset):
    """Items are tracks: ``video_name``, ``frames`` and ``boxes``.

    ``frames`` are paths of T images, ``boxes`` (T, 4) float32 corners, NaN
    where the target is absent.
    """

    METAINFO = dict(classes=('target',))


@DATASETS.register_module()
class SOTFolderDataset(_Tracks):
    """The sequences of a benchmark's folder.

    Damaged sequences are named in a warning and left out.

    Args:
        data_root: The folder.
        layout: One of ``mmdet_ebm.tracking.LAYOUTS``: 'otb', 'lasot',
            'got10k', 'trackingnet', 'uav123' or 'davis'.
        names: Only these sequences.
        exclude: Not these sequences.
        **kwargs: Of mmengine's ``BaseDataset``, ``pipeline`` above all.
    """

    def __init__(
        self,
        data_root: str,
        layout: str = 'otb',
        names: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        **kwargs,
    ) -> None:
        self.layout = layout
        self.names = names
        self.exclude = frozenset(exclude)
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Find the tracks."""
        return [
            dict(
                video_name=track.name,
                frames=[str(frame) for frame in track.frames],
                boxes=track.boxes.astype(np.float32),
            )
            for track in find_tracks(self.data_root, self.layout, self.names)
            if track.name not in self.exclude
        ]


@DATASETS.register_module()
class SOTFrameDataset(SOTFolderDataset):
    """Each frame of the sequences as an item, to run a tracker through.

    Items have ``img_path``, ``video_name``, ``frame_id`` and ``gt_bboxes``,
    one box or, where the target is absent, none. Arguments are those of
    :class:`SOTFolderDataset`.
    """

    def load_data_list(self) -> list[dict]:
        """Find the frames, one sequence after the other."""
        return [
            dict(
                img_path=path,
                img_id=number,
                video_name=track['video_name'],
                frame_id=number,
                gt_bboxes=box[None][np.isfinite(box).all(keepdims=True)],
            )
            for track in super().load_data_list()
            for number, (path, box) in enumerate(
                zip(track['frames'], track['boxes'])
            )
        ]


@DATASETS.register_module()
class DetPairDataset(_Tracks):
    """Each object of a detection set as a track of one frame.

    Two different views of the image make a pair. Crowds are left out.

    Args:
        data_root: Folder of the set.
        ann_file: Annotations in COCO's format, in that folder.
        data_prefix: Folder of the images, as ``dict(img=...)``.
        min_size: Least root of an object's area, in pixels.
        max_share: Largest share of its image that an object may cover.
        **kwargs: Of mmengine's ``BaseDataset``, ``pipeline`` above all.
    """

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        data_prefix: dict | None = None,
        min_size: float = 24.0,
        max_share: float = 0.5,
        **kwargs,
    ) -> None:
        self.min_size = min_size
        self.max_share = max_share
        super().__init__(
            data_root=data_root,
            ann_file=ann_file,
            data_prefix=data_prefix or dict(img='images/'),
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Read the annotations."""
        content = json.loads(Path(self.ann_file).read_text())
        images = {image['id']: image for image in content['images']}
        items = []
        for annotation in content['annotations']:
            image = images[annotation['image_id']]
            x, y, w, h = annotation['bbox']
            most = self.max_share * image['width'] * image['height']
            if (
                annotation.get('iscrowd', 0)
                or min(w, h) <= 0
                or not self.min_size**2 <= w * h <= most
            ):
                continue
            items.append(
                dict(
                    video_name=f'{image["file_name"]}#{annotation["id"]}',
                    frames=[
                        str(Path(self.data_prefix['img'], image['file_name']))
                    ],
                    boxes=np.array([[x, y, x + w, y + h]], np.float32),
                )
            )
        return items
