"""Trains the embedded tokenizers, each on its domain's own text.

    python -m tarl_jax.text.train_tokenizer
    python -m tarl_jax.text.train_tokenizer --domain=telecom

write `tarl_jax/text/shop.model` and `tarl_jax/text/network.model`. Their pieces are the domain's
values (names, products, options), the phrases that stand between values in dialogues and tool
results, and single characters, so that

- a value is the same piece wherever it stands, and a set phrase is one token (a tool call takes
  about nine, which keeps episodes short enough to learn from in minutes);
- a number of two or three digits is one piece, and so is every id: a small policy learns to copy
  one token in minutes, but not a run of digits, of which each stands in many places;
- all of printable ASCII, space and line break can be encoded.

Byte-pair encoding was tried first: with this little distinct text it spends most of its pieces on
the inner parts of phrases, and episodes were 2.5 times as long. With the shop's pieces a phone is
mended in five times as many tokens as with the network's.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import re
from pathlib import Path

from tarl_jax.config import ClerkConfig, ShopConfig, TaskConfig
from tarl_jax.sandbox import phrases, shop
from tarl_jax.sandbox.clerk import play
from tarl_jax.sandbox.dialogue import Dialogue, rules_of
from tarl_jax.sandbox.published import embedded_domain
from tarl_jax.sandbox.tasks import make_tasks
from tarl_jax.sandbox.users import scripted_user
from tarl_jax.text.tokenizer import MARKUP, embedded_model, symbol
from tarl_jax.types import Call

MAX_PHRASES = 400
# The clerk whose dialogues are counted: its own, so that the pieces do not change with the default.
CLERK = ClerkConfig(
    skip_confirmation=0.1, wrong_variant=0.1, wrong_item=0.08, wrong_reason=0.1,
    wrongful_denial=0.05, ignore_rule=0.3, false_done=0.03, transfer=0.01, redundant_read=0.03,
    retry=0.0,
)  # fmt: skip


def shop_phrases(num_tasks: int) -> list[str]:
    """The phrases between values in `num_tasks` dialogues that save the most tokens."""
    whole = "|".join(map(re.escape, address_phrases()))
    names = "|".join(map(re.escape, sorted(shop_values(), key=len, reverse=True)))
    states = "|".join(shop.STATUS_WEIGHTS)  # but not inside a tool's name
    cut = re.compile(
        rf"{whole}|(?<![A-Za-z])(?:{names})(?![A-Za-z])|(?<![a-z_])(?:{states})(?![a-z_])"
        r"|\d|(?<=[a-z][.!?:] )"
    )
    return _ranked([phrases.SYSTEM, *_texts("retail", num_tasks)], cut)[:MAX_PHRASES]


def network_phrases(num_tasks: int) -> list[str]:
    """The same of phones; what stands for a field in JSON is a value, a line is a phrase."""
    names = "|".join(map(re.escape, sorted(network_values(), key=len, reverse=True)))
    cut = re.compile(
        rf"(?<![A-Za-z])(?:{names})(?![A-Za-z])|\d|\n|(?<=[a-z][.!?:] )|(?<=, )(?=\")"
        r'|(?<=": ")(?=[A-Za-z])|(?<=": )(?=[a-z])|(?=", ")|(?=\"})|(?=})|(?<=: )(?=[A-Z][a-z]* ?)'
    )
    return _ranked(_texts("telecom", num_tasks), cut)[:MAX_PHRASES]


def _texts(domain: str, num_tasks: int) -> list[str]:
    """What is said, called and answered in dialogues of the scripted clerk and its users."""
    config = ShopConfig()
    made = embedded_domain(domain, config)
    texts = []
    for task in make_tasks(made, config, TaskConfig(num_train=num_tasks), "train"):
        for seed in range(2):
            dialogue = Dialogue(task, made, scripted_user(made, task, seed),
                                brief_writes=seed == 0, ends=rules_of(task))
            texts.append(dialogue.opening)
            for action, observation in play(dialogue, CLERK, seed):
                said = json.dumps(action.to_json()) if isinstance(action, Call) else action
                texts += [said, observation.text]
    return texts


def _ranked(texts: list[str], cut: re.Pattern[str]) -> list[str]:
    """What stands between the cuts, what saves most tokens first."""
    counts = collections.Counter(part for text in texts for part in cut.split(text))
    ranked = sorted(counts, key=lambda part: (-counts[part] * (len(part) - 1), part))
    return [part for part in ranked if len(part) > 1 and counts[part] > 1]


def shop_values() -> list[str]:
    """The words that are pieces by themselves."""
    words = {*shop.PRODUCTS, *shop.COLORS, *shop.SIZES, *shop.MATERIALS}
    for name in (*shop.FIRST_NAMES, *shop.LAST_NAMES):
        words |= {name, name.lower()}
    words |= {str(number) for number in range(10, 1000)} | {a[3] for a in shop.ADDRESSES}
    words |= {"gift_card", "credit_card", "paypal", "gift card", "credit card", "@mail.com"}
    return sorted(words)


def network_values() -> list[str]:
    """The words that are pieces by themselves where phones are mended."""
    words = {str(number) for number in range(10, 1000)} | {"@mail.com"}
    for name in (*shop.FIRST_NAMES, *shop.LAST_NAMES):
        words |= {name, name.lower()}
    for street, city, state, _ in shop.ADDRESSES:
        words |= {street.lstrip("0123456789 "), city, state}
    return sorted(words)


def address_phrases() -> list[str]:
    """The parts of a rendered address that hold no digit of a zip code."""
    return [
        f'"address": {{"address1": "{street}", "address2": "", "city": "{city}",'
        f' "country": "USA", "state": "{state}", "zip": "'
        for street, city, state, _ in shop.ADDRESSES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domain", choices=("retail", "telecom"), default="retail")
    parser.add_argument("--out", type=Path, help="the package's own file by default")
    parser.add_argument("--num_tasks", type=int, default=1500)
    args = parser.parse_args()
    out = args.out or embedded_model(args.domain)
    import sentencepiece

    # Inside a model, U+2581 stands for a space.
    found = (
        [*shop_values(), *shop.STATUS_WEIGHTS, *address_phrases(), phrases.SYSTEM,
         *shop_phrases(args.num_tasks)]
        if args.domain == "retail" else [*network_values(), *network_phrases(args.num_tasks)]
    )
    pieces = sorted(set(found))
    pieces = [piece.replace(" ", "\u2581") for piece in pieces]
    ascii_text = "".join(map(chr, range(33, 127)))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a \n" + ascii_text]),
        model_writer=model,
        model_type="char",
        vocab_size=4096,
        use_all_vocab=True,
        control_symbols=[symbol(i) for i in range(len(MARKUP))],
        user_defined_symbols=pieces,
        required_chars=ascii_text,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    out.write_bytes(model.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_file=str(out)).get_piece_size()
    print(f"{out}: {size} pieces")


if __name__ == "__main__":
    main()
