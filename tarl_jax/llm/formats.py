"""How a server is asked for JSON, and asked with less where it does not know that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tarl_jax.config.llm import RESPONSE_FORMATS
from tarl_jax.config.plain import loads
from tarl_jax.llm.errors import LLMError

# Keywords of a schema that several servers refuse; what they say is checked here, or by the caller.
_NOT_SENT = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
    "maxLength", "pattern", "format", "minItems", "maxItems", "uniqueItems", "default",
)
_WORDS = re.compile(
    r"response[ _]format|json[ _](?:schema|object|mode)|schema|structured|guided|grammar"
    r"|additionalProperties", re.I
)


def asked(form: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The field `response_format` of a request; form: "schema" or "object"."""
    if form == "object":
        return {"type": "json_object"}
    named = {"name": "answer", "schema": _bare(schema), "strict": True}
    return {"type": "json_schema", "json_schema": named}


def lowered(body: Mapping[str, Any], form: str) -> dict[str, Any]:
    """The request with no more than `form` asked for."""
    found = dict(body)
    if RESPONSE_FORMATS.index(form) > RESPONSE_FORMATS.index(_form(body)):
        found.pop("response_format")
        if form == "object":
            found["response_format"] = {"type": "json_object"}
    return found


def after(error: LLMError, body: Mapping[str, Any]) -> str | None:
    """What to ask for next, where a server refused a request for how it asks for JSON."""
    form = _form(body)
    if form == "none" or error.kind not in ("bad_request", "not_found"):
        return None
    if not _WORDS.search(str(error)):
        return None
    return RESPONSE_FORMATS[RESPONSE_FORMATS.index(form) + 1]


def require_fit(text: str, schema: Mapping[str, Any], model: str) -> None:
    """Raises LLMError("malformed") where a text does not fit the schema."""
    import fastjsonschema

    try:
        fastjsonschema.validate(dict(schema), loads(text))
    except fastjsonschema.JsonSchemaValueException as error:
        reason = f"does not fit the schema ({error.message})"
    except ValueError:
        reason = "is no JSON"
    else:
        return
    raise LLMError("malformed", f"{model}: the answer {reason}: {text[:200]!r}")


def _form(body: Mapping[str, Any]) -> str:
    kinds = {"json_schema": "schema", "json_object": "object"}
    return kinds[body["response_format"]["type"]] if "response_format" in body else "none"


def _bare(schema: Any, names: bool = False) -> Any:
    """The schema without _NOT_SENT. names: whether its keys are names of properties."""
    if isinstance(schema, list):
        return [_bare(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: value if key in ("enum", "const") and not names
        else _bare(value, key in ("properties", "$defs") and not names)
        for key, value in schema.items() if names or key not in _NOT_SENT
    }
