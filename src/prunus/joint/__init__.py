"""Joint methods: they choose and compensate in one sweep, and stand in the selection's place."""

from collections.abc import Callable

from prunus.elimination import ObsTrace, global_counts, obs_masks, obs_trace
from prunus.joint.edge_popup import EdgePopup
from prunus.joint.obc import OBC, obc_block_masks, obc_pattern_masks
from prunus.joint.obs import OBS
from prunus.joint.protocol import Joint, JointResult, NetworkJoint, is_joint, is_network
from prunus.joint.sparsegpt import SparseGPT, sparsegpt

__all__ = [
    "JOINTS",
    "OBC",
    "OBS",
    "EdgePopup",
    "Joint",
    "JointResult",
    "NetworkJoint",
    "ObsTrace",
    "SparseGPT",
    "global_counts",
    "is_joint",
    "is_network",
    "obc_block_masks",
    "obc_pattern_masks",
    "obs_masks",
    "obs_trace",
    "sparsegpt",
]

JOINTS: dict[str, Callable[..., Joint | NetworkJoint]] = {
    "OBS": OBS,
    "SparseGPT": SparseGPT,
    "OBC": OBC,
    "EdgePopup": EdgePopup,
}
