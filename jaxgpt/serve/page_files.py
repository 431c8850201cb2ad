"""The page, which comes with the package: read once when the server starts, so that no request opens a file."""

from importlib import resources

from starlette.responses import Response
from starlette.routing import Route

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """/ and the files that it loads."""
    routes = []
    for file in sorted(resources.files("jaxgpt.serve").joinpath("page").iterdir(), key=lambda file: file.name):
        kind = KINDS.get(file.name.rpartition(".")[2])
        if kind is None:
            continue
        path = "/" if file.name == "index.html" else f"/{file.name}"
        routes.append(_route(path, file.read_bytes(), kind))
    assert any(route.path == "/" for route in routes), "the package lacks its page"
    return routes


def _route(path: str, content: bytes, kind: str) -> Route:
    async def answer(_: object) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return Route(path, answer, methods=["GET"])
