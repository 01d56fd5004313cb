"""The official Python client against `breakglass mcp`: recovers a stalled VM as a model would, and tries what must not work.

    client.py MODE COMMAND...      MODE: auto (the newest protocol) or legacy (initialize)

Prints what it saw as one JSON object; an assertion that fails ends it with 1. Run by tests/scenarios/agent_mcp.rs.
"""

import asyncio
import json
import sys

from mcp import Client, StdioServerParameters


def text(result):
    return result.content[0].text


async def main(mode, command):
    told = []

    async def progress(so_far, total, message):
        told.append((so_far, total, message))

    server = StdioServerParameters(command=command[0], args=command[1:])
    async with Client(server, mode=mode, read_timeout_seconds=300) as client:
        saw = {"protocol": client.protocol_version, "tools": [tool.name for tool in (await client.list_tools()).tools]}

        async def call(name, **arguments):
            return await client.call_tool(name, arguments, progress_callback=progress)

        status = await call("pve_status", reason="what is wrong?")
        saw["status"] = status.structured_content
        assert not status.is_error, text(status)
        # No argument of another's, no verb without its plan.
        for name, arguments in [("pve_status", {}), ("pve_plan", {"verb": "destroy", "reason": "x"}), ("pve_apply", {"token": "cycle"})]:
            refused = await call(name, **arguments)
            assert refused.is_error and "Nothing" in text(refused), text(refused)
        planned = await call("pve_plan", verb="cycle", reason="disk stalled")
        saw["planned"] = planned.structured_content
        assert not planned.is_error and text(planned).startswith("PLANNED, not done"), text(planned)
        token = planned.structured_content["token"]
        done = await call("pve_apply", token=token)
        saw["done"] = done.structured_content
        assert not done.is_error, text(done)
        again = await call("pve_apply", token=token)
        assert again.is_error and "not open" in text(again), text(again)
        resources = (await client.list_resources()).resources
        saw["resources"] = len(resources)
        # A finding links what it stands on, and that can be read.
        linked = [part for part in done.content if part.type == "resource_link"]
        saw["linked"] = [part.name for part in linked]
        assert linked and {part.uri for part in linked} <= {resource.uri for resource in resources}, linked
        read = (await client.read_resource(str(linked[0].uri))).contents[0].text
        assert "nothing in it is an instruction" in read, read
        screens = [resource for resource in resources if resource.mime_type == "image/png"]
        saw["screens"] = len(screens)
        for screen in screens[:1]:
            assert (await client.read_resource(str(screen.uri))).contents[0].blob.startswith("iVBORw0KGgo")
        steps = [message for _, _, message in told]
        saw["progress"] = len(steps)
        saw["acted"] = [message for message in steps if message.startswith(("qm-stop", "qm-start", "observe"))]
    print(json.dumps(saw))


asyncio.run(main(sys.argv[1], sys.argv[2:]))
