"""Whether kernels in Triton can run here; those are in `runtime`, `factorize`, `baselines`."""

from armor.triton.here import is_interpreted as is_interpreted
from armor.triton.here import is_older_than as is_older_than
from armor.triton.here import why_no_triton as why_no_triton
