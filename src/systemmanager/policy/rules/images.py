from systemmanager.policy.verdicts import allow, deny
from systemmanager.references import image_matches
from systemmanager.request import Request, Verdict


def images(request: Request) -> Verdict:
    """An image that is pulled matches the target's list, where it has one."""
    roles, arguments = request.operation.roles, request.arguments
    image = arguments.get(roles.get("image", ""))
    if image is None:
        return allow("images", "names no image")
    tag = str(arguments.get(roles.get("tag", "tag")) or "")
    allowed = request.target.constraints.images
    if allowed is None:
        return allow("images", f"{request.target.id!r} does not limit images")
    if any(image_matches(image, tag, pattern) for pattern in allowed):
        return allow("images", f"{image} is in constraints.images")
    return deny(
        "images",
        f"{image} is not among the images allowed on {request.target.id!r}",
        "image_not_allowed",
        f"{image} in constraints.images of {request.target.id!r}",
    )
