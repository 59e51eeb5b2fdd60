"""Files below the allowed paths: list, look, read, tail, search."""
