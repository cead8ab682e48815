"""JSON schemas of settings: fill in defaults, and format validation errors."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterable
from typing import Any


def nearest(name: object, valid: Iterable[str]) -> str:
    """Return a hint with the nearest valid name (`did you mean "x"?`), or with all valid names if none is near."""
    names = sorted(valid)
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    if close:
        return f'did you mean "{close[0]}"?'
    return f"valid: {', '.join(names)}" if names else "there is none"


def fill_defaults(value: Any, schema: dict[str, Any]) -> None:
    """Fill in the schema's defaults below `properties`, `items` and `additionalProperties`, in place."""
    if isinstance(value, list):
        for item in value:
            fill_defaults(item, schema.get("items", {}))
    elif isinstance(value, dict):
        children = schema.get("properties", {})
        for key, child in children.items():
            if key not in value and "default" in child:
                value[key] = copy.deepcopy(child["default"])
        others = schema.get("additionalProperties") or {}
        for key, item in value.items():
            fill_defaults(item, children.get(key, others))


def explain(errors: Iterable[Any], whole: str = "the configuration") -> list[str]:
    """Format jsonschema errors as distinct lines. `whole` names the checked object."""
    return list(dict.fromkeys(line for error in errors for line in _lines(error, whole)))


def _lines(error: Any, whole: str) -> list[str]:
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        valid = error.schema.get("properties", {})
        extra = sorted(str(key) for key in error.instance if key not in valid)
        return [f"unknown setting {where + '.' if where else ''}{key}: {nearest(key, valid)}" for key in extra]
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return [f"missing setting {where + '.' if where else ''}{key}" for key in missing]
    if error.validator == "enum":
        return [f"{where} is {error.instance!r}: {nearest(error.instance, map(str, error.validator_value))}"]
    if error.validator == "anyOf":
        allowed = [str(v) for option in error.validator_value for v in option.get("enum", [])]
        return [f"{where} is {error.instance!r}: {nearest(error.instance, allowed)} (or a list)"]
    if error.validator == "type":
        if "number" in error.validator_value and isinstance(error.instance, str) and _is_number(error.instance):
            return [f'{where} is the text "{error.instance}": YAML reads a number only with a dot, such as 1.0e-5']
        return [f"{where or whole} is {_as_json(error.instance)}: expected {error.validator_value}"]
    return [f"{where or whole}: {error.message}"]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, default=str)
    except TypeError:  # YAML allows keys that JSON does not
        return repr(value)
