"""MobileNetV2 up to the last map that is asked for."""

from collections.abc import Sequence

from mmdet.models.backbones import MobileNetV2
from mmdet.registry import MODELS
from torch import nn


@MODELS.register_module()
class MobileNetV2Stem(MobileNetV2):
    """mmdet's ``MobileNetV2`` without the stages that nobody reads.

    It takes mmdet's weights, and those of torchvision, whose tensors have
    other names and the same order.

    Args:
        out_indices: Stages to give maps of; strides of stages 1 to 5 are 4,
            8, 16, 16 and 32.
        frozen: Whether no weight and no statistic ever changes.
        **kwargs: Of mmdet's.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (2, 4),
        frozen: bool = True,
        **kwargs,
    ) -> None:
        last = max(out_indices)
        super().__init__(
            out_indices=tuple(out_indices),
            frozen_stages=last + 1 if frozen else -1,
            norm_eval=frozen,
            **kwargs,
        )
        for name in self.layers[last + 1 :]:
            delattr(self, name)
        del self.layers[last + 1 :]
        self._freeze_stages()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        theirs = [name for name in state_dict if name.startswith('features.')]
        if not prefix and theirs:
            ours = nn.Module.state_dict(self)
            for new, old in zip(ours, theirs):
                if ours[new].shape != state_dict[old].shape:
                    raise ValueError(
                        'the weights are not those of a MobileNetV2 of '
                        f'width {self.widen_factor}: {old} has the shape '
                        f'{tuple(state_dict[old].shape)}'
                    )
                state_dict[new] = state_dict.pop(old)
            for name in theirs[len(ours) :]:
                del state_dict[name]
            for name in ('classifier.1.weight', 'classifier.1.bias'):
                state_dict.pop(name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
