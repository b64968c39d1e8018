"""Small episodes for tests of judges."""

from tarl_jax.types import Call, Segment, Task, Trajectory


def task(task_id="t", instruction="Cancel #W1.", expert_turns=4) -> Task:
    return Task(
        task_id=task_id, user_id="u", instruction=instruction,
        gold_calls=(Call("cancel", {"order": "#W1"}),), outputs=(), split="train", source="shop",
        script=None, expert_turns=expert_turns,
    )


def episode(
    scores, task_id="t", seed=0, success=True, user="Yes, please.", tool="found", agent="I will.",
    call="#W1", task_text="Cancel #W1.", diff=None, gold_diff=(), expert_turns=4, **more
) -> Trajectory:
    """One turn per score: the second looks something up and is refused, the others speak."""
    segments = [Segment.forced("system", [], -1, "You are a clerk."),
                Segment.forced("user", [], -1, "Hello.")]
    for turn in range(len(scores)):
        if turn == 1:
            looked = Segment("agent", [], [], [], turn, "…",
                             calls=[Call("look", {"order": call})])
            segments += [looked, Segment.forced("tool", [], turn, tool, error=True)]
        else:
            segments += [Segment("agent", [], [], [], turn, agent, agent),
                         Segment.forced("user", [], turn, user)]
    return Trajectory(
        task(task_id, more.get("task", task_text), expert_turns), seed, segments, "user_stop",
        success, diff=[diff] if isinstance(diff, str) else list(diff or ()),
        gold_diff=list(gold_diff), turn_scores=list(scores),
    )


def grades(judgement) -> str:
    """A judgement in one letter a turn: "+" right, "." neutral, "m" minor, "-" major."""
    return "".join("m" if minor else "-.+"[score + 1]
                   for score, minor in zip(judgement.scores, judgement.minors, strict=True))
