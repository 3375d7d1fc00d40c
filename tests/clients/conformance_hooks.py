"""What Schemathesis is to do otherwise: whole numbers are sent as the document's introduction asks.

To JSON Schema 1.0 is an integer, so requests that are meant to be right would hold it, and be refused before they
reach anything of interest. Files of pairs are made of pairs, for what is made up for them otherwise is no JSON.
"""

import json

import schemathesis
from hypothesis import strategies


@schemathesis.hook
def map_body(_context, body):
    return without_fraction(body)


def without_fraction(value):
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [without_fraction(item) for item in value]
        case dict():
            return {key: without_fraction(item) for key, item in value.items()}
        case _:
            return value


def lines(numbers):
    """Pairs of prompts, one a line."""
    return b"".join(json.dumps(pair(number)).encode() + b"\n" for number in numbers)


def pair(number):
    return {
        "presented": {"prompt": f"x = [{number}", "answer": "]\n"},
        "counterfactual": {"prompt": f"x = ({number}", "answer": ")\n"},
    }


files = strategies.lists(strategies.integers(0, 999), unique=True, max_size=60).map(lines)
schemathesis.openapi.media_type("application/x-ndjson", files)
