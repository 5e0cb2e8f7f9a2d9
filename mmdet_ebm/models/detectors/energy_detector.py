"""Any mmdet detector with an energy model behind it."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import OptSampleList, SampleList
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import ConfigType, InstanceList, OptConfigType, OptMultiConfig
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor

from ...core import FixedBoxDensity
from ...ops import FeaturePyramid
from .box_sources import BOX_SOURCES, source_for
from .checkpoint_keys import rename_old_keys
from .feature_recorder import FeatureRecorder
from .refinement import (
    Refinement,
    refine_detections,
    to_original_frame,
)

# Coarser levels are for anchors larger than the images themselves; a box is
# pooled from these as from a two-stage detector's.
_COARSEST_STRIDE = 32
# Of the ascent; on the val images of three data sets four gained no more.
_STEPS_BEFORE_MEDIANS = 2


@dataclass(frozen=True)
class Detected:
    """What was found in a batch, in network-input pixels.

    Attributes:
        instances: Detections of each image after the stages, with the fields
            that :meth:`EnergyDetector.detect` names.
        plain: Detections of each image without any stage, if wanted.
        pyramid: The maps that the energy model worked on; ask it about other
            boxes with ``EnergyModel.logdensity_fn``.
        neck_maps: The detector's own maps, for what follows the boxes.
    """

    instances: InstanceList
    plain: InstanceList | None
    pyramid: FeaturePyramid
    neck_maps: Sequence[Tensor]


@MODELS.register_module()
class EnergyDetector(BaseDetector):
    """Refines the boxes of any detector with a feature pyramid.

    Test: the detector's boxes, with the means of their clusters -> gradient
    ascent on the density -> sides at their medians -> scores that follow the
    clusters and the expected quality; see :class:`Refinement` for what can be
    switched. A detector without class-wise NMS, as DETR and its kin, has no
    clusters. Two-stage detectors predict masks on the refined boxes. With all
    stages off it is the plain detector.

    Its state is that of the detector under ``detector.`` and the energy
    model's under ``energy_model.``. A checkpoint of the plain detector loads
    as it is.

    Args:
        detector: Config of any detector of mmdet.
        energy_model: Config of an ``EnergyModel``. What it leaves out is read
            from the detector: number of classes, channels and strides of the
            levels (those with strides up to 32). With a ``neck``, stages of
            the backbone come before a first level coarser than stride 4. A
            ``BoxAscent`` takes 2 steps where the medians of a prior's sides
            follow.
        refinement: Stages at test time, see :class:`Refinement`.
        features: Where the energy model's maps come from: 'neck', or the
            'encoder' of a transformer.
        box_source: Config of a ``BoxSource``; by default the newest registered
            one that suits the detector.
        freeze_detector: Train the energy model alone. The detector stays in
            eval mode and without gradients, and its losses are not computed.
            False trains both.
        data_preprocessor: Instead of the detector's own.
        init_cfg: mmengine's initialisation.

    Attributes:
        refinement: Can be set.

    Raises:
        ValueError: If the detector has no boxes or no suitable maps, or is to
            order by log-density what it does not offer.
    """

    def __init__(
        self,
        detector: ConfigType,
        energy_model: ConfigType,
        refinement: OptConfigType = None,
        features: str = 'neck',
        box_source: OptConfigType = None,
        freeze_detector: bool = True,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.detector = MODELS.build(detector)
        if data_preprocessor is None:
            self.data_preprocessor = self.detector.data_preprocessor
        if box_source is None:
            self.box_source = source_for(self.detector)
        else:
            self.box_source = BOX_SOURCES.build(
                dict(box_source, detector=self.detector)
            )
        self.recorder = FeatureRecorder(self.detector, features)
        self.refinement = Refinement(**(refinement or {}))
        self.energy_model = self._build_energy_model(energy_model)
        self._require_candidates()
        self.freeze_detector = freeze_detector
        self._said = False
        if freeze_detector:
            self.detector.requires_grad_(False)
        self._register_load_state_dict_pre_hook(rename_old_keys)

    # --------------------------------------------------------- construction

    def _build_energy_model(self, cfg: ConfigType) -> torch.nn.Module:
        """The energy model; what its config leaves out is the detector's."""
        cfg = {'type': 'EnergyModel', **cfg}
        head = {'type': 'EnergyHead', **(cfg.get('head') or {})}
        channels = None
        if cfg.get('neck') is not None:
            found = {}
            cfg.update(self._levels_for_neck(cfg))
        else:
            found = self._levels_to_pool(cfg, head)
            channels = found.pop('in_channels', None)
        for name, ours in (
            ('num_classes', self.box_source.num_classes),
            ('in_channels', channels),
        ):
            given = head.get(name, ours)
            if given is not None:
                head[name] = given
            elif name != 'in_channels' or cfg.get('neck') is None:
                raise ValueError(
                    f'{type(self.detector).__name__} has no box head that '
                    f'tells its {name}. If it predicts boxes, set '
                    f'model.energy_model.head.{name}'
                )
            if ours is not None and given != ours:
                raise ValueError(
                    f'the detector has {name}={ours} and '
                    f'model.energy_model.head.{name} is {given}. Set it to '
                    'the same number, or leave it out'
                )
        cfg['ascent'] = self._ascent_before_medians(cfg)
        return MODELS.build({**found, **cfg, 'head': head})

    def _ascent_before_medians(self, cfg: dict) -> dict:
        """The ascent's config; medians save steps, if there are any."""
        ascent = {'type': 'BoxAscent', **(cfg.get('ascent') or {})}
        density = cfg.get('density', 'fitted')
        has_prior = density == 'fitted' or math.isfinite(
            (density or {}).get('side_std', math.inf)
        )
        if (
            ascent['type'] == 'BoxAscent'
            and self.refinement.medians
            and has_prior
        ):
            ascent.setdefault('num_steps', _STEPS_BEFORE_MEDIANS)
        return ascent

    def _levels_to_pool(self, cfg: dict, head: dict) -> dict:
        """``in_channels``, ``featmap_strides`` and perhaps ``finest_scale``
        of the detector's own maps; nothing if all is set."""
        found = dict(self.box_source.levels or {})
        if not found:
            if 'in_channels' in head and 'featmap_strides' in cfg:
                return {}
            levels = [x for x in self.recorder.measure() if x.stage is None]
            channels = [level.channels for level in levels]
            if len(set(channels)) != 1:
                raise ValueError(
                    'the energy model pools from levels of equal channels, '
                    f'and those of {type(self.detector).__name__} have '
                    f'{channels}. Give it a pyramid of its own: '
                    "model.energy_model.neck=dict(type='EnergyNeck')"
                )
            self.recorder.levels = levels  # by rising stride
            found = dict(
                in_channels=channels[0],
                featmap_strides=tuple(level.stride for level in levels),
            )
        strides = found['featmap_strides']
        wanted = tuple(cfg.get('featmap_strides', strides))
        if wanted != strides[: len(wanted)]:
            raise ValueError(
                f"the detector's levels have strides {strides} and "
                f'model.energy_model.featmap_strides is {wanted}. Leave '
                'it out to take all of them, or name the first ones'
            )
        found['featmap_strides'] = _not_too_coarse(strides)
        return found

    def _levels_for_neck(self, cfg: dict) -> dict:
        """``neck`` and ``featmap_strides`` of a pyramid on the detector's
        maps, which are recorded from now on."""
        neck = {'type': 'EnergyNeck', **cfg['neck']}
        if 'in_channels' in neck and 'featmap_strides' in cfg:
            return dict(neck=neck)  # and the maps as the detector gives them
        # The first of a stride, if there are several.
        found = {x.stride: x for x in reversed(self.recorder.measure())}
        strides = tuple(sorted(found))
        wanted = tuple(cfg.get('featmap_strides', _not_too_coarse(strides)))
        if not wanted or wanted != tuple(sorted(set(wanted) & set(strides))):
            raise ValueError(
                f'the maps of {type(self.detector).__name__} have strides '
                f'{strides} and model.energy_model.featmap_strides is '
                f'{wanted}. Leave it out, or name some of them, rising'
            )
        levels = [found[stride] for stride in wanted]
        channels = tuple(level.channels for level in levels)
        given = tuple(neck.setdefault('in_channels', channels))
        if given != channels:
            raise ValueError(
                f'the maps of strides {wanted} have {channels} channels and '
                f'model.energy_model.neck.in_channels is {given}. Leave it '
                'out'
            )
        self.recorder.levels = levels
        return dict(neck=neck, featmap_strides=wanted)

    def _require_candidates(self) -> None:
        if self.refinement.energy_nms and not self.box_source.can_be_ordered:
            raise ValueError(
                f'{type(self.detector).__name__} has no class-wise NMS with '
                "nms=dict(type='nms', iou_threshold=...) whose candidates are "
                'known, so there is nothing to order by log-density: set '
                'model.refinement.energy_nms=False'
            )

    def train(self, mode: bool = True) -> 'EnergyDetector':
        """Set the mode; a frozen detector stays in eval mode."""
        super().train(mode)
        if self.freeze_detector:
            self.detector.eval()
        return self

    def init_weights(self) -> None:
        """Initialise what is trained; a frozen detector is loaded instead."""
        if self.freeze_detector and not (
            self.init_cfg or self.detector.init_cfg
        ):
            self.energy_model.init_weights()
        else:
            super().init_weights()

    # ------------------------------------------------------------- training

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """The energy model's loss, with the detector's if it is not frozen.

        Boxes marked as crowd or ignored are left out: they do not fit one
        object.
        """
        if self.freeze_detector:
            losses = {}
            with torch.no_grad():
                maps = self.recorder.run(
                    _quick_layout(batch_inputs), batch_data_samples
                )
        else:
            with self.recorder.recording() as record:
                losses = self.detector.loss(batch_inputs, batch_data_samples)
            maps = record.maps
        truth, _, metas = unpack_gt_instances(batch_data_samples)
        losses.update(
            self.energy_model.loss(
                maps,
                [get_box_tensor(each.bboxes) for each in truth],
                [each.labels for each in truth],
                _image_sizes(metas),
            )
        )
        return losses

    # ----------------------------------------------------------------- test

    def predict(
        self,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
        rescale: bool = True,
    ) -> SampleList:
        """Detections after the stages of ``refinement``.

        ``pred_instances`` carry, beside the detector's own fields, those that
        :meth:`detect` adds. With ``keep_plain`` samples have
        ``plain_instances`` too.
        """
        if not self.refinement.is_on:
            return self.detector.predict(
                batch_inputs, batch_data_samples, rescale
            )
        self._say_what_is_missing()
        found = self.detect(batch_inputs, batch_data_samples)
        metas = [sample.metainfo for sample in batch_data_samples]
        results = self.box_source.add_masks(
            found.neck_maps, found.instances, metas, rescale
        )
        plain = found.plain
        if rescale:  # the last step: all others work in network-input pixels
            results = list(map(to_original_frame, results, metas))
            plain = plain and list(map(to_original_frame, plain, metas))
        samples = self.add_pred_to_datasample(batch_data_samples, results)
        for sample, instances in zip(samples, plain or ()):
            sample.set_field(instances, 'plain_instances', dtype=InstanceData)
        return samples

    def _say_what_is_missing(self) -> None:
        """Say once what keeps refinement from its best."""
        if self._said:
            return
        density = self.energy_model.density
        if not (density.fitted or isinstance(density, FixedBoxDensity)):
            self._said = True
            print_log(
                'The density of this energy model was never fitted: boxes '
                'move cautiously. tools/fit_density.py fits it on held-out '
                'images; training does so by itself where there is a val '
                'split.',
                'current',
                logging.WARNING,
            )
        asks = self.refinement.asks_clusters(density)
        if asks and not self.box_source.can_be_ordered:
            self._said = True
            print_log(
                'The density asks the clusters that NMS throws away, and '
                f'{type(self.detector).__name__} shows none: it has no '
                "class-wise NMS with nms=dict(type='nms', iou_threshold=...). "
                'Fit the density again with the NMS that you use '
                '(tools/fit_density.py).',
                'current',
                logging.WARNING,
            )

    def detect(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> Detected:
        """The stages of ``refinement``, in network-input pixels.

        Returns:
            Detections without masks, with the fields that
            :func:`refine_detections` adds.
        """
        stages, source = self.refinement, self.box_source
        self._require_candidates()
        wanted = stages.energy_nms or stages.asks_clusters(
            self.energy_model.density
        )
        before_nms = wanted and source.can_be_ordered
        found, pyramid, neck_maps = self.find(
            batch_inputs, batch_data_samples, before_nms
        )
        instances, plain = refine_detections(
            self.energy_model,
            stages,
            pyramid,
            found,
            source.test_cfg if before_nms else None,
        )
        return Detected(instances, plain, pyramid, neck_maps)

    def find(
        self,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
        before_nms: bool,
    ) -> tuple[InstanceList, FeaturePyramid, Sequence[Tensor]]:
        """What the detector finds by itself, in network-input pixels.

        Args:
            batch_inputs: (N, C, H, W) images.
            batch_data_samples: Their meta information.
            before_nms: Give all candidates above the score threshold, of a
                detector that has class-wise NMS.

        Returns:
            Boxes of each image; the maps that the energy model works on; the
            detector's own maps.
        """
        source = self.box_source
        find = source.candidates if before_nms else source.detections
        with self.recorder.recording() as record:
            found = find(batch_inputs, batch_data_samples)
        pyramid = self.energy_model.pyramid(
            record.maps,
            _image_sizes([sample.metainfo for sample in batch_data_samples]),
        )
        return found, pyramid, record.neck_maps

    # ---------------------------------------------- the detector's own calls

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None
    ) -> tuple:
        """The detector's raw outputs."""
        return self.detector._forward(batch_inputs, batch_data_samples)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """The detector's feature maps."""
        return self.detector.extract_feat(batch_inputs)


def _quick_layout(batch_inputs: Tensor) -> Tensor:
    """Images in the memory layout that a frozen backbone is fastest in.

    On a CPU convolutions run a third faster channels last, and pooling then
    takes the maps as they are. Not for what goes on to mmcv's RoIAlign, which
    misreads such maps.
    """
    if batch_inputs.device.type != 'cpu' or batch_inputs.dim() != 4:
        return batch_inputs
    return batch_inputs.contiguous(memory_format=torch.channels_last)


def _not_too_coarse(strides: Sequence[int]) -> tuple[int, ...]:
    coarsest = max(_COARSEST_STRIDE, strides[0])
    return tuple(stride for stride in strides if stride <= coarsest)


def _image_sizes(metas: Sequence[dict]) -> list[tuple[int, int]]:
    """Height and width of each image inside its padding."""
    return [tuple(meta['img_shape'][:2]) for meta in metas]
