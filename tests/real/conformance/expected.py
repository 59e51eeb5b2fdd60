"""What the conformance suites are expected to find amiss, and why. A failure that is not here fails the test."""

FIXTURES = "calls tools, resources or prompts named test_*, which only the fixture server has"
POLLING = "resumable streams (SSE polling): the gateway keeps no event store, a call that was cut is not replayed"
NEVER_ASKS = "a task never asks: what has to be asked is asked before the job begins"
NEVER_REQUIRED = "no tool needs a client that takes tasks"
NEVER_FAILS = "a job always ends with an answer of its tool, never with an error of the protocol"
HEADERS = "no tool asks for x-mcp-header parameters"

EVERYWHERE: dict[str, str] = {
    "server-sse-polling": POLLING,
    "http-custom-header-server-validation": HEADERS,
    "tasks-lifecycle": NEVER_FAILS,
    "tasks-mrtr-input": NEVER_ASKS,
    "tasks-required-task-error": NEVER_REQUIRED,
}

ONLY: dict[str, set[str]] = {"tasks-lifecycle": {"sep-2663-tasks-get-status-failed"}}
"""Where a scenario fails everywhere, but in these checks alone."""

ON_THE_REAL_SERVER: dict[str, str] = {
    **EVERYWHERE,
    "tasks-lifecycle": FIXTURES,
    "tasks-capability-negotiation": FIXTURES,
    "tasks-wire-fields": FIXTURES,
    "tasks-request-state-removal": FIXTURES,
    "tasks-request-headers": FIXTURES,
    "tasks-dispatch-and-envelope": FIXTURES,
    "tasks-mrtr-composition": FIXTURES,
    "tools-call-image": FIXTURES,
    "tools-call-audio": FIXTURES,
    "tools-call-embedded-resource": FIXTURES,
    "tools-call-mixed-content": FIXTURES,
    "tools-call-with-logging": FIXTURES,
    "tools-call-with-progress": FIXTURES,
    "tools-call-sampling": FIXTURES,
    "tools-call-elicitation": FIXTURES,
    "elicitation-sep1034-defaults": FIXTURES,
    "elicitation-sep1330-enums": FIXTURES,
    "json-schema-2020-12": FIXTURES,
    "resources-read-text": FIXTURES,
    "resources-read-binary": FIXTURES,
    "resources-templates-read": FIXTURES,
    "resources-subscribe": "subscribing to one resource is not offered; list changes are announced",
    "resources-unsubscribe": "subscribing to one resource is not offered; list changes are announced",
    "prompts-get-simple": FIXTURES,
    "prompts-get-with-args": FIXTURES,
    "prompts-get-embedded-resource": FIXTURES,
    "prompts-get-with-image": FIXTURES,
    "server-stateless": "two of its 28 checks call test_missing_capability",
    "input-required-result-basic-elicitation": FIXTURES,
    "input-required-result-basic-sampling": FIXTURES,
    "input-required-result-basic-list-roots": FIXTURES,
    "input-required-result-request-state": FIXTURES,
    "input-required-result-multiple-input-requests": FIXTURES,
    "input-required-result-multi-round": FIXTURES,
    "input-required-result-non-tool-request": FIXTURES,
    "input-required-result-result-type": FIXTURES,
    "input-required-result-tampered-state": FIXTURES,
    "input-required-result-capability-check": FIXTURES,
}
