# NCE+ energy head on the frozen plain detector of this folder.
_base_ = './faster-rcnn_r18-half_bccd.py'
model = dict(
    type='EnergyTwoStageDetector',
    freeze_detector=True,
    roi_head=dict(
        type='EnergyRoIHead',
        refiner=dict(
            type='EnergyRefiner',
            roi_extractor=dict(type='PreciseRoIExtractor', out_channels=64),
            head=dict(
                type='EnergyHead',
                num_classes=3,
                in_channels=64,
                fc_out_channels=256),
            loss=dict(
                type='NCEPlusLoss',
                sigmas=(0.075, 0.15, 0.3),
                beta=0.1,
                num_samples=63),
            step_length=(80e-5, 32e-4)),
        refinement=dict(energy_nms=True, ascent=True)))

load_from = 'work_dirs/faster-rcnn_r18-half_bccd/last.pth'
