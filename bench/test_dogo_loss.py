"""The whole DoGo loss, forward, backward and both, in turns with what it is measured against."""

from .losses import suite

cases, test_dogo_loss = suite("dogo_loss")
