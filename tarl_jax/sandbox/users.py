"""The scripted users that there are, and which of them plays a task."""

from __future__ import annotations

from tarl_jax.config import InputError
from tarl_jax.sandbox.domain import Domain
from tarl_jax.sandbox.telecom_user import TelecomUser, complaint_of
from tarl_jax.sandbox.user import ScriptedUser
from tarl_jax.types import Task

Scripted = ScriptedUser | TelecomUser


def scripted_user(domain: Domain, task: Task, seed: int) -> Scripted:
    """The user of one episode: where users have tools, the owner of a phone; else the script's.

    Raises InputError for a task that neither can play.
    """
    if domain.user and task.script is None:
        return TelecomUser(task, seed)
    return ScriptedUser(task, seed)


def playable(domain: Domain, task: Task) -> bool:
    """Whether a scripted user can play the task."""
    if task.script is not None or domain.user is None:
        return task.script is not None
    try:
        complaint_of(task)
    except InputError:
        return False
    return True
