"""Linear layers whose frozen weights torchao or bitsandbytes keep in few bits.

A model with such layers goes into `fastmaml.MAML` as it is; nothing here is needed for that.
"""
