"""What Schemathesis is to do otherwise: whole numbers are sent as the document's introduction asks.

To JSON Schema 1.0 is an integer, so requests that are meant to be right would hold it, and be refused before they
reach anything of interest.
"""

import schemathesis


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
