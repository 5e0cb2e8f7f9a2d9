# NCE+ energy model behind the frozen plain ATSS of this folder.
# Energy model, data and schedule are those of Faster R-CNN's.
_base_ = './faster-rcnn_r18-half_nce-plus_digits.py'
from mmengine.config import Config

model = dict(
    _delete_=True,
    type='EnergyDetector',
    detector=Config.fromfile(
        '{{ fileDirname }}/atss_r18-half_digits.py'
    ).model,
    energy_model=_base_.model.energy_model,
    refinement=dict(keep_plain=True),
)  # validation shows the gain
del Config
# What the plain config of this folder leaves behind.
load_from = 'work_dirs/atss_r18-half_digits/epoch_12.pth'
