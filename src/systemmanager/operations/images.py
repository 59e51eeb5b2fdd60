"""Images and networks of a Docker Engine."""
