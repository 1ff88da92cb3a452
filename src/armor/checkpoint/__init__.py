"""The checkpoint folder: writing it, reading it, looking into it, multiplying it out."""

from armor.checkpoint.assemble import assemble
from armor.checkpoint.export import export_dense
from armor.checkpoint.files import ModelFiles
from armor.checkpoint.folder import check_output
from armor.checkpoint.inspect import inspect
from armor.checkpoint.reader import Checkpoint, read_layers

__all__ = [
    "Checkpoint",
    "ModelFiles",
    "assemble",
    "check_output",
    "export_dense",
    "inspect",
    "read_layers",
]
