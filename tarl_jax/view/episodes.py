"""Episodes as the page reads them, from the lines of a file as they stand on disk."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tarl_jax.config import InputError
from tarl_jax.config.plain import loads, read_text

Json = dict[str, Any]
# What `whole` raises for what is no episode.
NO_EPISODE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
_SHOWN = ("seed", "outputs_found", "diff", "gold_diff", "judge_notes", "counted", "reward_parts",
          "seconds", "advantages", "facts", "user_faults")
_OF_A_TASK = ("task_id", "user_id", "instruction", "gold_calls", "outputs", "split", "source",
              "kind", "expert_turns", "persona", "assertions")
_LISTED = ("index", "task", "kind", "success", "reward", "scores", "minors", "stop", "turns",
           "tokens", "spoken", "opening")
# The page reads lists and objects where these are.
_KINDS = {
    "turn_scores": list, "turn_minors": list, "diff": list, "gold_diff": list, "judge_notes": list,
    "advantages": list, "user_faults": list, "reward_parts": dict, "facts": dict, "segments": list,
    "task": dict,
}
_KINDS_OF_A_SEGMENT = {
    "role": str, "text": str, "thought": str, "token_ids": list, "sampled": list,
    "log_probs": list, "calls": list, "info": dict, "sound": dict,
}


@functools.lru_cache(maxsize=16)
def whole_file(path: Path, written: int) -> list[Json]:
    """The episodes of a file, read once for each time that it was written.

    A last line without an end is left out where it is cut short: somebody is adding it.
    """
    found: list[Json] = []
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(whole(len(found), loads(line)))
        except NO_EPISODE as error:
            if number == len(lines) and isinstance(error, ValueError):
                break
            raise InputError(f"{path}:{number}: not an episode ({type(error).__name__}: {error});"
                             " mend or delete the line") from None
    return found


def summary(episode: Json) -> Json:
    """What a list of episodes shows of one."""
    return {name: episode[name] for name in _LISTED}


def whole(index: int, data: Json) -> Json:
    """An episode as the page reads it; raises one of NO_EPISODE for what is none."""
    _require(data, _KINDS)
    for segment in data["segments"]:
        _require(segment, _KINDS_OF_A_SEGMENT)
        if not all(isinstance(call, dict) for call in segment.get("calls") or ()):
            raise TypeError("calls: expected objects")
        if not all(isinstance(token, int) for token in segment.get("token_ids") or ()):
            raise TypeError("token_ids: expected integers")
    task = {key: data["task"].get(key) for key in _OF_A_TASK}
    return {
        "index": index,
        "task": data["task"]["task_id"],
        "kind": data["task"].get("kind", "tool"),
        "success": data["success"],
        "reward": data["reward"],
        "scores": data.get("turn_scores"),
        "minors": data.get("turn_minors"),
        "stop": data["stop_reason"],
        "turns": sum(s["role"] == "agent" for s in data["segments"]),
        "tokens": sum(len(s.get("token_ids", ())) for s in data["segments"]),
        "spoken": any(s.get("sound") for s in data["segments"]),
        "opening": next((s["text"] for s in data["segments"] if s["role"] == "user"), "")[:200],
        **{key: data[key] for key in _SHOWN if key in data},
        "about": task,
        "segments": [_segment(segment) for segment in data["segments"]],
    }


def _segment(segment: Json) -> Json:
    """A segment with what was thought, said and called apart."""
    text, calls = segment["text"], segment.get("calls") or []
    thought = segment.get("thought") or ""
    if segment["role"] == "agent" and "message" in segment:
        read = segment["message"] or segment["unheard"] or calls
        text = segment["message"] if read else text
    elif segment["role"] == "agent":
        thought, _, text = text.rpartition("</think>")
        thought, text = thought.removeprefix("<think>").strip(), text.strip()
        if segment.get("call"):
            calls = [segment["call"]]
            text = _CALL.sub("", text).strip()
    return {
        "role": segment["role"], "turn": segment["turn"], "text": text, "thought": thought,
        "unheard": segment.get("unheard", ""), "calls": calls, "info": segment.get("info", {}),
        "sound": segment.get("sound"),
        "ids": segment.get("token_ids", []), "sampled": segment.get("sampled", []),
        "log_probs": segment.get("log_probs", []),
    }


_CALL = re.compile(r"<tool_call>.*?</tool_call>", re.DOTALL)


def _require(data: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Raises TypeError where a field is there and of another kind."""
    for name, kind in kinds.items():
        value = data.get(name)
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} = {value!r:.40}: expected {kind.__name__}")
