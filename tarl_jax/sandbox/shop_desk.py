"""Retail's desk: what the embedded shop's users, clerk and judge know of it."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from tarl_jax.config import ShopConfig
from tarl_jax.sandbox import shop, shop_blueprint
from tarl_jax.sandbox.desk import Customer, Desk, Errs, call_key
from tarl_jax.sandbox.domain import Database, Domain, Record
from tarl_jax.sandbox.shop_phrases import PHRASES
from tarl_jax.sandbox.shop_requests import READS, REASONS, Request, right_answer, write_call
from tarl_jax.types import Call

_METHOD = re.compile(r"\b(?:credit_card|gift_card|paypal)_\w+")


class ShopDesk(Desk[Request]):
    source = "shop"
    table = "orders"
    record, a_record = "order", "an order"
    wish = Request
    reads = READS
    identify = ("email", "email", "name")
    early = frozenset({"status", "reason"})
    finders = ("find_user_id_by_email", "find_user_id_by_name_zip")
    phrases = PHRASES

    # --- tasks ------------------------------------------------------------------------------------

    def make_database(self, config: ShopConfig, branch: int) -> Database:
        return shop.make_shop(config, branch)

    def make_request(
        self, rng: random.Random, database: Database, user: Record, record: Record, forbidden: bool
    ) -> Request | None:
        return shop_blueprint.make_request(rng, database, user, record, forbidden)

    def with_change(
        self, rng: random.Random, database: Database, user: Record, record: Record,
        request: Request,
    ) -> Request:  # fmt: skip
        return shop_blueprint.with_change(rng, database, record, request)

    def user_id(self, domain: Domain, customer: Customer) -> str:
        return domain.call(domain.new_state(), "find_user_id_by_email", {"email": customer.email})

    def known(self, customer: Customer, user_id: str) -> str:
        by_email = customer.identify == "email"
        return f"email {customer.email}" if by_email else f"zip code {customer.zip}"

    def right_answer(self, request: Request, record: Record) -> str:
        return right_answer(request.kind, record)

    # --- the user ---------------------------------------------------------------------------------

    def words(self, wish: Request) -> dict[str, Any]:
        return {"order": wish.order_id, "item": wish.item, "option": wish.option,
                "method": wish.method}

    def matches(self, message: str, wish: Request) -> bool:
        words = {
            "cancel": () if wish.denial == "reason" else (wish.reason,),
            "return": (wish.item,),
            "exchange": (wish.item, wish.option),
            "modify": (wish.item, wish.option),
            "payment": (wish.payment_method_id,),
        }[wish.kind]
        if wish.order_id not in message or not all(word in message for word in words):
            return False
        # A proposal that names everything at once says nothing.
        meant = shop.named_in(f"{wish.item} {wish.option}")
        named = shop.named_in(message)
        one_of_each = (re.findall(r"#\w+", message), _METHOD.findall(message),
                       [reason for reason in PHRASES.reasons if reason in message])
        return named <= meant and all(len(set(found)) <= 1 for found in one_of_each)

    # --- the clerk --------------------------------------------------------------------------------

    def find_user(self, customer: Customer) -> Call | None:
        if customer.identify == "email":
            return Call("find_user_id_by_email", {"email": customer.email})
        names = {"first_name": customer.first_name, "last_name": customer.last_name}
        return Call("find_user_id_by_name_zip", {**names, "zip": customer.zip})

    def look(self, wish: Request) -> Call:
        return Call("get_order_details", {"order_id": wish.order_id})

    def look_further(self, wish: Request, user_id: str) -> list[Call]:
        if wish.kind in ("exchange", "modify"):
            return [Call("get_product_details", {"product_id": wish.product_id})]
        if wish.kind == "payment":
            return [Call("get_user_details", {"user_id": user_id})]
        return []

    def answer(self, request: Request, record: Record) -> str:
        return PHRASES.answers[request.kind].format(
            order=request.order_id, answer=right_answer(request.kind, record)
        )

    def proposal(self, wish: Request, record: Record, known: Mapping[str, Any]) -> str:
        reason = wish.reason if wish.reason in REASONS else REASONS[0]
        return PHRASES.proposals[wish.kind].format(
            order=wish.order_id,
            item=wish.item,
            option=wish.option,
            reason=reason,
            method_id=wish.payment_method_id,
        )

    def refusal(self, ground: str, request: Request, record: Record) -> str:
        # A write that is rejected against expectation is rejected for the status.
        return PHRASES.refusals[ground or "status"].format(
            status=record["status"], option=request.option
        )

    def wrong_grounds(self, request: Request) -> list[str]:
        grounds = ["status"]
        if request.kind in ("exchange", "modify"):
            grounds.append("unavailable")
        if request.kind == "cancel":
            grounds.append("reason")
        return grounds

    def write(
        self, wish: Request, record: Record, known: Mapping[str, Any], errs: Errs,
        rng: random.Random,
    ) -> Call:  # fmt: skip
        call = write_call(wish)
        kwargs = dict(call.kwargs)
        if wish.kind == "cancel":
            if wish.reason not in REASONS:
                kwargs["reason"] = REASONS[0]
            if errs("wrong_reason"):
                kwargs["reason"] = REASONS[1 - REASONS.index(kwargs["reason"])]
        if "item_ids" in kwargs:
            others = [i["item_id"] for i in record["items"] if i["item_id"] != wish.item_id]
            if others and errs("wrong_item"):
                kwargs["item_ids"] = [rng.choice(others)]
        if "new_item_ids" in kwargs and errs("wrong_variant"):
            (look,) = self.look_further(wish, "")
            variants = known[call_key(look)]["variants"]
            others = [i for i in variants if i not in (wish.new_item_id, wish.item_id)]
            kwargs["new_item_ids"] = [rng.choice(others or [wish.new_item_id])]
        return Call(call.name, kwargs)

    # --- the judge --------------------------------------------------------------------------------

    def evidence(self, request: Request, user_id: str) -> list[Call]:
        match request.denial:
            case "status":
                return [self.look(request)]
            case "unavailable":
                return [Call("get_product_details", {"product_id": request.product_id})]
            case "balance":
                return [Call("get_user_details", {"user_id": user_id})]
        return []

    def check_refusal(
        self, request: Request, text: str, record: Record | None
    ) -> tuple[int, str] | None:
        told = {word for word in shop.STATUS_WEIGHTS if word in text.lower()}
        if request.denial == "status" and record is not None and record["status"] not in told:
            return -1, "tells a wrong status"
        if request.denial == "status" and len(told) > 1:
            return 0, "tells several statuses"
        asked = set(request.option.split())
        named = shop.named_in(text) - set(request.item.split())
        if request.denial == "unavailable" and named != asked:
            return 0, "names another option than the one that was asked for"
        return None

    def told(self, request: Request, text: str) -> set[str]:
        said = re.sub(r"#\w+", "", text.lower())
        if request.kind == "ask_status":
            return {word for word in shop.STATUS_WEIGHTS if word in said}
        return set(re.findall(r"\d+(?:\.\d+)?", said))

    # --- speech -----------------------------------------------------------------------------------

    def values(self, customer: Customer, user_id: str) -> list[str]:
        return [customer.email, f"{customer.first_name} {customer.last_name}, {customer.zip}."]

    def things(self, request: Request) -> list[str]:
        return [word for word in (request.item, request.option, request.method) if word]
