"""Files of the gateway's own machine."""
