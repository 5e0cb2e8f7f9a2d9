"""What each choice at test time is worth, on held-out images.

Each choice is changed by itself, from what a checkpoint has now. The detector
and the features are computed once for each image and serve all choices.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet.structures import DetDataSample

from ..core import CLASS_SCORE_ALONE, BoxAscent
from ..models import EnergyDetector
from ..models.detectors import refine_detections
from ..models.detectors.refinement import to_original_frame
from .bootstrap import MatchedDetections, bootstrap_differences
from .placed_quality import POWERS
from .stages import Stage, used

NOW, PLAIN = 'as it is now', 'detector alone'
_STEPS = (1, 2, 4, 8)
_FACTORS = (0.5, 2.0)
_VOTES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Trial:
    """One change to how a model is used at test time.

    Attributes:
        name: What is shown.
        group: Of trials of one group at most one is chosen.
        density: Changes to the numbers of the density.
        ascent: Changes to the ascent.
        refinement: Changes to the stages.
    """

    name: str
    group: str
    density: Mapping[str, float] = field(default_factory=dict)
    ascent: Mapping[str, Any] = field(default_factory=dict)
    refinement: Mapping[str, Any] = field(default_factory=dict)

    def stage(self) -> Stage:
        """How a model is used in it."""
        return Stage(self.refinement, self.density, self.ascent)

    def joined(self, other: 'Trial') -> 'Trial':
        """Both changes."""
        if self.group == NOW:
            return other
        return Trial(
            f'{self.name}, {other.name}',
            'joined',
            {**self.density, **other.density},
            {**self.ascent, **other.ascent},
            {**self.refinement, **other.refinement},
        )


@dataclass(frozen=True)
class Worth:
    """What a trial is worth, in fractions.

    Attributes:
        figures: AP, AP50, AP75 and AP90.
        gain: Of each of these ``difference``, ``low`` and ``high``, beside
            the model as it is now.
    """

    figures: dict[str, float]
    gain: dict[str, dict[str, float]]

    @property
    def surely_pays(self) -> bool:
        """Whether the interval of the gain of AP lies above 0."""
        return bool(self.gain) and self.gain['AP']['low'] > 0


def trials_of(model: EnergyDetector) -> list[Trial]:
    """What can be changed; the first two are the model now, and without f.

    Args:
        model: With a fitted density.
    """
    density = model.energy_model.density
    off = dict(ascent=False, energy_nms=False, rank=False)
    trials = [Trial(NOW, NOW), Trial(PLAIN, PLAIN, refinement=off)]
    ascent = model.energy_model.ascent
    if isinstance(ascent, BoxAscent):
        trials += [
            Trial(f'{steps} steps', 'steps', ascent=dict(num_steps=steps))
            for steps in _STEPS
            if steps != ascent.num_steps
        ]
    asked = math.isfinite(density.temperature)
    if asked:
        trials += [
            Trial(
                f'temperature x {factor:g}',
                'temperature',
                dict(temperature=factor * density.temperature),
            )
            for factor in _FACTORS
        ]
        trials.append(
            Trial('f is not asked', 'temperature', dict(temperature=math.inf))
        )
    if math.isfinite(density.side_std):
        trials += [
            Trial(
                f'width of the prior x {factor:g}',
                'prior',
                dict(side_std=factor * density.side_std),
            )
            for factor in _FACTORS
        ]
        if asked:
            trials.append(Trial('no prior', 'prior', dict(side_std=math.inf)))
    if model.box_source.can_be_ordered:
        trials += [
            Trial(f'votes {share:g}', 'votes', dict(vote_share=share))
            for share in _VOTES
            if share != density.vote_share
        ]
        if asked:
            trials.append(
                Trial(
                    'NMS by log-density',
                    'ranking',
                    refinement=dict(energy_nms=True),
                )
            )
    # See docs/density.md: P takes the clusters into account.
    score = 'P' if density.weighs_clusters else 'score'
    trials += [
        Trial(
            f'{score} x quality ^ {power:g}' if power else f'{score} alone',
            'ranking',
            dict(quality_power=power),
        )
        for power in POWERS
        if power != density.quality_power
    ]
    if density.weighs_clusters:
        trials.append(
            Trial('class score in place of P', 'ranking', CLASS_SCORE_ALONE)
        )
    return trials


@torch.no_grad()
def detections_of_trials(
    model: EnergyDetector,
    batches: Iterable[dict],
    trials: Sequence[Trial],
) -> Iterator[tuple[DetDataSample, list]]:
    """Detections of each image under all trials.

    Args:
        model: In eval mode; it is as before at the end.
        batches: Of a test pipeline's loader.
        trials: Ways to use it.

    Yields:
        A sample of an image, and its detections in original pixels, one
        ``InstanceData`` for each trial.
    """
    source = model.box_source
    stages = [trial.stage() for trial in trials]
    for batch in batches:
        data = model.data_preprocessor(batch, False)
        samples = data['data_samples']
        found, pyramid, _ = model.find(
            data['inputs'], samples, source.can_be_ordered
        )
        test_cfg = source.test_cfg if source.can_be_ordered else None
        results = []
        for stage in stages:
            with used(model, stage):
                instances, _ = refine_detections(
                    model.energy_model,
                    model.refinement,
                    pyramid,
                    found,
                    test_cfg,
                )
            results.append(instances)
        for sample, *instances in zip(samples, *results):
            yield (
                sample,
                [to_original_frame(x, sample.metainfo) for x in instances],
            )


def worth_of(
    matched: Mapping[str, MatchedDetections], num_resamples: int = 300
) -> dict[str, Worth]:
    """What trials are worth, with intervals over the images.

    Args:
        matched: Detections of each trial by its name, NOW among them.
        num_resamples: Resamples of the bootstrap.
    """
    pairs = [(name, NOW) for name in matched if name != NOW]
    gains = bootstrap_differences(
        {name: [each] for name, each in matched.items()}, pairs, num_resamples
    )
    return {
        name: Worth(each.average_precision(), gains.get((name, NOW), {}))
        for name, each in matched.items()
    }


def choose(
    trials: Sequence[Trial], worth: Mapping[str, Worth], join: bool = True
) -> Trial:
    """The changes that surely pay by themselves, see ``Worth.surely_pays``.

    Args:
        trials: All of them.
        worth: Of each, by name.
        join: Join the best of each group. False gives the best of all.
    """
    paying = [
        trial
        for trial in trials
        if trial.group not in (NOW, PLAIN) and worth[trial.name].surely_pays
    ]
    # From the smallest gain to the largest: the last of a group remains.
    paying.sort(key=lambda each: worth[each.name].gain['AP']['difference'])
    if not join:
        return paying[-1] if paying else trials[0]
    best = {trial.group: trial for trial in paying}
    return functools.reduce(Trial.joined, best.values(), trials[0])
