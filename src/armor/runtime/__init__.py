"""What computes ``y = A (S (B x)) + bias`` from packed data.

Modules call `linear` with a `Call`; `backends` lists what can compute it here, `use` forces one.
"""

from armor.runtime.api import linear
from armor.runtime.backend import Call
from armor.runtime.dispatch import Status, backends, use

__all__ = ["Call", "Status", "backends", "linear", "use"]
