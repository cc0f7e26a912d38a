"""What an OPC UA server says of itself: BuildInfo and the NamespaceArray (Part 5, 12.4 and 6.3.2)."""

from __future__ import annotations

from asyncua import Client, ua

from connectors.opcua_profile import BUILD_INFO, build_facts


async def server_facts(client: Client) -> tuple[dict[str, str], list[str]]:
    """Facts for the choice of profiles, and the server's namespaces. Raises ua.UaError, OSError."""
    build = await client.get_node(ua.NodeId(ua.Int32(ua.ObjectIds.Server_ServerStatus_BuildInfo))).read_value()
    namespaces = await client.get_namespace_array()
    return build_facts({name: getattr(build, name, None) for name in BUILD_INFO}, namespaces), namespaces
