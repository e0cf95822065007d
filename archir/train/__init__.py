"""Data, training and evaluation.

Importing this package costs NumPy alone; :mod:`archir.train.loop` and
:mod:`archir.train.evaluate` import torch.
"""
