"""How a domain's scripted desk is described: its requests, its sentences, its rules.

A `Desk` is what `ScriptedUser`, the clerk, `make_tasks` and the rule judge know of a domain. They
serve any desk of `desks.DESKS`; `shop_desk.py` is retail's, `carrier_desk.py` the airline's.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

from tarl_jax.config import ShopConfig
from tarl_jax.sandbox.domain import Database, Domain, Record
from tarl_jax.sandbox.phrases import Phrases
from tarl_jax.types import Call

Errs = Callable[[str], bool]  # whether the clerk makes this error of ClerkConfig now


def call_key(call: Call) -> str:
    """Equal for equal calls."""
    return json.dumps(call.to_json(), sort_keys=True)


class Wish(abc.ABC):
    """What the requests of all desks have in common. A desk's own is a frozen dataclass.

    Attributes:
      kind: what is asked for, one of the desk's kinds.
      reason: why, one of the desk's `phrases.reasons`; empty where it does not matter.
      denial: on which ground the policy forbids it; empty if it allows it.
      change: how the user changes its mind at the confirmation; empty if it does not.
      then: the wish after the change; None where the request is dropped.
      aside: what the user says beside it that asks for nothing.
    """

    kind: str
    reason: str
    denial: str
    change: str
    then: Any
    aside: str

    @property
    @abc.abstractmethod
    def record_id(self) -> str:
        """The order, reservation or the like that it is about."""

    @property
    @abc.abstractmethod
    def call(self) -> Call | None:
        """The write that it asks for, allowed or not; None of a question."""

    @property
    def final(self) -> Self | None:
        """The wish that stands at the end, or None if the user drops it."""
        return self.then if self.change else self

    @property
    def gold(self) -> Call | None:
        """The write call that fulfils the final wish; None if nothing may be written."""
        wish = self.final
        return None if self.denial or wish is None else wish.call

    def to_json(self) -> dict[str, Any]:
        data = dict(vars(self))
        if not self.aside:
            del data["aside"]
        return {**data, "then": self.then.to_json() if self.then else None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        then = data.get("then")
        return cls(**{**data, "then": cls.from_json(then) if then else None})


W = TypeVar("W", bound=Wish)


@dataclasses.dataclass(frozen=True)
class Customer:
    """Who a scripted user is.

    identify: what the user remembers of itself, one of the desk's `phrases.identity`.
    eager: whether the opening already says who the user is.
    """

    first_name: str
    last_name: str
    email: str
    zip: str
    identify: str
    eager: bool


class Desk(abc.ABC, Generic[W]):
    """One domain's desk. It has no state.

    Attributes:
      source: of its tasks (`Task.source`), and the beginning of their ids.
      table: of the records that requests are about; each user's record lists its own under the
        same name.
      record, a_record: what such a record is called, without and with the article.
      wish: the dataclass of its requests.
      reads: kinds of requests that are served by an answer, without a write.
      identify: what users remember, drawn with equal weight.
      early: the grounds of a refusal that the record, or what the user says, shows by itself;
        for others there is more to look up.
      finders: tools that find a user's account; empty where the user's word is enough.
      phrases: what user and clerk say.
    """

    source: ClassVar[str]
    table: ClassVar[str]
    record: ClassVar[str]
    a_record: ClassVar[str]
    wish: type[W]
    reads: ClassVar[tuple[str, ...]]
    identify: ClassVar[tuple[str, ...]]
    early: ClassVar[frozenset[str]]
    finders: ClassVar[tuple[str, ...]]
    phrases: ClassVar[Phrases]

    # --- tasks ------------------------------------------------------------------------------------

    @abc.abstractmethod
    def make_database(self, config: ShopConfig, branch: int) -> Database:
        """The embedded data, a pure function of the arguments; each branch has its own users."""

    @abc.abstractmethod
    def make_request(
        self, rng: random.Random, database: Database, user: Record, record: Record, forbidden: bool
    ) -> W | None:
        """A request about a record, allowed or forbidden; None if the record admits none."""

    @abc.abstractmethod
    def with_change(
        self, rng: random.Random, database: Database, user: Record, record: Record, request: W
    ) -> W:
        """The request with a change of mind, where it admits one."""

    @abc.abstractmethod
    def user_id(self, domain: Domain, customer: Customer) -> str:
        """Whose account it is."""

    @abc.abstractmethod
    def known(self, customer: Customer, user_id: str) -> str:
        """What the hidden instruction says that the user remembers, e.g. "email a@b.c"."""

    @abc.abstractmethod
    def right_answer(self, request: W, record: Record) -> str:
        """What a request of `reads` asks of a record."""

    # --- the user ---------------------------------------------------------------------------------

    @abc.abstractmethod
    def words(self, wish: W) -> dict[str, Any]:
        """What stands in the slots of the phrases' `requests` and `changes`."""

    @abc.abstractmethod
    def matches(self, message: str, wish: W) -> bool:
        """Whether a proposal of the right kind says what the user wants, as far as it can tell."""

    # --- the clerk --------------------------------------------------------------------------------

    @abc.abstractmethod
    def find_user(self, customer: Customer) -> Call | None:
        """The call that finds the user's account; None where the user says its id."""

    @abc.abstractmethod
    def look(self, wish: W) -> Call:
        """Reads the record that the wish is about."""

    @abc.abstractmethod
    def look_further(self, wish: W, user_id: str) -> list[Call]:
        """What else must be read before the wish can be granted."""

    @abc.abstractmethod
    def answer(self, request: W, record: Record) -> str:
        """What the clerk says to a request of `reads`."""

    @abc.abstractmethod
    def proposal(self, wish: W, record: Record, known: Mapping[str, Any]) -> str:
        """What the clerk asks a yes for. known: answers so far, by `call_key`."""

    @abc.abstractmethod
    def refusal(self, ground: str, request: W, record: Record) -> str:
        """What the clerk says to refuse. ground: empty after a write that a tool rejected against
        expectation."""

    @abc.abstractmethod
    def wrong_grounds(self, request: W) -> list[str]:
        """On which grounds an erring clerk may refuse what is allowed; at least one."""

    @abc.abstractmethod
    def write(
        self, wish: W, record: Record, known: Mapping[str, Any], errs: Errs, rng: random.Random
    ) -> Call:
        """The write of a wish, perhaps with errors."""

    # --- the judge --------------------------------------------------------------------------------

    @abc.abstractmethod
    def evidence(self, request: W, user_id: str) -> list[Call]:
        """What must have been read before the request is refused on its ground."""

    @abc.abstractmethod
    def check_refusal(
        self, request: W, text: str, record: Record | None
    ) -> tuple[int, str] | None:
        """Score and note of a refusal on the right ground whose facts are wrong; None if right.

        record: as it was read; None where it was not.
        """

    @abc.abstractmethod
    def told(self, request: W, text: str) -> set[str]:
        """The answers that a message gives to a request of `reads`."""

    # --- speech -----------------------------------------------------------------------------------

    @abc.abstractmethod
    def values(self, customer: Customer, user_id: str) -> list[str]:
        """How users say who they are, for a policy that learns to hear names and numbers."""

    @abc.abstractmethod
    def things(self, request: W) -> list[str]:
        """What users name beside the record's id."""
