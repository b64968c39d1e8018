"""Tasks of a database, made from a seed; and task files.

Every task made here is solved by the faultless clerk before it is handed out.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from tarl_jax.config import InputError, MissingFileError, ShopConfig, TaskConfig
from tarl_jax.config.plain import loads, read_lines
from tarl_jax.sandbox import blueprint, network_tasks, phrases, reviews, shop, tfds
from tarl_jax.sandbox.clerk import FAULTLESS, play
from tarl_jax.sandbox.desk import Wish
from tarl_jax.sandbox.desks import desk_of
from tarl_jax.sandbox.dialogue import Dialogue, Observation, rules_of
from tarl_jax.sandbox.domain import Domain, Refusal
from tarl_jax.sandbox.scoring import verdict_on
from tarl_jax.sandbox.script import Script
from tarl_jax.sandbox.users import scripted_user
from tarl_jax.sandbox.verifier import Verdict
from tarl_jax.types import Call, Task

LONGEST = 100  # turns that a task may take its expert; how many an episode has is its config's


def make_tasks(
    domain: Domain, shop_config: ShopConfig, config: TaskConfig, split: str
) -> list[Task]:
    """`num_train` or `num_held_out` distinct tasks; the splits share no user and no record.

    Raises ValueError for a domain without a desk, or if its data are too small for that many,
    RuntimeError if a task could not be solved by the faultless clerk: that is a defect of the desk,
    not of the input.
    """
    if split not in ("train", "held_out"):
        raise InputError(f"split {split!r}: choose 'train' or 'held_out'")
    if domain.user:
        return _of_network(domain, shop_config, config, split)
    desk = desk_of(domain.name)
    held_out = shop.held_out_users(domain.database, shop_config)
    wanted = config.num_held_out if split == "held_out" else config.num_train
    users = [u for u in domain.database["users"] if (u in held_out) == (split == "held_out")]
    rng = random.Random(f"tasks-{config.seed}-{split}")
    tasks: list[Task] = []
    seen: set[str] = set()
    idle = 0
    attempts = 0
    while len(tasks) < wanted:
        attempts += 1
        if not users or attempts > 200 + 50 * wanted:
            raise InputError(
                f"{len(users)} {split} users admit only {len(tasks)} of {wanted} distinct"
                f" tasks; lower tasks.num_{split}, or raise shop.num_users"
                " or tasks.max_idle"
            )
        script = blueprint.sample_script(
            rng, domain.name, domain.database, rng.choice(users), config
        )
        key = json.dumps(script.to_json())
        gold = tuple(r.gold for r in script.requests if r.gold)
        if not script.requests or key in seen or not _executable(domain, gold):
            continue
        if not gold:
            if idle + 1 > config.max_idle * wanted:
                continue
            idle += 1
        seen.add(key)
        task = draft_task(
            domain, script, f"{desk.source}-{split}-{len(tasks)}", split, desk.source
        )
        tasks.append(_solved(domain, task))
    return tasks


def _of_network(
    domain: Domain, shop_config: ShopConfig, config: TaskConfig, split: str
) -> list[Task]:
    """Tasks of the embedded carrier of phones, whose users have tools and no script."""
    wanted = config.num_held_out if split == "held_out" else config.num_train
    tries = 200 + 50 * wanted
    drafts = itertools.islice(network_tasks.drafts(domain, shop_config, config, split), tries)
    tasks = list(itertools.islice((task for task in drafts if task), wanted))
    if len(tasks) < wanted:
        raise InputError(f"the {split} customers admit only {len(tasks)} of {wanted} distinct"
                         f" tasks; lower tasks.num_{split}, or raise shop.num_users")
    return [_solved(domain, task) for task in tasks]


def _solved(domain: Domain, task: Task) -> Task:
    turns, verdict = expert_plays(domain, task, LONGEST)
    if not verdict.success:
        told = task.script or task.initial_state
        raise RuntimeError(f"{task.task_id}: the faultless clerk fails; {told}: {verdict.diff}")
    return rated(task, len(turns))


def load_tasks(path: str | Path) -> list[Task]:
    """The tasks of a file that may be trained on: JSON lines of `Task`, as their review left them.

    Rejected tasks are left out, and edited ones are what the reviewer made of them
    (`sandbox.reviews`). Raises ValueError for a broken line, with file and line number.
    """
    return reviews.reviewed(path, read_tasks(path))


def read_tasks(path: str | Path) -> list[Task]:
    """All tasks of a file, whatever its review says. Raises as `load_tasks`."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"task file {path} does not exist")
    return _read(read_lines(path), str(path))


def dataset_tasks(entries: Sequence[str]) -> list[Task]:
    """The tasks of prepared datasets of tensorflow-datasets (`sandbox.tfds.examples`).

    Each example's text feature `task` is a line as a file's. Raises InputError as `load_tasks`.
    """
    lines = (
        (where, str(found["task"])) for entry in entries
        for where, found in tfds.examples(entry, "tasks.tfds", ("task",))
    )
    return _read(lines, ", ".join(entries))


def _read(lines: Iterable[tuple[str, str]], source: str) -> list[Task]:
    tasks: list[Task] = []
    first: dict[str, str] = {}  # where an id came first
    for where, line in lines:
        try:
            task = Task.from_json(loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: not a task: {error}") from error
        if first.setdefault(task.task_id, where) != where:
            raise InputError(f"{where}: the task_id {task.task_id!r} is that of"
                             f" {first[task.task_id]} already: rename or delete one of the two")
        tasks.append(task)
    if not tasks:
        raise InputError(f"{source}: holds no task")
    return tasks


def save_tasks(path: str | Path, tasks: list[Task]) -> None:
    """Writes JSON lines that `load_tasks` reads."""
    Path(path).write_text("".join(json.dumps(t.to_json()) + "\n" for t in tasks), encoding="utf-8")


def draft_task(
    domain: Domain, script: Script, task_id: str, split: str, source: str, persona: str = ""
) -> Task:
    """The task of a script, not yet rated by an expert's play."""
    desk = desk_of(script.desk)
    records = domain.database[desk.table]
    user_id = desk.user_id(domain, script)
    return Task(
        task_id=task_id,
        user_id=user_id,
        instruction=_instruction(script, user_id, persona),
        gold_calls=tuple(r.gold for r in script.requests if r.gold),
        outputs=tuple(
            desk.right_answer(r, records[r.record_id])
            for r in script.requests if r.kind in desk.reads
        ),
        split=split,
        source=source,
        script=script.to_json(),
        expert_turns=1,
        persona=persona,
    )


def expert_plays(
    domain: Domain, task: Task, max_turns: int = 30, brief_writes: bool = False
) -> tuple[list[tuple[Call | str, Observation]], Verdict]:
    """The faultless clerk serves the task's scripted user: the turns, and the verdict on them."""
    user = scripted_user(domain, task, seed=0)
    dialogue = Dialogue(task, domain, user, max_turns=max_turns, brief_writes=brief_writes,
                        ends=rules_of(task))
    turns = play(dialogue, FAULTLESS, seed=0)
    calls = [action for action, _ in turns if isinstance(action, Call)]
    said = [action for action, _ in turns if isinstance(action, str)]
    return turns, verdict_on(domain, task, dialogue.state, calls, said)


def rated(task: Task, expert_turns: int) -> Task:
    """The task with the turns that the expert took, and the difficulty that follows from them.

    Difficulty = the expert's turns + 2 for each change of mind and each request that must be
    refused + 1 for each distractor. (A write takes the expert four turns or more.)
    """
    requests = Script.from_json(task.script).requests if task.script else ()
    traps = sum(2 * bool(r.change) + 2 * bool(r.denial) + bool(r.aside) for r in requests)
    return dataclasses.replace(task, expert_turns=expert_turns, difficulty=expert_turns + traps)


def _executable(domain: Domain, gold: tuple[Call, ...]) -> bool:
    """Whether all calls succeed in a row (two may draw on one gift card that covers only one)."""
    state = domain.new_state()
    answers = [domain.call(state, call.name, dict(call.kwargs)) for call in gold]
    return not any(isinstance(answer, Refusal) for answer in answers)


def _instruction(script: Script, user_id: str, persona: str) -> str:
    """The hidden task in words, in tau-bench's manner."""
    desk = desk_of(script.desk)

    def said(wish: Wish) -> str:
        why = desk.phrases.reasons[wish.reason][0] if wish.reason else ""
        return desk.phrases.requests[wish.kind][0].format(**desk.words(wish), why=why)

    known = desk.known(script, user_id)
    lines = [f"You are {script.first_name} {script.last_name}, {known}."]
    if persona:
        lines.append(phrases.PERSONAS[persona].words)
    for request in script.requests:
        lines.append(said(request))
        if request.aside:
            lines.append(request.aside)
        if request.change == "drop":
            lines.append("When asked to confirm, you change your mind and drop it.")
        elif request.then:
            lines.append(f"When asked to confirm, you change your mind: {said(request.then)}")
    return " ".join(lines)
