"""Checkpoints in maskrcnn-benchmark's naming, for mmdet and this package.

That is how the authors of "How to Train Your Energy-Based Model for
Regression" published their detection model, and Detectron's Faster R-CNN
under it. A converted model computes the same (docs/published_weights.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from boltons.fileutils import atomic_save
from mmdet.datasets import CocoDataset
from torch import Tensor, nn

from ..checkpoint_files import load_checkpoint_file
from ..models import EnergyDetector
from ..models.detectors.checkpoint_keys import ENERGY_MODEL as ENERGY
from ..models.detectors.checkpoint_keys import rename_old_keys

# What names begin with, there and here.
RENAMED = {
    'backbone.body.stem.conv1.': 'backbone.conv1.',
    'backbone.body.stem.bn1.': 'backbone.bn1.',
    **{f'backbone.body.layer{i}.': f'backbone.layer{i}.' for i in range(1, 5)},
    **{
        f'backbone.fpn.fpn_inner{i}.': f'neck.lateral_convs.{i - 1}.conv.'
        for i in range(1, 5)
    },
    **{
        f'backbone.fpn.fpn_layer{i}.': f'neck.fpn_convs.{i - 1}.conv.'
        for i in range(1, 5)
    },
    'rpn.head.conv.': 'rpn_head.rpn_conv.',
    'rpn.head.cls_logits.': 'rpn_head.rpn_cls.',
    'rpn.head.bbox_pred.': 'rpn_head.rpn_reg.',
    'roi_heads.box.feature_extractor.fc6.': 'roi_head.bbox_head.shared_fcs.0.',
    'roi_heads.box.feature_extractor.fc7.': 'roi_head.bbox_head.shared_fcs.1.',
    'roi_heads.box.predictor.cls_score.': 'roi_head.bbox_head.fc_cls.',
    'roi_heads.box.predictor.bbox_pred.': 'roi_head.bbox_head.fc_reg.',
    'roi_heads.iou.feature_extractor.fc6.': ENERGY + 'head.shared_fcs.0.',
    'roi_heads.iou.feature_extractor.fc7.': ENERGY + 'head.shared_fcs.2.',
    'roi_heads.iou.predictor.iou_pred.': ENERGY + 'head.fc_logdensity.',
}
ANCHORS = 'rpn.anchor_generator.cell_anchors.'


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Attributes:
        state_dict: The weights by the names of an ``EnergyDetector``; of the
            plain detector if there is no energy model.
        used: The name that each tensor got, by its old one.
        changed: What was changed in tensors, by old name.
        dropped: Why tensors were left out, by old name.
    """

    state_dict: dict[str, Tensor]
    used: dict[str, str]
    changed: dict[str, str]
    dropped: dict[str, str]

    @property
    def has_energy(self) -> bool:
        """Whether there is an energy model beside the detector."""
        return any(key.startswith(ENERGY) for key in self.state_dict)


def convert_state_dict(
    source: Mapping[str, Tensor], model: EnergyDetector
) -> Conversion:
    """Rename and rearrange all weights for a model, or refuse.

    Classes: background is first there. In mmdet it is last among the scores
    and has neither deltas nor energies. Frozen batch norm: it divides by the
    root of the variance there; mmdet adds an epsilon to the variance, which
    the converted scale makes up for.

    Args:
        source: Tensors by name, with or without the prefix ``module.``.
        model: Built from the matching config. Its names and shapes are what
            must come out; its energy model may be missing altogether.

    Raises:
        ValueError: If a tensor is missing, unknown, misshapen or not finite.
    """
    source = {_bare(key): value for key, value in source.items()}
    used, unknown, anchors = {}, [], []
    for key, value in source.items():
        prefix = next((p for p in RENAMED if key.startswith(p)), None)
        if not isinstance(value, Tensor):
            unknown.append(f'{key} ({type(value).__name__})')
        elif key.startswith(ANCHORS):
            anchors.append(key)
        elif prefix is None:
            unknown.append(key)
        else:
            used[key] = RENAMED[prefix] + key[len(prefix) :]
    expected = {
        key: value
        for key, value in model.detector.state_dict().items()
        if not key.endswith('num_batches_tracked')
    }
    if any(key.startswith(ENERGY) for key in used.values()):
        for key, value in model.energy_model.state_dict().items():
            if not key.endswith('_extra_state'):  # no tensor of a network's
                expected[ENERGY + key] = value
    came_from = {new: old for old, new in used.items()}
    missing = [_old_name(key) for key in expected if key not in came_from]
    unknown += [old for old, new in used.items() if new not in expected]
    if missing or unknown:
        raise ValueError(
            '; '.join(
                [_listed('there is no', missing)] * bool(missing)
                + [_listed('there is no place for', unknown)] * bool(unknown)
            )
        )
    not_finite = [key for key in used if not source[key].isfinite().all()]
    if not_finite:
        raise ValueError(_listed('not finite:', not_finite))

    state, changed = {}, {}
    for new, old in came_from.items():
        state[new], change = _rearranged(new, source[old])
        if change:
            changed[old] = change
    for name, module in model.detector.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            variance = state[f'{name}.running_var']
            if not (variance > 0).all():
                raise ValueError(
                    f'{came_from[name + ".running_var"]} is not positive'
                )
            scale = (1 + module.eps / variance.double()).sqrt()
            weight = f'{name}.weight'
            state[weight] = (state[weight] * scale).float()
            changed[came_from[weight]] = (
                "times sqrt(1 + eps / variance), as mmdet's norm has an eps"
            )
            state[f'{name}.num_batches_tracked'] = torch.tensor(0)
    first = f'{ENERGY}head.shared_fcs.0.weight'
    if (
        first in state
        and state[first].shape == expected[first].flatten(1).shape
    ):
        state[first] = state[first].view_as(expected[first])
    misshapen = [
        f'{came_from[new]} as {tuple(state[new].shape)} for '
        f'{new} of {tuple(value.shape)}'
        for new, value in expected.items()
        if state[new].shape != value.shape
    ]
    if misshapen:
        raise ValueError(_listed('of another shape:', misshapen))
    _check_anchors({key: source[key] for key in anchors}, model)
    if first in state:
        rename_old_keys(state)
    return Conversion(
        state,
        used,
        changed,
        dict.fromkeys(anchors, 'computed; equal to those of the config'),
    )


def convert_checkpoint(
    path: str | Path, out: str | Path, model: EnergyDetector
) -> Conversion:
    """Convert a file. Nothing is written unless all of it fits.

    Args:
        path: A checkpoint of maskrcnn-benchmark: the weights, or a dictionary
            with them under ``model``.
        out: File to write, for mmengine.
        model: See :func:`convert_state_dict`; the weights are tried in it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such checkpoint, or not a whole one.
    """
    loaded = load_checkpoint_file(path)
    others = (
        {key: 'state of the old training' for key in loaded if key != 'model'}
        if 'model' in loaded
        else {}
    )
    try:
        conversion = convert_state_dict(loaded.get('model', loaded), model)
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f'{path} is not a Faster R-CNN with FPN of maskrcnn-benchmark '
            f'that fits the config: {error}'
        ) from error
    missing, unexpected = model.load_state_dict(
        conversion.state_dict, strict=conversion.has_energy
    )
    assert not unexpected and all(key.startswith(ENERGY) for key in missing)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with atomic_save(out, overwrite_part=True) as file:
        torch.save(
            dict(
                state_dict=conversion.state_dict,
                meta=dict(
                    converted_from=Path(path).name,
                    dataset_meta=_classes(model),
                ),
            ),
            file,
        )
    return Conversion(
        conversion.state_dict,
        conversion.used,
        conversion.changed,
        {**conversion.dropped, **others},
    )


def _rearranged(name: str, value: Tensor) -> tuple[Tensor, str]:
    """A tensor with its rows where mmdet has them, and what was done."""
    if name.startswith('roi_head.bbox_head.fc_cls.'):
        return value.roll(-1, 0), 'background moved from first to last'
    if name.startswith('roi_head.bbox_head.fc_reg.'):
        return value[4:].clone(), "background's four rows left out"
    if name.startswith(f'{ENERGY}head.fc_logdensity.'):
        return value[1:].clone(), "background's row left out"
    return value.clone(), ''


def _check_anchors(anchors: dict[str, Tensor], model: EnergyDetector) -> None:
    for key, value in anchors.items():
        level = int(key[len(ANCHORS) :])
        ours = model.detector.rpn_head.prior_generator.base_anchors
        if (
            level >= len(ours)
            or value.shape != ours[level].shape
            or not (torch.allclose(value.float(), ours[level]))
        ):
            raise ValueError(
                f'{key} has the anchors {value.tolist()}, the config '
                f'{ours[level].tolist() if level < len(ours) else "none"}'
            )


def _classes(model: EnergyDetector) -> dict:
    classes = CocoDataset.METAINFO['classes']
    return (
        dict(classes=classes)
        if len(classes) == model.detector.roi_head.bbox_head.num_classes
        else {}
    )


def _bare(key: str) -> str:
    return key[len('module.') :] if key.startswith('module.') else key


def _old_name(key: str) -> str:
    for old, new in RENAMED.items():
        if key.startswith(new):
            return old + key[len(new) :]
    return key


def _listed(what: str, names: list[str]) -> str:
    more = f' and {len(names) - 4} more' if len(names) > 4 else ''
    return f'{what} {", ".join(names[:4])}{more}'
