"""Saves views at Weights & Biases. The second time, the same view is brought up to date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from itr.errors import ConfigError
from itr.results.dashboards.contents import import_package
from itr.results.trackers.wandb_backend import has_key

WORKSPACE, REPORT = "project-view", "runs"  # kinds of views
FIND = """
query FindView($entityName: String, $name: String, $viewType: String, $viewName: String) {
  project(name: $name, entityName: $entityName) {
    allViews(viewType: $viewType, viewName: $viewName) { edges { node { id name } } }
  }
}"""
SAVE = """
mutation SaveView($id: ID, $entityName: String, $projectName: String, $type: String, $name: String,
                  $displayName: String, $description: String, $spec: String) {
  upsertView(input: {id: $id, entityName: $entityName, projectName: $projectName, name: $name,
                     displayName: $displayName, description: $description, type: $type,
                     spec: $spec, createdUsing: WANDB_SDK}) {
    view { id name }
    inserted
  }
}"""


class Saved(NamedTuple):
    """A saved view."""

    address: str
    is_new: bool


def spec_of(view: Any) -> dict[str, Any]:
    """The specification that is sent for a workspace or a report of the package."""
    spec: Any = view._to_model().spec
    return json.loads(spec.model_dump_json(by_alias=True, exclude_none=True))


def save(kind: str, make: Callable[[], Any], entity: str, project: str, title: str) -> Saved:
    """Create the view ``title``, or bring it up to date.

    ``make`` builds the workspace or report. Raises ConfigError without a key, and where the
    service refuses.
    """
    wandb = import_wandb()
    if not has_key(wandb):
        raise ConfigError(
            "itr results dashboard: not logged in to Weights & Biases; run `wandb login` (or set "
            "WANDB_API_KEY), or pass --json FILE to see what would be sent"
        )
    name = view_name(kind, entity, project, title)
    try:
        graphql, api = import_package("_graphql"), wandb.Api()
        found = _find(graphql.execute_graphql, api, kind, entity, project, name)
        values = {
            "id": found,
            "entityName": entity,
            "projectName": project,
            "type": kind,
            "name": name,
            "displayName": title,
            "description": "",
            "spec": json.dumps(spec_of(make())),
        }
        answer = graphql.execute_graphql(api, SAVE, values)["upsertView"]
        base = graphql.get_app_url(api).rstrip("/")
    except ConfigError:
        raise
    except Exception as error:  # the package and the network raise many types
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConfigError(
            f"itr results dashboard: {entity}/{project} at Weights & Biases cannot be written "
            f"({reason}); check the name, the network and `wandb login`, or pass --json FILE"
        ) from error
    path = f"?nw={name.removeprefix('nw-').removesuffix('-v')}"
    if kind == REPORT:
        words = "-".join(title.split())
        path = f"/reports/{words}--{answer['view']['id'].rstrip('=')}"
    return Saved(f"{base}/{entity}/{project}{path}", found is None)


def import_wandb() -> Any:
    """The package. Raises ConfigError if it is missing."""
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("wandb is not installed; run pip install wandb") from error
    return wandb


def view_name(kind: str, entity: str, project: str, title: str) -> str:
    """The name under which the service keeps a view: the same for the same title."""
    text = "\n".join((kind, entity, project, title))
    digest = hashlib.sha256(text.encode()).hexdigest()[:11]
    return f"nw-{digest}-v" if kind == WORKSPACE else digest


def _find(
    execute: Callable[..., Any], api: Any, kind: str, entity: str, project: str, name: str
) -> str | None:
    variables = {"entityName": entity, "name": project, "viewType": kind, "viewName": name}
    found = execute(api, FIND, variables).get("project")
    if found is None:
        raise ConfigError(
            f"{entity}/{project}: no such project at Weights & Biases, or it is not yours; train "
            f"one run first (tracker=wandb tracker.wandb.entity={entity} "
            f"tracker.wandb.project={project})"
        )
    edges = found["allViews"]["edges"]
    return next((edge["node"]["id"] for edge in edges if edge["node"]["name"] == name), None)
