from fnmatch import fnmatchcase

from systemmanager.policy.verdicts import allow, deny
from systemmanager.request import Request, Verdict


def images(request: Request) -> Verdict:
    """An image that is pulled matches the target's list, where it has one."""
    parameter = request.operation.roles.get("image")
    image = None if parameter is None else request.arguments.get(parameter)
    if image is None:
        return allow("images", "names no image")
    allowed = request.target.constraints.images
    if allowed is None:
        return allow("images", f"{request.target.id!r} does not limit images")
    if any(fnmatchcase(image, pattern) for pattern in allowed):
        return allow("images", f"{image} is in constraints.images")
    return deny(
        "images",
        f"{image} is not among the images allowed on {request.target.id!r}",
        "image_not_allowed",
        f"{image} in constraints.images of {request.target.id!r}",
    )
