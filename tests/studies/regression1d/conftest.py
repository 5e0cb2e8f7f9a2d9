"""Plain networks and members of an ensemble with equal parameters."""

import torch

from studies.regression1d.networks import EnsembleNetwork, PlainNetwork


def pairs(network, model, plain):
    """Name, parameter of an ensemble's model and the plain network's."""
    for name, parameter in network.named_parameters():
        layer, kind = name.rsplit('_', 1)
        own = getattr(getattr(plain, layer), kind)
        yield name, parameter[model].view_as(own), own


@torch.no_grad()
def ensemble_of(plain_networks):
    """An ensemble with copies of the parameters of plain networks."""
    width = plain_networks[0].x1.out_features
    ensemble = EnsembleNetwork(len(plain_networks), width)
    for model, plain in enumerate(plain_networks):
        for _, member, own in pairs(ensemble, model, plain):
            member.copy_(own)
    return ensemble


@torch.no_grad()
def member_of(ensemble, model):
    """A plain network with copies of the parameters of a model."""
    plain = PlainNetwork(ensemble.x1_weight.shape[1])
    for _, member, own in pairs(ensemble, model, plain):
        own.copy_(member)
    return plain
