"""From a track to a pair of patches: the template and where to search.

mmdet's ``PackTrackInputs`` comes last: a pair is a clip of two frames.
Randomness is numpy's global one, as in mmdet's transforms.
"""

import warnings

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from ...tracking import Region, read_frame


@TRANSFORMS.register_module()
class SamplePair(BaseTransform):
    """Two frames of a track in which the target is present.

    Adds ``img_path`` and ``boxes`` of both, and ``img_id``. A track of one
    frame gives it twice.

    Args:
        max_gap: Frames that lie between the two at most, as the track counts
            them.
    """

    def __init__(self, max_gap: int = 200) -> None:
        self.max_gap = max_gap

    def transform(self, results: dict) -> dict:
        """Draw the pair."""
        boxes = results['boxes']
        present = np.flatnonzero(np.isfinite(boxes).all(1))
        first = np.random.choice(present)
        near = present[np.abs(present - first) <= self.max_gap]
        others = near[near != first]
        second = np.random.choice(others) if len(others) else first
        pair = [int(first), int(second)]
        return dict(
            video_name=results['video_name'],
            img_path=[results['frames'][t] for t in pair],
            img_id=pair,
            boxes=boxes[pair],
        )


@TRANSFORMS.register_module()
class LoadPair(BaseTransform):
    """Read the images of ``img_path`` into ``img``.

    A damaged file is named in a warning and gives None: mmengine's data sets
    draw another item then.
    """

    def transform(self, results: dict) -> dict | None:
        """Read them."""
        images = []
        for path in results['img_path']:
            image = read_frame(path)
            if image is None:
                warnings.warn(f'left out: {path}: no image', stacklevel=2)
                return None
            images.append(image)
        return dict(results, img=images)


@TRANSFORMS.register_module()
class CropPair(BaseTransform):
    """Patches around the targets: exact for the template, jittered to search.

    Adds ``gt_bboxes``, one box (1, 4) in each patch.

    Args:
        size: Side of the patches, in pixels.
        context: Side of a region over the root of the target's area.
        shift: Largest shift of the searched region along x and y, in roots
            of the target's area.
        log_scale: Largest logarithm of the factor on its size.
        log_aspect: Largest logarithm of the factor on its width over height.
    """

    def __init__(
        self,
        size: int,
        context: float,
        shift: float = 0.5,
        log_scale: float = 0.2,
        log_aspect: float = 0.1,
    ) -> None:
        self.size = size
        self.context = context
        self.shift = shift
        self.log_scale = log_scale
        self.log_aspect = log_aspect

    def transform(self, results: dict) -> dict:
        """Cut both."""
        scale, aspect = (
            np.random.uniform(-1, 1) * most
            for most in (self.log_scale, self.log_aspect)
        )
        jitter = dict(
            shift=np.random.uniform(-1, 1, 2) * self.shift,
            log_scale=(scale + aspect / 2, scale - aspect / 2),
        )
        regions = [
            Region.around(box, self.context, self.size, **options)
            for box, options in zip(results['boxes'], ({}, jitter))
        ]
        return dict(
            results,
            img=[r.cut(image) for r, image in zip(regions, results['img'])],
            gt_bboxes=[
                r.to_patch(box)[None].astype(np.float32)
                for r, box in zip(regions, results['boxes'])
            ],
        )


@TRANSFORMS.register_module()
class JitterPair(BaseTransform):
    """Mirror and grey both patches alike; light and blur each by itself.

    Args:
        flip: Probability of a mirrored pair.
        grey: Probability of a pair without colours.
        light: Largest relative change of contrast, and of brightness over
            the range of pixel values.
        blur: Probability that a patch is blurred along x or y, as by motion.
    """

    def __init__(
        self,
        flip: float = 0.5,
        grey: float = 0.1,
        light: float = 0.2,
        blur: float = 0.1,
    ) -> None:
        self.flip = flip
        self.grey = grey
        self.light = light
        self.blur = blur

    def transform(self, results: dict) -> dict:
        """Change both."""
        images, boxes = results['img'], results['gt_bboxes']
        if np.random.rand() < self.flip:
            width = images[0].shape[1]
            images = [image[:, ::-1] for image in images]
            boxes = [
                np.stack(
                    [width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]]
                ).T.astype(np.float32)
                for b in boxes
            ]
        if np.random.rand() < self.grey:
            images = [
                cv2.cvtColor(
                    cv2.cvtColor(image, cv2.COLOR_BGR2GRAY),
                    cv2.COLOR_GRAY2BGR,
                )
                for image in images
            ]
        return dict(
            results,
            img=[self._changed(image) for image in images],
            gt_bboxes=boxes,
        )

    def _changed(self, image: np.ndarray) -> np.ndarray:
        if np.random.rand() < self.blur:
            length = np.random.randint(2, 10)
            kernel = (length, 1) if np.random.rand() < 0.5 else (1, length)
            image = cv2.blur(np.ascontiguousarray(image), kernel)
        contrast, brightness = np.random.uniform(-1, 1, 2) * self.light
        changed = image * (1 + contrast) + 255 * brightness
        return np.clip(changed, 0, 255).astype(np.uint8)
