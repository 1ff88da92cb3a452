"""What computes ``y = A (S (B x)) + bias`` from packed data; modules call `linear` only."""

from armor.runtime.reference import linear

__all__ = ["linear"]
