# The control: the plain detector trained on for as long as an energy model
# takes, in wall time. Refinement is worth its training only if it beats this.
_base_ = './atss_r18-half_digits.py'
load_from = 'work_dirs/atss_r18-half_digits/epoch_12.pth'
max_epochs = 24
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = _base_.param_scheduler
param_scheduler[1].T_max = max_epochs
