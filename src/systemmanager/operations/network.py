"""How a machine is connected: interfaces, counters, open connections."""
