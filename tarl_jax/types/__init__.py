"""Records and pytrees that the rooms hand to each other, and the axis legend.

Axis letters mean the same thing in the whole repository:

    B  rows of a batch: episodes, or slots of the engine
    S  token positions of a sequence or of a cache
    C  tokens of one forced chunk
    T  new tokens of one decode call
    V  vocabulary
    X  pieces of sound
    D  model width
    F  feed-forward width
    L  layers
    N  query heads
    K  key/value heads
    G  query heads per key/value head (N = K * G)
    H  width of one head

A *turn* is one agent step: its reasoning plus either a message to the user or tool
calls, as a rule one.
A token is *sampled* if the policy drew it and *forced* if the environment wrote it; the mark is
set when the token is born and never inferred later.
"""

from tarl_jax.types.batch import Batch as Batch
from tarl_jax.types.episodes import CUT_OFF as CUT_OFF
from tarl_jax.types.episodes import STOP_REASONS as STOP_REASONS
from tarl_jax.types.episodes import Clips as Clips
from tarl_jax.types.episodes import Segment as Segment
from tarl_jax.types.episodes import Trajectory as Trajectory
from tarl_jax.types.tasks import TASK_KINDS as TASK_KINDS
from tarl_jax.types.tasks import Call as Call
from tarl_jax.types.tasks import Check as Check
from tarl_jax.types.tasks import GoldAction as GoldAction
from tarl_jax.types.tasks import Task as Task
