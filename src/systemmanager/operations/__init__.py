"""What the gateway can do: one file per area. Importing this package fills the catalogue, in the order below."""

from importlib import import_module

AREAS = (
    "fleet",
    "jobs",
    "system",
    "network",
    "diagnostics",
    "names",
    "certificates",
    "web",
    "routes",
    "containers",
    "container_update",
    "images",
    "stacks",
    "files",
    "services",
    "analysis",
    "packages",
    "security",
    "comparison",
    "consumers",
    "plans",
)

for _area in AREAS:
    import_module(f"systemmanager.operations.{_area}")
