# What every small, CPU-sized experiment of this project shares.
_base_ = 'mmdet::_base_/default_runtime.py'
custom_imports = dict(
    imports=['mmdet_ebm.models', 'mmdet_ebm.evaluation', 'mmdet_ebm.engine'],
    allow_failed_imports=False,
)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=1, max_keep_ckpts=1, save_best='coco/bbox_mAP'),
)
# Fork is safe for CPU loaders; OpenCV threads would compete with torch's.
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(opencv_num_threads=0))
randomness = dict(seed=0)
