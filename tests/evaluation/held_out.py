"""A small model and held-out images whose annotations it nearly finds."""

import copy

import torch
from mmengine.structures import InstanceData

from ..small_models import (
    batch,
    build,
    detect_everything,
    energy_model_cfg,
)


def fittable_model():
    cfg = energy_model_cfg()
    cfg.energy_model.density = 'fitted'
    model = detect_everything(build(cfg)).eval()
    torch.nn.init.normal_(model.energy_model.head.fc_logdensity.weight)
    model.detector.roi_head.test_cfg.max_per_img = 5
    return model


def batches(model):
    """Annotations near what the detector finds, in original pixels."""
    inputs, samples = batch()
    with torch.no_grad():
        found = model.detector.predict(
            inputs.clone(), copy.deepcopy(samples), rescale=True
        )
    for sample, one in zip(samples, found):
        truth = one.pred_instances
        sample.gt_instances = InstanceData(
            bboxes=truth.bboxes + 0.5, labels=truth.labels
        )
    return [dict(inputs=inputs, data_samples=samples)]


class Passes(torch.nn.Module):
    """A preprocessor for what is preprocessed already."""

    def forward(self, data, training=False):
        return dict(data, data_samples=copy.deepcopy(data['data_samples']))
