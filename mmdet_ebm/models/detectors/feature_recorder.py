"""Feature maps of any detector, without knowing how it computes them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SOURCES = ('neck', 'encoder')


@dataclass
class Recording:
    """What passed while a detector ran.

    Attributes:
        neck_maps: Maps (N, C, H_l, W_l) of the neck.
        memory: (N, sum of H_l W_l, C) tokens of the encoder, if recorded.
    """

    neck_maps: Sequence[Tensor] = ()
    memory: Tensor | None = None

    @property
    def maps(self) -> Sequence[Tensor]:
        """Maps (N, C, H_l, W_l) of what was recorded last in the network."""
        if self.memory is None:
            return self.neck_maps
        sizes = [m.shape[-2:] for m in self.neck_maps]
        pieces = self.memory.split([h * w for h, w in sizes], dim=1)
        return [
            piece.transpose(1, 2).unflatten(2, size)
            for piece, size in zip(pieces, sizes)
        ]


class FeatureRecorder:
    """The maps that a detector's neck, or encoder, gives while it runs.

    Args:
        detector: Built by mmdet.
        source: 'neck' for the neck's maps (the backbone's without a neck),
            'encoder' for those of a transformer's encoder, which has one
            token for each cell of the neck's maps.

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
        self._detector = detector
        self._source = source
        self._neck = (
            detector.neck
            if getattr(detector, 'neck', None) is not None
            else detector.backbone
        )

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Record while the detector runs inside this block."""
        recording = Recording()
        modules = dict(neck_maps=self._neck)
        if self._source == 'encoder':
            modules['memory'] = self._detector.encoder
        handles = [
            module.register_forward_hook(
                lambda _, __, out, name=name: setattr(recording, name, out)
            )
            for name, module in modules.items()
        ]
        try:
            yield recording
        finally:
            for handle in handles:
                handle.remove()

    def run(self, inputs: Tensor, samples: list) -> Sequence[Tensor]:
        """The source's maps, computing no more than they need."""
        with self.recording() as record:
            x = self._detector.extract_feat(inputs)
            if self._source == 'encoder':
                self._detector.forward_encoder(
                    **self._detector.pre_transformer(x, samples)[0]
                )
        return record.maps

    @torch.no_grad()
    def measure(self, side: int = 256) -> dict:
        """Channels and strides of the neck's maps, from an empty image.

        Args:
            side: Of the image, in pixels.

        Returns:
            ``in_channels`` and ``featmap_strides``.

        Raises:
            ValueError: If the detector refuses such an image, or its levels
                have different channels.
        """
        detector = self._detector
        training = detector.training
        weight = next(detector.parameters())
        mean = getattr(detector.data_preprocessor, 'mean', None)
        colours = 3 if mean is None else len(mean)
        detector.eval()
        try:
            with self.recording() as record:
                detector.extract_feat(weight.new_zeros(1, colours, side, side))
        except RuntimeError as error:
            raise ValueError(
                f'{type(detector).__name__} could not be run on an image of '
                f'{side} x {side} pixels to see its levels ({error}); set '
                'model.energy_model.featmap_strides=(...) and '
                'model.energy_model.head.in_channels'
            ) from error
        finally:
            detector.train(training)
        channels = [m.shape[1] for m in record.neck_maps]
        if len(set(channels)) != 1:
            raise ValueError(
                'the energy model pools from levels of equal channels, and '
                f'those of {type(detector).__name__} have {channels}'
            )
        strides = tuple(side // m.shape[-1] for m in record.neck_maps)
        return dict(in_channels=channels[0], featmap_strides=strides)
