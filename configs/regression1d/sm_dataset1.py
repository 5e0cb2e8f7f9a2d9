_base_ = '../_base_/regression1d.py'

method = dict(type='SM')
