"""The tokenizer of a pretrained checkpoint, behind the same surface as the embedded one.

Its special tokens are reachable as markup alone: what would be one of them in a text that a user or
a tool wrote is cut behind its first character, so that nobody can speak in another's role by
writing `<|im_end|>`. All else is encoded together with the line breaks that the layout puts around
it, as in a dialogue that the checkpoint's own template has rendered: the same ids.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tarl_jax.config import InputError, MissingFileError
from tarl_jax.config.plain import read_json
from tarl_jax.text.tokenizer import AUDIO, AUDIO_END, AUDIO_START, IM_END, IM_START

_CUT = "\ufdd0"  # no character, for good (Unicode's noncharacters); text has none
_ESCAPED_CUT = "\\ufdd0"  # in JSON
# Tools as the templates of Qwen2.5 and Qwen3 show them, for a checkpoint whose template does not
# (Qwen2.5-Omni, whose thinker began as Qwen2.5).
_TOOLS = """

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{schemas}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


class PretrainedTokenizer:
    """A Hugging Face tokenizer with Qwen's chat markup.

    with_audio: whether the markup of sound is needed too, as Qwen2.5-Omni has it.

    Attributes:
      ascii_json: whether JSON of calls is written in ASCII; Qwen's template does not.
      stop_id, stop_ids: what ends a turn: the chat's own token, and with it those that the
        checkpoint's generation_config.json (or, without one, config.json) names.
      special_ids: everything that was added to the vocabulary, the markup among it.

    Raises FileNotFoundError if the folder holds none, ValueError if it lacks the markup.
    """

    ascii_json = False

    def __init__(self, folder: Path | str, with_audio: bool = False):
        import transformers

        if not (Path(folder) / "tokenizer_config.json").is_file():
            raise MissingFileError(
                f"{folder}: holds no tokenizer_config.json; download the whole checkpoint, e.g."
                " `hf download Qwen/Qwen3-8B --local-dir DIR`"
            )
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # of many kinds, and some that tokenizers makes up
            raise InputError(
                f"{folder}: transformers cannot read its tokenizer (tokenizer_config.json,"
                f" tokenizer.json): {str(error) or type(error).__name__:.200}; download it again"
            ) from error
        special = self._tokenizer.get_added_vocab()
        needed = (IM_START, IM_END, *((AUDIO_START, AUDIO, AUDIO_END) if with_audio else ()))
        if missing := [m for m in needed if m not in special]:
            raise InputError(f"{folder}: its tokenizer has no special tokens {missing}")
        longest_first = sorted(special, key=len, reverse=True)
        self._markup = re.compile(f"(?={'|'.join(map(re.escape, longest_first))}).", re.DOTALL)
        self._folder = folder
        self.stop_id = special[IM_END]
        self.stop_ids = (self.stop_id, *_more_ends(Path(folder), self.stop_id, special.values()))
        self.special_ids = frozenset(special.values())
        self.vocab_size = len(self._tokenizer)
        names = sorted(Path(folder).glob("*token*")) + sorted(Path(folder).glob("vocab*"))
        content = b"".join(p.read_bytes() for p in names if p.is_file())
        self.digest = hashlib.sha256(content).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; markup in it is text like any other."""
        ids = self._pieces(self._cut(text))
        if self.special_ids.isdisjoint(ids):
            return ids
        # No such tokenizer is known; but what others write is never markup.
        return [t for c in text for t in self._pieces(self._cut(c)) if t not in self.special_ids]

    def wrap(self, before: str, text: str, after: str) -> list[int]:
        """Ids of plain text between two runs of markup, encoded together with their line breaks."""
        ids = self._pieces(before + self._cut(text) + after)
        apart = self.encode_markup(before), self.encode_markup(after)
        markup = [t for part in apart for t in part if t in self.special_ids]
        if [t for t in ids if t in self.special_ids] == markup:
            return ids
        return [*apart[0], *self.encode(text), *apart[1]]

    @functools.lru_cache(maxsize=1024)  # noqa: B019  (one tokenizer lives as long as its run)
    def encode_markup(self, text: str) -> tuple[int, ...]:
        """Ids of markup that the chat layout writes."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_system(self, text: str, schemas: Sequence[dict[str, Any]]) -> list[int]:
        """The system turn as the checkpoint's own template lays it out, tools included.

        A template that knows of no tools (Omni's), or none, is done without. Markup in the text or
        in a tool's description is text.
        """
        text, schemas = self._cut(text), [_mapped(schema, self._cut) for schema in schemas]
        if "tools" not in (self._tokenizer.chat_template or ""):
            lines = "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
            tools = _TOOLS.replace("{schemas}", lines) if schemas else ""
            return self._pieces(f"{IM_START}system\n{text}{tools}{IM_END}")
        rendered = self._tokenizer.apply_chat_template(
            [{"role": "system", "content": text}], tools=schemas or None, tokenize=False
        ).replace(_ESCAPED_CUT, _CUT)
        end = rendered.rindex(IM_END) + len(IM_END)  # a line break follows in some templates
        return self._pieces(rendered[:end])

    def begin(self, thinking: bool) -> tuple[int, ...]:
        """What the checkpoint's template begins an agent's turn with, forced.

        Qwen3's: nothing, or an empty thought where the model is not to think; with models that
        always think, the opening tag.

        Raises InputError where such a model is not to think.
        """
        if not self._tokenizer.chat_template:
            return ()
        rendered = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True,
            enable_thinking=thinking,
        )
        begun = rendered.rpartition(f"{IM_START}assistant\n")[2] if IM_START in rendered else ""
        if IM_END in begun:  # a template without a prompt for the agent
            return ()
        if not thinking and "<think>" in begun and "</think>" not in begun:
            raise InputError(f"config.rollout.thinking = 'off': the template of {self._folder}"
                             " opens a thought in every turn: this model always thinks, choose"
                             " another checkpoint, or 'on'")
        return self.encode_markup(begun)

    def _cut(self, text: str) -> str:
        """The text, marked behind the first character of whatever would be one token of markup."""
        text = text.encode("utf-8", "replace").decode("utf-8").replace(_CUT, "\ufffd")
        return self._markup.sub(lambda found: found[0] + _CUT, text)

    def _pieces(self, text: str) -> list[int]:
        """Ids of what stands between the marks."""
        return [
            token for piece in text.split(_CUT)
            for token in self._tokenizer.encode(piece, add_special_tokens=False)
        ]

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """Text of `ids`, markup spelled out."""
        return self._tokenizer.decode(
            [int(t) for t in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def pieces(self) -> list[bytes]:
        """What each id adds to the UTF-8 of a decoded text; alone it need not be valid.

        Raises ValueError if the tokenizer's pieces are not bytes, as those of Qwen are.
        """
        decoder = self._tokenizer.backend_tokenizer.decoder
        if type(decoder).__name__ != "ByteLevel":
            raise InputError(f"the tokenizer is not byte-level: its decoder is {decoder}")
        # GPT-2's alphabet: a byte that prints is its own character, the others follow in order.
        prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in prints]
        byte_of = {chr(b): b for b in prints} | {chr(256 + i): b for i, b in enumerate(others)}
        found = [b""] * self.vocab_size
        for piece, token in self._tokenizer.get_vocab().items():
            known = byte_of.keys() >= set(piece)
            found[token] = bytes(byte_of[c] for c in piece) if known else piece.encode()
        return found


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """JSON with its strings changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    return value


def _more_ends(folder: Path, stop_id: int, special: Iterable[int]) -> list[int]:
    """The end tokens beside `stop_id`: generation_config.json's, else config.json's."""
    ends = None
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        found = read_json(path) if ends is None and path.is_file() else None
        ends = found.get("eos_token_id") if isinstance(found, dict) else ends
    known = set(special)
    return [t for t in (ends if isinstance(ends, list) else [ends]) if t != stop_id and t in known]
