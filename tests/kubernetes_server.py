"""A stand-in for a Kubernetes API server, as far as kubectl needs one: it keeps objects and runs none.

With it the real kubectl is tested: what it takes for arguments, what it prints, how it fails. What the server
decides (schemas, scheduling, pods) is not tested by it.
"""

import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
_KINDS = {
    "api/v1": {"services": "Service", "configmaps": "ConfigMap", "pods": "Pod", "events": "Event"},
    "apis/batch/v1": {"jobs": "Job"},
    "apis/trainer.kubeflow.org/v1alpha1": {"trainjobs": "TrainJob"},
}


class KubernetesServer:
    """Objects by (resource, name), all of one namespace. A test puts pods and statuses into `objects` itself."""

    def __init__(self, *, trainer: bool = False) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.logs: dict[str, bytes] = {}
        # Refused with 403 by (verb, resource).
        self.forbidden: set[tuple[str, str]] = set()
        self.groups = [group for group in _KINDS if trainer or "trainer" not in group]
        owner = self

        class Handler(_Handler):
            server_state = owner

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def kubeconfig(self) -> str:
        """For KUBECONFIG; JSON is YAML."""
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{self._http.server_port}"}}],
                "users": [{"name": "me", "user": {}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "team"}}],
                "current-context": "here",
            }
        )


class _Handler(BaseHTTPRequestHandler):
    server_state: KubernetesServer

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        path, _ = self._asked()
        if path in ("api", "apis", "openapi/v2", "openapi/v3") or path in _KINDS or path.startswith("openapi/v3/"):
            self._discovery(path)
        else:
            self._on_objects("get")

    def do_POST(self) -> None:
        self._on_objects("create")

    def do_PATCH(self) -> None:
        self._on_objects("patch")

    def do_DELETE(self) -> None:
        self._on_objects("delete")

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        return parts.path.strip("/"), {key: values[0] for key, values in parse_qs(parts.query).items()}

    def _answer(self, code: int, body: Object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _bytes(self, kind: str, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, code: int, reason: str, message: str) -> None:
        self._answer(
            code,
            {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": reason,
                "message": message,
                "code": code,
            },
        )

    def _discovery(self, path: str) -> None:
        groups = self.server_state.groups
        if path == "api":
            self._answer(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif path == "apis":
            versions = [(group.split("/")[1], group.partition("/")[2]) for group in groups if group.startswith("apis/")]
            named = [
                {
                    "name": name,
                    "versions": [{"groupVersion": version, "version": version.split("/")[1]}],
                    "preferredVersion": {"groupVersion": version, "version": version.split("/")[1]},
                }
                for name, version in versions
            ]
            self._answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": named})
        elif path == "openapi/v3":
            self._answer(200, {"paths": {group: {"serverRelativeURL": f"/openapi/v3/{group}"} for group in groups}})
        elif path == "openapi/v2":
            self._bytes("application/com.github.proto-openapi.spec.v2.v1.0+protobuf", b"")
        elif path.startswith("openapi/v3/"):
            self._answer(200, _openapi(path.removeprefix("openapi/v3/")))
        elif path in groups:
            self._answer(200, _resources(path))
        else:
            self._refuse(404, "NotFound", "the server could not find the requested resource")

    def _on_objects(self, verb: str) -> None:
        path, query = self._asked()
        group = next((group for group in self.server_state.groups if path.startswith(f"{group}/namespaces/")), None)
        if group is None:
            self._refuse(404, "NotFound", "the server could not find the requested resource")
            return
        namespace, resource, name, tail = (path.removeprefix(f"{group}/namespaces/").split("/") + [""] * 3)[:4]
        if not resource:
            self._answer(200, {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": namespace}})
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length and verb in ("create", "patch") else {}
        full = resource if group == "api/v1" else f"{resource}.{group.split('/')[1]}"
        if (verb, resource) in self.server_state.forbidden:
            self._refuse(403, "Forbidden", f'{full} is forbidden: User "me" cannot {verb} resource "{resource}"')
        elif verb == "create":
            self._create(resource, full, namespace, body, dry_run="dryRun" in query)
        elif not name:
            self._list(resource, _KINDS[group][resource], query)
        elif (resource, name) not in self.server_state.objects:
            self._refuse(404, "NotFound", f'{full} "{name}" not found')
        elif tail == "log":
            self._log(name)
        else:
            self._one(verb, resource, name, body)

    def _create(self, resource: str, full: str, namespace: str, body: Object, *, dry_run: bool) -> None:
        name = body["metadata"]["name"]
        if (resource, name) in self.server_state.objects:
            self._refuse(409, "AlreadyExists", f'{full} "{name}" already exists')
            return
        body["metadata"] |= {"namespace": namespace, "uid": str(uuid.uuid4())}
        if not dry_run:
            self.server_state.objects[resource, name] = body
        self._answer(201, body)

    def _list(self, resource: str, kind: str, query: dict[str, str]) -> None:
        wanted = dict(part.split("=", 1) for part in filter(None, query.get("labelSelector", "").split(",")))
        fields = dict(part.split("=", 1) for part in filter(None, query.get("fieldSelector", "").split(",")))
        items = [
            item
            for (known, _), item in self.server_state.objects.items()
            if known == resource
            and wanted.items() <= item["metadata"].get("labels", {}).items()
            and ("involvedObject.name" not in fields or item["involvedObject"]["name"] == fields["involvedObject.name"])
        ]
        version = "v1"
        self._answer(200, {"kind": f"{kind}List", "apiVersion": version, "metadata": {}, "items": items})

    def _one(self, verb: str, resource: str, name: str, body: Object) -> None:
        objects = self.server_state.objects
        if verb == "delete":
            self._answer(200, objects.pop((resource, name)))
            return
        if verb == "patch":
            objects[resource, name]["metadata"] |= body["metadata"]
        self._answer(200, objects[resource, name])

    def _log(self, name: str) -> None:
        self._bytes("text/plain", self.server_state.logs.get(name, b""))


def _resources(group: str) -> Object:
    version = group.split("/", 1)[1]
    resources = [
        {
            "name": resource,
            "singularName": kind.lower(),
            "namespaced": True,
            "kind": kind,
            "verbs": ["create", "delete", "get", "list", "patch"],
        }
        for resource, kind in _KINDS[group].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def _openapi(group: str) -> Object:
    """As much as tells kubectl that dry runs and strict fields are the server's to do."""
    name, _, version = group.split("/", 1)[1].rpartition("/")
    parameters = [{"name": "dryRun", "in": "query"}, {"name": "fieldValidation", "in": "query"}]
    paths = {
        f"/{group}/namespaces/{{namespace}}/{resource}/{{name}}": {
            "patch": {
                "parameters": parameters,
                "x-kubernetes-group-version-kind": {"group": name, "version": version, "kind": kind},
                "responses": {"200": {"description": "OK"}},
            }
        }
        for resource, kind in _KINDS.get(group, {}).items()
    }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.36.0"}, "paths": paths}
