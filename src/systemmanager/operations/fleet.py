"""The gateway about itself and its fleet."""
