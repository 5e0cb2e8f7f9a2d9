# Pairs of patches to train on: tracks in OTB's layout below $TRACKING_ROOT,
# and the objects of COCO photos below $COCO_ROOT (annotations/train.json,
# images/). Half of the pairs are of each.
patch_size = 128
context = 2.5

# Tracks that are neither trained on nor tested on: settings and the density
# are chosen there. Every fourth or fifth by name, and who shares their videos.
held_out = [
    'davis_bear',
    'davis_boat',
    'davis_car-roundabout',
    'davis_dance-jump',
    'davis_drift-straight',
    'davis_goat',
    'davis_kite-surf',
    'davis_mallard-fly',
    'davis_paragliding',
    'davis_rollerblade',
    'davis_stroller',
    'davis_train',
    'dtb70_MountainBike6',
    'otb_Car4',
    'otb_Skating2-1',
    'otb_Skating2-2',
    'otb_Walking2',
    'tlp_MotorcycleChase',
    'uav123_building4',
    'uav123_person11',
    'uav123_person9',
    'uav123_wakeboard5',
]
train_pipeline = [
    dict(type='SamplePair', max_gap=200),
    dict(type='LoadPair'),
    dict(type='CropPair', size=patch_size, context=context, shift=0.3),
    dict(type='JitterPair'),
    dict(type='PackTrackInputs'),
]
tracks = dict(
    type='SOTFolderDataset',
    data_root='{{$TRACKING_ROOT:data/tracking}}/train',
    layout='otb',
    exclude=held_out,
    pipeline=train_pipeline,
)
objects = dict(
    type='DetPairDataset',
    data_root='{{$COCO_ROOT:data/coco}}',
    ann_file='annotations/train.json',
    pipeline=train_pipeline,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(type='RepeatDataset', dataset=tracks, times=150),
            objects,
        ],
    ),
)
