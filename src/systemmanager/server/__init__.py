"""The MCP server. The only home of fastmcp, mcp, starlette and joserfc; nothing imports it but the command line."""
