"""The page at `/`, to see a session work: files of this package, and samples to watch."""

import asyncio
import mimetypes
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Response

from prospect.serving import samples

FOLDER = Path(__file__).with_name("web")
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""The page loads nothing from elsewhere, and nobody may frame it."""
_TYPES = {".js": "text/javascript"}
"""Where a machine's own table of types may say something else."""


def add_page(api: FastAPI) -> None:
    """Serve the page, which holds no data: whoever may not open a session sees it too."""
    files = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.is_file()}

    def answer(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "not found")
        kind = _TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0]
        return Response(files[name], media_type=kind, headers=HEADERS)

    @api.get("/", include_in_schema=False)
    async def page() -> Response:
        return answer("index.html")

    @api.get("/web/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return answer(name)

    @api.get("/samples", include_in_schema=False)
    async def listed() -> list[dict[str, Any]]:
        return await asyncio.to_thread(samples.list_samples)

    @api.get("/samples/{name}.mp4", include_in_schema=False)
    async def video(name: str) -> Response:
        content = await asyncio.to_thread(samples.sample_video, name)
        if content is None:
            raise HTTPException(404, "not found")
        return Response(content, media_type="video/mp4")
