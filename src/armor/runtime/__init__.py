"""What computes ``y = A (S (B x)) + bias`` from packed data.

Modules call `linear`; `backends` lists what can compute it here, `use` forces one, and `prepare`
packs a model for the backends that need another layout than the stored one.
"""

from armor.runtime.api import linear
from armor.runtime.frontend import Status, backends, use
from armor.runtime.packing import pack, prepare, stored_indices

__all__ = ["Status", "backends", "linear", "pack", "prepare", "stored_indices", "use"]
