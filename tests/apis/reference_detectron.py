"""Faster R-CNN with an energy head as maskrcnn-benchmark computes it.

Written in plain torch functions on a checkpoint's own names, independently of
the package: background first, caffe strides, frozen batch norm without an
epsilon, boxes whose corners are inclusive pixels.
"""

import math

import torch
import torch.nn.functional as F

BLOCKS = (3, 4, 6, 3)


def names_and_shapes(width=64, fpn=256, hidden=1024, classes=81):
    """Tensors of a published R50-FPN checkpoint; smaller on demand."""
    table = {}

    def conv(name, out, inp, size, bias):
        table[f'{name}.weight'] = (out, inp, size, size)
        if bias:
            table[f'{name}.bias'] = (out,)

    def linear(name, out, inp):
        table[f'{name}.weight'], table[f'{name}.bias'] = (out, inp), (out,)

    def norm(name, size):
        for part in ('weight', 'bias', 'running_mean', 'running_var'):
            table[f'{name}.{part}'] = (size,)

    body = 'backbone.body'
    conv(f'{body}.stem.conv1', width, 3, 7, False)
    norm(f'{body}.stem.bn1', width)
    last = width
    for stage, blocks in enumerate(BLOCKS):
        inner, out = width * 2**stage, width * 4 * 2**stage
        for block in range(blocks):
            at = f'{body}.layer{stage + 1}.{block}'
            if block == 0:
                conv(f'{at}.downsample.0', out, last, 1, False)
                norm(f'{at}.downsample.1', out)
            for i, (o, n, size) in enumerate(
                [(inner, last, 1), (inner, inner, 3), (out, inner, 1)]
            ):
                conv(f'{at}.conv{i + 1}', o, n, size, False)
                norm(f'{at}.bn{i + 1}', o)
            last = out
        conv(f'backbone.fpn.fpn_inner{stage + 1}', fpn, out, 1, True)
        conv(f'backbone.fpn.fpn_layer{stage + 1}', fpn, fpn, 3, True)
    conv('rpn.head.conv', fpn, fpn, 3, True)
    conv('rpn.head.cls_logits', 3, fpn, 1, True)
    conv('rpn.head.bbox_pred', 12, fpn, 1, True)
    for level in range(5):
        table[f'rpn.anchor_generator.cell_anchors.{level}'] = (3, 4)
    for branch in ('box', 'iou'):
        linear(f'roi_heads.{branch}.feature_extractor.fc6', hidden, fpn * 49)
        linear(f'roi_heads.{branch}.feature_extractor.fc7', hidden, hidden)
    linear('roi_heads.box.predictor.cls_score', classes, hidden)
    linear('roi_heads.box.predictor.bbox_pred', 4 * classes, hidden)
    linear('roi_heads.iou.predictor.iou_pred', classes, hidden)
    return table


def cell_anchors(level):
    """Worked out by hand for stride 4, scale 8; times two for each level.

    Strides 8, 16, ... round 11.31, 22.63, ... to 11, 23, 45, 91 and half of
    that (even) to 6, 12, 22, 46; sqrt(32), sqrt(128) ... to 6, 11, 23, 45.
    """
    wide = [(6, 3), (11, 6), (23, 12), (45, 22), (91, 46)][level]
    tall = [(3, 6), (6, 12), (11, 22), (23, 46), (45, 90)][level]
    stride = 4 * 2**level
    rows = []
    for w, h in (wide, (stride, stride), tall):
        rows.append(
            [
                (stride - 1) / 2 - (8 * w - 1) / 2,
                (stride - 1) / 2 - (8 * h - 1) / 2,
                (stride - 1) / 2 + (8 * w - 1) / 2,
                (stride - 1) / 2 + (8 * h - 1) / 2,
            ]
        )
    return torch.tensor(rows)


def norm(w, name, x):
    scale = w[f'{name}.weight'] * w[f'{name}.running_var'].rsqrt()
    bias = w[f'{name}.bias'] - w[f'{name}.running_mean'] * scale
    return x * scale[:, None, None] + bias[:, None, None]


def bottleneck(w, name, x, stride):
    def conv(part, y, **kwargs):
        return norm(
            w,
            f'{name}.bn{part}',
            F.conv2d(y, w[f'{name}.conv{part}.weight'], **kwargs),
        )

    shortcut = x
    if f'{name}.downsample.0.weight' in w:
        shortcut = norm(
            w,
            f'{name}.downsample.1',
            F.conv2d(x, w[f'{name}.downsample.0.weight'], stride=stride),
        )
    # The stride is in the first, 1x1 convolution.
    y = conv(1, x, stride=stride).relu()
    y = conv(2, y, padding=1).relu()
    return (conv(3, y) + shortcut).relu()


def pyramid(w, image):
    """P2 to P6 of BGR images in 0..255."""
    mean = torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]
    x = F.conv2d(
        image - mean, w['backbone.body.stem.conv1.weight'], stride=2, padding=3
    )
    x = F.max_pool2d(norm(w, 'backbone.body.stem.bn1', x).relu(), 3, 2, 1)
    maps = []
    for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            x = bottleneck(
                w,
                f'backbone.body.layer{stage + 1}.{block}',
                x,
                2 if stage and block == 0 else 1,
            )
        maps.append(x)

    def conv(name, y, padding):
        return F.conv2d(
            y,
            w[f'backbone.fpn.{name}.weight'],
            w[f'backbone.fpn.{name}.bias'],
            padding=padding,
        )

    top = conv('fpn_inner4', maps[3], 0)
    levels = [conv('fpn_layer4', top, 1)]
    for i in (3, 2, 1):
        top = conv(f'fpn_inner{i}', maps[i - 1], 0) + F.interpolate(
            top, scale_factor=2, mode='nearest'
        )
        levels.insert(0, conv(f'fpn_layer{i}', top, 1))
    return [*levels, levels[3][:, :, ::2, ::2]]


def decode(boxes, codes, weights, size):
    """Box coder with x2 - x1 + 1; clipped to the pixels of the image."""
    width = boxes[:, 2] - boxes[:, 0] + 1
    height = boxes[:, 3] - boxes[:, 1] + 1
    centre_x = boxes[:, 0] + 0.5 * width
    centre_y = boxes[:, 1] + 0.5 * height
    dx, dy, dw, dh = (codes / torch.tensor(weights)).unbind(-1)
    dw, dh = (d.clamp(max=math.log(1000 / 16)) for d in (dw, dh))
    x, y = dx * width + centre_x, dy * height + centre_y
    w, h = dw.exp() * width, dh.exp() * height
    return torch.stack(
        [
            (x - 0.5 * w).clamp(0, size[1] - 1),
            (y - 0.5 * h).clamp(0, size[0] - 1),
            (x + 0.5 * w - 1).clamp(0, size[1] - 1),
            (y + 0.5 * h - 1).clamp(0, size[0] - 1),
        ],
        -1,
    )


def suppress(boxes, scores, threshold):
    """Indices that greedy NMS keeps, by falling score; widths with + 1."""
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    order, keep = scores.argsort(descending=True), []
    while len(order):
        best, order = order[0], order[1:]
        keep.append(best)
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        inter = (high - low + 1).clamp(min=0).prod(1)
        order = order[inter <= threshold * (area[best] + area[order] - inter)]
    return torch.stack(keep)


def proposals(w, levels, size):
    """Boxes and scores of the RPN, all levels, by falling score."""
    boxes, scores = [], []
    for level, features in enumerate(levels):

        def conv(name, y, padding=0):
            return F.conv2d(
                y,
                w[f'rpn.head.{name}.weight'],
                w[f'rpn.head.{name}.bias'],
                padding=padding,
            )

        hidden = conv('conv', features, 1).relu()
        score = conv('cls_logits', hidden)[0].sigmoid()
        codes = conv('bbox_pred', hidden)[0].unflatten(0, (3, 4))
        rows, columns = score.shape[1:]
        stride = 4 * 2**level
        shift_y, shift_x = torch.meshgrid(
            torch.arange(rows) * stride,
            torch.arange(columns) * stride,
            indexing='ij',
        )
        shift = torch.stack([shift_x, shift_y, shift_x, shift_y], -1)
        anchors = (shift[:, :, None] + cell_anchors(level)).reshape(-1, 4)
        score = score.permute(1, 2, 0).reshape(-1)
        codes = codes.permute(2, 3, 0, 1).reshape(-1, 4)
        score, best = score.topk(min(1000, len(score)))
        anchors, codes = anchors[best], codes[best]
        found = decode(anchors, codes, (1.0, 1.0, 1.0, 1.0), size)
        keep = suppress(found, score, 0.7)
        boxes.append(found[keep])
        scores.append(score[keep])
    scores, order = torch.cat(scores).sort(descending=True)
    return torch.cat(boxes)[order][:1000], scores[:1000]


def level_of(boxes):
    """0 for P2 to 3 for P5; areas with + 1."""
    side = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1).sqrt()
    return (4 + (side / 224 + 1e-6).log2()).floor().clamp(2, 5).long() - 2


def roi_align(features, box, scale):
    """(C, 7, 7) of one box: 2 x 2 samples a bin, no half-pixel shift."""
    x1, y1, x2, y2 = (box * scale).tolist()
    bin_w, bin_h = max(x2 - x1, 1) / 7, max(y2 - y1, 1) / 7
    steps = (torch.arange(14) + 0.5) / 2
    rows, columns = features.shape[-2:]

    def taps(positions, count):
        inside = (positions >= -1) & (positions <= count)
        positions = positions.clamp(min=0)
        low = positions.floor().long().clamp(max=count - 1)
        positions = torch.where(low >= count - 1, low.float(), positions)
        weight = torch.zeros(14, count)
        weight.scatter_add_(1, low[:, None], (1 - positions + low)[:, None])
        weight.scatter_add_(
            1,
            (low + 1).clamp(max=count - 1)[:, None],
            (positions - low)[:, None],
        )
        return weight * inside[:, None]

    sampled = torch.einsum(
        'yh,xw,chw->cyx',
        taps(y1 + steps * bin_h, rows),
        taps(x1 + steps * bin_w, columns),
        features,
    )
    return F.avg_pool2d(sampled, 2)


def head(w, branch, pooled):
    """The two hidden layers on (R, C, 7, 7)."""
    x = pooled.flatten(1)
    for layer in ('fc6', 'fc7'):
        name = f'roi_heads.{branch}.feature_extractor.{layer}'
        x = F.linear(x, w[f'{name}.weight'], w[f'{name}.bias']).relu()
    return x


def predictor(w, name, x):
    name = f'roi_heads.{name}'
    return F.linear(x, w[f'{name}.weight'], w[f'{name}.bias'])


def box_head(w, levels, boxes, size):
    """Class probabilities (R, K), background first; boxes (R, K, 4)."""
    pooled = torch.stack(
        [
            roi_align(levels[level][0], box, 0.25 / 2**level)
            for box, level in zip(boxes, level_of(boxes).tolist())
        ]
    )
    x = head(w, 'box', pooled)
    codes = predictor(w, 'box.predictor.bbox_pred', x).unflatten(1, (-1, 4))
    found = torch.stack(
        [
            decode(boxes, code, (10.0, 10.0, 5.0, 5.0), size)
            for code in codes.unbind(1)
        ],
        1,
    )
    return predictor(w, 'box.predictor.cls_score', x).softmax(1), found
