"""Feature maps of any detector, without knowing how it computes them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

SOURCES = ('neck', 'encoder')
# Of the finest stage of a backbone that is worth its cost.
_FINEST_STRIDE = 4
# Sides of the images to measure on; some detectors refuse the first.
_SIDES = (256, 512)


@dataclass(frozen=True)
class Level:
    """Where a map comes from.

    Attributes:
        stride: Network-input pixels per cell.
        channels: Of the map.
        index: Of the map among those that its module gives.
        stage: Name of the module in the backbone, None for the source itself.
    """

    stride: int
    channels: int
    index: int
    stage: str | None = None


@dataclass
class Recording:
    """What passed while a detector ran.

    Attributes:
        levels: What ``maps`` are, None for all of the source.
        neck_maps: Maps (N, C, H_l, W_l) of the neck.
        memory: (N, sum of H_l W_l, C) tokens of the encoder, if recorded.
        stages: What modules of the backbone gave, by name.
    """

    levels: Sequence[Level] | None = None
    neck_maps: Sequence[Tensor] = ()
    memory: Tensor | None = None
    stages: dict[str, Any] = field(default_factory=dict)

    @property
    def maps(self) -> Sequence[Tensor]:
        """Maps (N, C_l, H_l, W_l), those of the source as they were recorded
        last in the network."""
        if self.levels is None:
            return self._source_maps()
        given: Mapping[str | None, Sequence[Tensor]] = {
            None: self._source_maps(),
            **{name: _maps_in(out) for name, out in self.stages.items()},
        }
        return [given[level.stage][level.index] for level in self.levels]

    def _source_maps(self) -> Sequence[Tensor]:
        if self.memory is None:
            return self.neck_maps
        sizes = [m.shape[-2:] for m in self.neck_maps]
        pieces = self.memory.split([h * w for h, w in sizes], dim=1)
        return [
            piece.transpose(1, 2).unflatten(2, size)
            for piece, size in zip(pieces, sizes)
        ]


class FeatureRecorder:
    """The maps that a detector's modules give while it runs.

    Args:
        detector: Built by mmdet.
        source: 'neck' for the neck's maps (the backbone's without a neck),
            'encoder' for those of a transformer's encoder, which has one
            token for each cell of the neck's maps.

    Attributes:
        levels: Which maps are given, some of those that :meth:`measure`
            found. None, as it is at first, for all of the source.

    Raises:
        ValueError: If there is no such source.
    """

    def __init__(self, detector: nn.Module, source: str = 'neck') -> None:
        if source not in SOURCES:
            raise ValueError(
                f'features must be one of {SOURCES}, got {source!r}'
            )
        if source == 'encoder' and not hasattr(detector, 'forward_encoder'):
            raise ValueError(
                f"features='encoder' needs a transformer, and "
                f'{type(detector).__name__} has no encoder; use '
                "features='neck'"
            )
        self.levels: Sequence[Level] | None = None
        self._detector = detector
        self._source = source
        # Without a backbone of that name, there are no stages to find.
        self._backbone = getattr(detector, 'backbone', nn.Identity())
        self._neck = (
            detector.neck
            if getattr(detector, 'neck', None) is not None
            else detector.backbone
        )

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Record while the detector runs inside this block."""
        recording = Recording(self.levels)
        modules = dict(neck_maps=self._neck)
        if self._source == 'encoder':
            modules['memory'] = self._detector.encoder
        handles = [
            module.register_forward_hook(
                lambda _, __, out, name=name: setattr(recording, name, out)
            )
            for name, module in modules.items()
        ]
        names = {level.stage for level in self.levels or () if level.stage}
        try:
            with _outputs_of(self._backbone, names) as stages:
                recording.stages = stages
                yield recording
        finally:
            for handle in handles:
                handle.remove()

    def run(self, inputs: Tensor, samples: list) -> Sequence[Tensor]:
        """The maps, computing no more than they need."""
        with self.recording() as record:
            x = self._detector.extract_feat(inputs)
            if self._source == 'encoder':
                self._detector.forward_encoder(
                    **self._detector.pre_transformer(x, samples)[0]
                )
        return record.maps

    @torch.no_grad()
    def measure(self) -> list[Level]:
        """All levels that there are, from an empty image.

        They are the neck's, and for each power of two below their first
        stride, from 4 on, the last stage of the backbone that has it.

        Returns:
            By rising stride.

        Raises:
            ValueError: If the detector refuses such an image.
        """
        detector = self._detector
        training = detector.training
        weight = next(detector.parameters())
        mean = getattr(detector.data_preprocessor, 'mean', None)
        colours = 3 if mean is None else len(mean)
        stages = _stages_of(self._backbone)
        detector.eval()
        try:
            for side in _SIDES:
                image = weight.new_zeros(1, colours, side, side)
                try:
                    with _outputs_of(self._backbone, stages) as outputs:
                        with self.recording() as record:
                            detector.extract_feat(image)
                    break
                except RuntimeError as error:
                    refusal = error
            else:
                raise ValueError(
                    f'{type(detector).__name__} could not be run on images '
                    f'of {_SIDES} pixels squared to see its levels '
                    f'({refusal}); set '
                    'model.energy_model.featmap_strides=(...) and '
                    'model.energy_model.head.in_channels (neck.in_channels '
                    'for an energy model with a neck)'
                ) from refusal
        finally:
            detector.train(training)
        found = _levels_in(record.neck_maps, side)
        finest = min(level.stride for level in found)
        finer: dict[int, Level] = {}
        for name, output in outputs.items():  # in the order of their runs
            for level in _levels_in(_maps_in(output), side, name):
                stride = level.stride
                if _FINEST_STRIDE <= stride < finest and _is_power(stride):
                    finer[stride] = level
        return sorted(
            [*finer.values(), *found], key=lambda level: level.stride
        )


def _stages_of(backbone: nn.Module) -> list[str]:
    """Names of the modules that may be stages of a backbone.

    They are its children, and those of lists and sequences among them, which
    may be run one by one.
    """
    names = []
    for name, child in backbone.named_children():
        names.append(name)
        if isinstance(child, nn.ModuleList | nn.Sequential):
            names += [f'{name}.{inner}' for inner in _stages_of(child)]
    return names


@contextmanager
def _outputs_of(
    parent: nn.Module, names: Sequence[str] | set[str]
) -> Iterator[dict[str, Any]]:
    """What the named modules give in this block, by their last runs."""
    outputs: dict[str, Any] = {}

    def keep(name: str, output: Any) -> None:
        outputs.pop(name, None)  # the order is that of the last runs
        outputs[name] = output

    handles = [
        parent.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: keep(name, output)
        )
        for name in names
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _maps_in(output: Any) -> list[Tensor]:
    """The maps (N, C, H, W) in what a module gives.

    They are such tensors, or, as transformers have them, tokens (N, H W, C)
    followed by H and W.
    """
    if isinstance(output, Tensor):
        return [output] if output.dim() == 4 else []
    if not isinstance(output, list | tuple):
        return []
    maps = []
    for item, following in zip(output, [*output[1:], None]):
        if not isinstance(item, Tensor) or item.dim() != 3:
            maps += _maps_in(item)
        elif (
            isinstance(following, list | tuple)
            and len(following) == 2
            and following[0] * following[1] == item.shape[1]
        ):
            maps.append(item.transpose(1, 2).unflatten(2, tuple(following)))
    return maps


def _levels_in(
    maps: Sequence[Tensor], side: int, stage: str | None = None
) -> list[Level]:
    """The levels that maps of an image of ``side`` squared belong to."""
    return [
        Level(side // m.shape[-1], m.shape[1], index, stage)
        for index, m in enumerate(maps)
        # Not a vector with two more dimensions.
        if 0 < m.shape[-1] == m.shape[-2]
    ]


def _is_power(number: int) -> bool:
    """Whether it is a power of two."""
    return number & (number - 1) == 0
