"""The tools, resources and prompts that the conformance suites call by name, on a server made by the app factory.

They show that what this gateway puts around the SDK (authorisation, guards, limits, streams) keeps the protocol whole.
"""

import asyncio
import base64
from typing import Any

import mcp_types as types
from fastmcp import Context, FastMCP
from fastmcp.exceptions import ToolError
from fastmcp.prompts import Message
from fastmcp.tools import Tool, ToolResult
from mcp.server.subscriptions import PromptsListChanged, ToolsListChanged
from mcp.shared.exceptions import MCPError
from mcp_types import MISSING_REQUIRED_CLIENT_CAPABILITY as MISSING

from systemmanager.server.changes import Changes

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAV = base64.b64encode(
    b"RIFF\x26\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0data\x02\0\0\0\x80\x80"
).decode()
IMAGE = types.ImageContent(type="image", data=PNG, mime_type="image/png")


def embedded(uri: str, text: str, mime: str = "text/plain") -> types.EmbeddedResource:
    return types.EmbeddedResource(
        type="resource", resource=types.TextResourceContents(uri=uri, mime_type=mime, text=text)
    )


def text(value: str) -> types.TextContent:
    return types.TextContent(type="text", text=value)


def add_fixtures(server: FastMCP, changes: Changes) -> None:
    _add_content(server)
    _add_conversation(server)
    _add_changes(server, changes)
    _add_rounds(server)
    _add_resources(server)
    _add_prompts(server)


def _add_content(server: FastMCP) -> None:
    answers: dict[str, list[Any]] = {
        "test_simple_text": [text("This is a simple text response for testing.")],
        "test_image_content": [IMAGE],
        "test_audio_content": [types.AudioContent(type="audio", data=WAV, mime_type="audio/wav")],
        "test_embedded_resource": [embedded("test://embedded-resource", "This is an embedded resource content.")],
        "test_multiple_content_types": [
            text("Multiple content types test:"),
            IMAGE,
            embedded("test://mixed-content-resource", '{"test":"data"}', "application/json"),
        ],
    }
    for name, content in answers.items():
        server.add_tool(Fixed.of(name, content))
    server.add_tool(Fixed.of("json_schema_2020_12_tool", [text("ok")], JSON_SCHEMA))

    @server.tool(description="Fails.")
    async def test_error_handling() -> str:
        raise ToolError("This tool intentionally returns an error for testing")


class Fixed(Tool):
    """A tool that always answers the same."""

    content: list[Any] = []  # noqa: RUF012

    @classmethod
    def of(cls, name: str, content: list[Any], parameters: dict[str, Any] | None = None) -> "Fixed":
        schema = parameters or {"type": "object", "properties": {}}
        return cls(name=name, description="A fixture of the conformance suite.", parameters=schema, content=content)

    async def run(self, arguments: dict[str, Any]) -> ToolResult:
        return ToolResult(content=self.content)


def _add_conversation(server: FastMCP) -> None:
    @server.tool(description="Logs three lines.")
    async def test_tool_with_logging(ctx: Context) -> str:
        for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.info(line)
            await asyncio.sleep(0.05)
        return "done"

    @server.tool(description="Logs one line.")
    async def test_logging_tool(ctx: Context) -> str:
        await ctx.info("one line")
        return "done"

    @server.tool(description="Reports progress.")
    async def test_tool_with_progress(ctx: Context) -> str:
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100, f"{done} of 100")
            await asyncio.sleep(0.05)
        return "done"

    @server.tool(description="Asks the client's model.")
    async def test_sampling(prompt: str, ctx: Context) -> str:
        said = types.SamplingMessage(role="user", content=text(prompt))
        answer = await ctx.session.create_message(messages=[said], max_tokens=100, related_request_id=ctx.request_id)
        return f"LLM response: {answer.content}"

    @server.tool(description="Asks the person.")
    async def test_elicitation(message: str, ctx: Context) -> str:
        return await _elicit(ctx, message, {name: {"type": "string"} for name in ("username", "email")})

    @server.tool(description="Asks the person, with defaults.")
    async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
        return await _elicit(ctx, "Defaults", DEFAULTS)

    @server.tool(description="Asks the person to choose.")
    async def test_elicitation_sep1330_enums(ctx: Context) -> str:
        return await _elicit(ctx, "Choices", ENUMS)

    @server.tool(description="Needs the client's model.")
    async def test_missing_capability(ctx: Context) -> str:
        capabilities = ctx.session.client_capabilities
        if capabilities is None or capabilities.sampling is None:
            raise MCPError(MISSING, "sampling is required", {"requiredCapabilities": {"sampling": {}}})
        return "done"


async def _elicit(ctx: Context, message: str, properties: dict[str, Any]) -> str:
    """Ask on the stream of the call itself: the standing stream may not be open yet."""
    schema = {"type": "object", "properties": properties, "required": []}
    answer = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
    return f"Elicitation completed: action={answer.action}, content={answer.content}"


def _add_changes(server: FastMCP, changes: Changes) -> None:
    @server.tool(description="Says that the tools have changed.")
    async def test_trigger_tool_change() -> str:
        await changes.announce(ToolsListChanged())
        return "done"

    @server.tool(description="Says that the prompts have changed.")
    async def test_trigger_prompt_change() -> str:
        await changes.announce(PromptsListChanged())
        return "done"


# --- several rounds (2026-07-28) -------------------------------------------------------------------------------------


def ask_person(message: str, field: str) -> types.ElicitRequest:
    schema = {"type": "object", "properties": {field: {"type": "string"}}, "required": [field]}
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=message, requested_schema=schema))


def ask_model(message: str) -> types.CreateMessageRequest:
    said = types.SamplingMessage(role="user", content=text(message))
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=[said], max_tokens=100))


def required(requests: dict[str, Any], state: str | None = None) -> types.InputRequiredResult:
    return types.InputRequiredResult(input_requests=requests, request_state=state)


ROUNDS: dict[str, tuple[dict[str, Any], str | None]] = {
    "test_input_required_result_elicitation": ({"user_name": ask_person("What is your name?", "name")}, None),
    "test_streaming_elicitation": ({"user_name": ask_person("What is your name?", "name")}, None),
    "test_input_required_result_sampling": ({"capital_question": ask_model("What is the capital of France?")}, None),
    "test_input_required_result_list_roots": ({"client_roots": types.ListRootsRequest()}, None),
    "test_input_required_result_request_state": ({"confirm": ask_person("Please confirm", "ok")}, "state"),
    "test_input_required_result_tampered_state": ({"confirm": ask_person("Please confirm", "ok")}, "state"),
    "test_input_required_result_multiple_inputs": (
        {
            "user_name": ask_person("What is your name?", "name"),
            "greeting": ask_model("Generate a greeting"),
            "client_roots": types.ListRootsRequest(),
        },
        "state",
    ),
}


class Round(Tool):
    """A tool that needs answers from the client before it can finish."""

    async def run(self, arguments: dict[str, Any]) -> Any:
        from fastmcp.server.dependencies import get_context
        from fastmcp.tools.base import InputRequiredToolResult

        ctx = get_context()
        requests, state = ROUNDS[self.name]
        answers = ctx.input_responses or {}
        if not requests.keys() <= answers.keys():
            return InputRequiredToolResult(required(requests, state))
        if state is not None and ctx.request_state != state:
            raise ToolError("the state is not ours")
        return ToolResult(content=[text("Hello, state-ok")])


def _add_rounds(server: FastMCP) -> None:
    for name in ROUNDS:
        server.add_tool(Round(name=name, description="Needs input.", parameters={"type": "object", "properties": {}}))

    @server.tool(description="Needs two rounds of input.", output_schema=None)
    async def test_input_required_result_multi_round(ctx: Context) -> Any:
        answers = ctx.input_responses or {}
        if ctx.request_state == "one" and "step1" in answers:
            return required({"step2": ask_person("Step 2: What is your favorite color?", "color")}, "two")
        if ctx.request_state == "two" and "step2" in answers:
            return ToolResult(content=[text("done")])
        return required({"step1": ask_person("Step 1: What is your name?", "name")}, "one")

    @server.tool(description="Asks only what the client can answer.", output_schema=None)
    async def test_input_required_result_capabilities(ctx: Context) -> Any:
        held = ctx.session.client_capabilities
        requests: dict[str, Any] = {}
        if held is not None and held.elicitation is not None:
            requests["name"] = ask_person("What is your name?", "name")
        if held is not None and held.sampling is not None:
            requests["greeting"] = ask_model("Generate a greeting")
        return required(requests) if requests else ToolResult(content=[text("nothing to ask")])

    @server.prompt(description="Needs input.")
    async def test_input_required_result_prompt(ctx: Context) -> Any:
        if "user_context" not in (ctx.input_responses or {}):
            return required({"user_context": ask_person("What context should the prompt use?", "context")})
        return [Message("The context is there.")]


# --- resources and prompts -------------------------------------------------------------------------------------------


def _add_resources(server: FastMCP) -> None:
    @server.resource("test://static-text", mime_type="text/plain", description="A text.")
    async def static_text() -> str:
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png", description="An image.")
    async def static_binary() -> bytes:
        return base64.b64decode(PNG)

    @server.resource("test://watched-resource", mime_type="text/plain", description="A text to subscribe to.")
    async def watched() -> str:
        return "Watched resource content"

    @server.resource("test://template/{id}/data", mime_type="application/json", description="A template.")
    async def template(id: str) -> str:
        return f'{{"id":"{id}","templateTest":true,"data":"Data for ID: {id}"}}'

    async def nothing(*_: Any) -> types.EmptyResult:
        return types.EmptyResult()

    low = server._mcp_server
    low.add_request_handler("resources/subscribe", types.SubscribeRequestParams, nothing)
    low.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, nothing)


def _add_prompts(server: FastMCP) -> None:
    @server.prompt(description="A simple prompt.")
    async def test_simple_prompt() -> list[Message]:
        return [Message("This is a simple prompt for testing.")]

    @server.prompt(description="A prompt with arguments.")
    async def test_prompt_with_arguments(arg1: str, arg2: str) -> list[Message]:
        return [Message(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'")]

    @server.prompt(description="A prompt with a resource.")
    async def test_prompt_with_embedded_resource(resourceUri: str) -> list[Message]:
        resource = embedded(resourceUri, "Embedded resource content for testing.")
        return [Message(resource), Message("Please process the embedded resource above.")]

    @server.prompt(description="A prompt with an image.")
    async def test_prompt_with_image() -> list[Message]:
        return [Message(IMAGE), Message("Please analyze the image above.")]


OPTIONS = ["option1", "option2", "option3"]
TITLED = [{"const": f"value{n}", "title": f"{name} Option"} for n, name in enumerate(("First", "Second", "Third"), 1)]
ENUMS: dict[str, Any] = {
    "untitledSingle": {"type": "string", "enum": OPTIONS},
    "titledSingle": {"type": "string", "oneOf": TITLED},
    "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": ["One", "Two", "Three"]},
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": OPTIONS}},
    "titledMulti": {"type": "array", "items": {"anyOf": TITLED}},
}
DEFAULTS: dict[str, Any] = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
JSON_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
