"""The public surface against its own description: whatever is sent, the answer is one that is described, and no 5xx."""

from __future__ import annotations

from pathlib import Path

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.fuzz.serving import VECTORS
from tests.house import MODEL

SESSION = requests.Session()  # one connection for all
EXAMPLES = settings().max_examples // 10
BEYOND_SHAPES = (b"unknown task", b"printable characters", b"expected a whole number")  # 1.0 is no whole number to Go
described = schemathesis.openapi.from_path(Path(__file__).parent.parent.parent / "gateway" / "openapi.yaml")


@described.parametrize()  # type: ignore[untyped-decorator, unused-ignore]
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_every_answer_is_one_that_is_described(case: schemathesis.Case, url: str) -> None:
    give_a_model(case)
    response = case.call(base_url=url, session=SESSION)
    unforeseeable = any(words in response.content for words in BEYOND_SHAPES)
    stricter = "x-gateway-instance" in response.headers  # an instance refused what the gateway lets pass
    excluded = [positive_data_acceptance] if unforeseeable or stricter else []
    if case.media_type == "multipart/form-data":
        excluded.append(negative_data_rejection)  # in a form everything is text, so no type can be wrong
    if b'"done_reason":"load"' in response.content:
        excluded.append(negative_data_rejection)  # it takes no place in line, so no header of the line's is looked at
    if case.path == "/gateway/explain":
        excluded.append(not_a_server_error)  # it says what a call would be answered, which may be that nobody can
    case.validate_response(response, excluded_checks=excluded)


def give_a_model(case: schemathesis.Case) -> None:
    """Half of what is asked is asked of a model there is: else most would end at its name."""
    named = case.body.get("model") if isinstance(case.body, dict) else None
    if not isinstance(named, str) or not 1 <= len(named) <= 256:
        return  # which is to be refused
    if not named.isprintable() or not named.strip() or len(named) % 2:
        case.body["model"] = VECTORS if "embed" in case.path else MODEL
