"""Chat layout in Qwen's form, append-only: every part is rendered once and never again.

The sequence is

    <|im_start|>system … <|im_end|> then, per exchange,
    \\n<|im_start|>user … <|im_end|>\\n<|im_start|>assistant\\n   (forced)
    … <|im_end|>                                               (sampled)

with tool results as user turns inside `<tool_response>`. Qwen's own template drops the reasoning
of earlier turns when it renders a dialogue again; this one never renders again.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Sequence
from typing import Any

from tarl_jax.config.plain import loads, reasoning_end, without_reasoning
from tarl_jax.sandbox.dialogue import Action, Malformed
from tarl_jax.text.pretrained_tokenizer import PretrainedTokenizer
from tarl_jax.text.tokenizer import AUDIO, AUDIO_END, AUDIO_START, IM_END, IM_START, Tokenizer
from tarl_jax.types import Call

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class Chat:
    """Renders parts of a dialogue to ids, and reads agent turns back."""

    def __init__(self, tokenizer: Tokenizer | PretrainedTokenizer):
        self._tokenizer = tokenizer
        self.stop_id = tokenizer.stop_id
        self.stop_ids = tokenizer.stop_ids

    def system(self, text: str, schemas: Sequence[dict[str, Any]] = ()) -> list[int]:
        """The opening system turn, which shows the agent the schemas of its tools."""
        return self._tokenizer.encode_system(text, schemas)

    def greeting(self, text: str) -> list[int]:
        """A turn of the agent's that it has not written: what it says before the user."""
        words, markup = self._tokenizer.encode, self._tokenizer.encode_markup
        # The small tokenizer has no symbol for its beginning alone.
        begin = [*words("\n"), *markup(IM_START), *words("assistant\n")]
        return [*begin, *words(text), *markup(IM_END)]

    def user(self, text: str) -> list[int]:
        """A user turn and the start of the agent's answer."""
        return self._wrap(f"\n{IM_START}user\n", text, f"{IM_END}\n{IM_START}assistant\n")

    def spoken(self, tokens: int) -> tuple[list[int], int]:
        """A user turn that is spoken, and the start of the agent's answer.

        tokens: of the sound, for each of which a placeholder stands.
        Returns: the ids, and the index of the first placeholder among them.
        Raises ValueError where the tokenizer has no markup of sound.
        """
        markup = self._tokenizer.encode_markup
        before = [*markup(f"\n{IM_START}user\n"), *markup(AUDIO_START)]
        after = [*markup(AUDIO_END), *markup(f"{IM_END}\n{IM_START}assistant\n")]
        return before + list(markup(AUDIO)) * tokens + after, len(before)

    def tool(self, text: str) -> list[int]:
        """A tool result and the start of the agent's next turn."""
        return self._wrap(
            f"\n{IM_START}user\n<tool_response>\n",
            text,
            f"\n</tool_response>{IM_END}\n{IM_START}assistant\n",
        )

    def agent(self, action: Call | str) -> list[int]:
        """An agent turn as the policy would write it, its end token included."""
        if isinstance(action, Call):
            markup = self._tokenizer.encode_markup
            body = self._wrap("<tool_call>\n", json.dumps(action.to_json()), "\n</tool_call>")
            return body + list(markup(IM_END))
        return self._tokenizer.encode(action) + list(self._tokenizer.encode_markup(IM_END))

    def read(self, ids: list[int]) -> tuple[str, Action]:
        """(text without the end token, what the agent did). Never raises on any ids.

        Reasoning (`plain.without_reasoning`), and text beside a tool call, are not part of the
        action. A call may stand on one line or on several.
        """
        ended = bool(ids) and ids[-1] in self.stop_ids
        text = self._tokenizer.decode(ids[:-1] if ended else ids)
        if not ended:
            return text, Malformed("the turn is too long; keep it short")
        said = without_reasoning(text).strip()
        if "<think>" in said:
            return text, Malformed("close <think> before you act")
        if _OPEN not in said and _CLOSE not in said:
            if not said:
                return text, Malformed("the turn is empty; call a tool or answer the user")
            return text, said
        begin, end = said.find(_OPEN) + len(_OPEN), said.find(_CLOSE)
        if said.count(_OPEN) != 1 or said.count(_CLOSE) != 1 or end < begin:
            return text, Malformed("write exactly one <tool_call> block in a turn")
        try:
            data = loads(said[begin:end])
        except ValueError:
            return text, Malformed("the tool call is not valid JSON")
        if not isinstance(data, dict) or set(data) != {"name", "arguments"}:
            return text, Malformed('a tool call has the keys "name" and "arguments", no others')
        if not isinstance(data["name"], str) or not isinstance(data["arguments"], dict):
            return text, Malformed('"name" is a string and "arguments" an object')
        return text, Call(data["name"], data["arguments"])

    def reasoning(self, ids: list[int]) -> int:
        """How many ids, the first ones, are a turn's reasoning; 0 if it does not begin with it."""
        text = self._tokenizer.decode(ids)
        end = reasoning_end(text)
        if not end:
            return 0
        # Longer beginnings have longer texts.
        count = bisect.bisect_left(
            range(len(ids) + 1), end, key=lambda n: len(self._tokenizer.decode(ids[:n]))
        )
        # A piece may hold the end of the reasoning and what follows it.
        return count if self._tokenizer.decode(ids[:count]) == text[:end] else 0

    def _wrap(self, before: str, text: str, after: str) -> list[int]:
        markup = self._tokenizer.encode_markup
        return [*markup(before), *self._tokenizer.encode(text), *markup(after)]
