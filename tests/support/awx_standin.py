# Copyright: (c) 2026, The agentmem.backup maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for AWX's API: keeps objects and associations, so that awx.awx's own modules can be run against it.

What it does is what those modules rely on (awx.awx, plugins/module_utils/controller_api.py): lists that are filtered by
query parameters and answer count, next and results; objects with id, url, type and related; associations by POST of an
id, 204; surveys under `survey_spec`. It runs nothing, and knows no rights beyond the one token.
"""

from __future__ import annotations

import itertools
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TEMPLATES = ("job_templates", "workflow_job_templates", "projects", "inventory_sources")
"""What AWX calls unified job templates: a schedule or a node may name any of them."""


class Awx:
    """`objects` is endpoint → objects, as AWX would list them; `surveys` is template's name → its questions."""

    def __init__(self, token: str):
        self.token = token
        self.objects: dict[str, list[dict[str, Any]]] = {}
        self.associated: dict[tuple[str, int, str], list[int]] = {}
        self.surveys: dict[str, Any] = {}
        self._ids = itertools.count(1)

    def add(self, endpoint: str, **fields: Any) -> dict[str, Any]:
        """Put an object there that AWX has from the beginning, or that a module asks for."""
        number = next(self._ids)
        url = f"/api/v2/{endpoint}/{number}/"
        made = {"type": endpoint.removesuffix("s"), **fields, "id": number, "url": url, "summary_fields": {}}
        made["related"] = {"survey_spec": f"{url}survey_spec/"}
        if endpoint == "projects":
            made["scm_revision"] = "1"
        self.objects.setdefault(endpoint, []).append(made)
        return made

    def named(self, endpoint: str, name: str) -> dict[str, Any]:
        """The one object of that name."""
        (found,) = (one for one in self.objects[endpoint] if name in (one.get("name"), one.get("identifier")))
        return found

    def names(self, endpoint: str, one: dict[str, Any], kind: str) -> list[str]:
        """The names of what is associated with an object."""
        numbers = self.associated.get((endpoint, one["id"], kind), [])
        everything = [each for objects in self.objects.values() for each in objects]
        return [
            str(each.get("name") or each.get("identifier")) for number in numbers for each in everything if each["id"] == number
        ]

    def application(self) -> Starlette:
        """The ASGI application."""
        methods = ["GET", "POST", "PATCH"]
        return Starlette(
            routes=[
                Route("/api/v2/{endpoint}/", self._list, methods=methods),
                Route("/api/v2/{endpoint}/{number:int}/", self._one, methods=methods),
                Route("/api/v2/{endpoint}/{number:int}/{kind}/", self._related, methods=methods),
            ]
        )

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"detail": "Authentication credentials were not provided."}, 401)
        return None

    async def _list(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        endpoint = request.path_params["endpoint"]
        if request.method == "POST":
            return JSONResponse(self.add(endpoint, **await request.json()), 201)
        sources = TEMPLATES if endpoint == "unified_job_templates" else (endpoint,)
        everything = [one for source in sources for one in self.objects.get(source, [])]
        asked = {key: value for key, value in request.query_params.items() if key not in ("page_size", "order_by")}
        found = [one for one in everything if all(str(one.get(key)) == value for key, value in asked.items())]
        return JSONResponse({"count": len(found), "next": None, "results": found})

    async def _one(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        objects = self.objects.get(request.path_params["endpoint"], [])
        found = next((one for one in objects if one["id"] == request.path_params["number"]), None)
        if found is None:
            return JSONResponse({"detail": "Not found."}, 404)
        if request.method == "PATCH":
            found.update(await request.json())
        return JSONResponse(found)

    async def _related(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        endpoint, number, kind = (request.path_params[key] for key in ("endpoint", "number", "kind"))
        if kind == "survey_spec":
            name = next(one["name"] for one in self.objects[endpoint] if one["id"] == number)
            if request.method == "POST":
                self.surveys[name] = await request.json()
            return JSONResponse(self.surveys.get(name, {}))
        kept = self.associated.setdefault((endpoint, number, kind), [])
        if request.method == "POST":
            said = await request.json()
            if said.get("disassociate"):
                kept.remove(said["id"])
            else:
                kept.append(said["id"])
            return Response(status_code=204)
        return JSONResponse({"count": len(kept), "next": None, "results": [{"id": one} for one in kept]})
