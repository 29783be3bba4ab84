"""Surgery: zeros that hold through training, and the smaller network that equals the masked one."""

from prunus.surgery.compact import CompactionError, compact
from prunus.surgery.masked import Hold, apply_masks, held, hold
from prunus.surgery.resize import resize
from prunus.surgery.rotation import rotated

__all__ = ["CompactionError", "Hold", "apply_masks", "compact", "held", "hold", "resize", "rotated"]
