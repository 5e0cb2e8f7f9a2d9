# The model that fits the authors' published checkpoints, in Detectron's
# conventions, after tools/convert_checkpoint.py. docs/published_weights.md
# says what differs.
_base_ = '../coco/faster-rcnn_r50_fpn_nce-plus_coco.py'

model = dict(
    type='DetectronEnergyDetector',
    # The published way at test time: f alone, ten steps of one rule.
    energy_model=dict(
        density=None, ascent=dict(num_steps=10, step_rule='decay')
    ),
    refinement=dict(energy_nms=True),
    detector=dict(
        data_preprocessor=dict(
            mean=[102.9801, 115.9465, 122.7717],
            std=[1.0, 1.0, 1.0],
            bgr_to_rgb=False,
        ),
        backbone=dict(style='caffe', norm_cfg=dict(requires_grad=False)),
        rpn_head=dict(
            anchor_generator=dict(type='DetectronAnchorGenerator'),
            bbox_coder=dict(type='DetectronBoxCoder'),
        ),
        roi_head=dict(
            bbox_roi_extractor=dict(
                roi_layer=dict(sampling_ratio=2, aligned=False)
            ),
            bbox_head=dict(bbox_coder=dict(type='DetectronBoxCoder')),
        ),
        # Widths are x2 - x1 + 1 in the RPN's NMS too, and a pixel is a box.
        test_cfg=dict(rpn=dict(nms=dict(offset=1), min_bbox_size=-1)),
    ),
)
# A converted Faster R-CNN, to train an energy model on.
load_from = 'work_dirs/published/faster-rcnn.pth'
