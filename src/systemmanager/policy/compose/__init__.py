"""Whether a Compose stack may run: its repository, its files before Compose reads them, its resolved configuration."""
