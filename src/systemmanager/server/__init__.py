"""The MCP server. The only home of fastmcp, mcp, starlette and authlib; nothing imports it but the command line."""
