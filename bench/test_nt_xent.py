"""NT-Xent alone, forward, backward and both, in turns with what it is measured against."""

from .losses import suite

cases, test_nt_xent = suite("nt_xent")
