"""The paper's 1D regression problems, on the methods that detection uses.

Settings -> data -> networks -> training -> evaluation -> experiment. Needs
``mmdet_ebm.core`` and PyTorch; neither mmdet, mmcv nor mmengine.
"""
