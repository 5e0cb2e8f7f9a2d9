# The control: the plain detector trained on for as long as an energy model
# takes, in wall time. Refinement is worth its training only if it beats this.
_base_ = './yolox-nano_nce-plus_photos.py'
model = dict(_delete_=True, **_base_.model.detector)
max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
# The rate at the end of the detector's own training, for 16 photos a step.
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(
        type='SGD', lr=1.25e-4, momentum=0.9, weight_decay=5e-4, nesterov=True
    ),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
        eta_min=1e-5,
    ),
]
