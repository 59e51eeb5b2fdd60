"""What a target can reach: ping, ports, names, certificates, HTTP, routes."""
