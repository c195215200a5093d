"""The workers of a study that the cluster has room for. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from search_spaces.definition import ResourcesSpec
from search_spaces.wording import counted
from service.devices.cluster import Cluster
from service.plans.schemas import ClusterPlan, PlanWarning, warning


def plan_cluster(resources: ResourcesSpec, cluster: Cluster | None, *, has_server: bool) -> ClusterPlan:
    """The cluster, and how many of the study's workers it could hold.

    Args:
        resources: The study's.
        cluster: What a coordinator saw; None: none has.
        has_server: Whether a server was asked.
    """
    if cluster is None:
        unknown = "no coordinator has seen the cluster yet" if has_server else "no server was asked"
        return ClusterPlan(
            nodes=None,
            cpus=None,
            gpus=None,
            gpus_per_worker=None,
            workers=None,
            seen_at=None,
            unknown=unknown,
        )
    gpus = sum(node.gpus for node in cluster.nodes)
    wanted = resources.gpus_per_worker
    each = float(gpus >= 1) if wanted == "auto" else wanted
    return ClusterPlan(
        nodes=len(cluster.nodes),
        cpus=sum(node.cpus for node in cluster.nodes),
        gpus=gpus,
        gpus_per_worker=each,
        workers=sum(node.workers(each) for node in cluster.nodes),
        seen_at=cluster.seen_at,
        unknown=None,
    )


def cluster_warnings(resources: ResourcesSpec, cluster: ClusterPlan) -> Iterator[PlanWarning]:
    """Workers that the study asks for and would not get."""
    if cluster.workers is None or cluster.gpus_per_worker is None:
        return
    each, wanted = cluster.gpus_per_worker, resources.workers
    has = f"{counted(cluster.nodes or 0, 'node')} with {counted(cluster.cpus or 0, 'CPU')} and"
    has = f"{has} {counted(cluster.gpus or 0, 'GPU')} in all"
    if cluster.workers == 0:
        hint = " Set resources.gpus_per_worker to 0 to train on the CPU." if each and not cluster.gpus else ""
        needs = f" and {counted(each, 'GPU')} (resources.gpus_per_worker) on one node" if each else ""
        yield warning(
            "no_worker_fits",
            f"A worker needs a CPU core{needs}, and no node has that: the cluster has {has}."
            f" The study would wait for such a node and then fail.{hint}",
            gpus_per_worker=each,
            gpus=cluster.gpus or 0.0,
            cpus=cluster.cpus or 0.0,
        )
    elif wanted != "auto" and wanted > cluster.workers:
        yield warning(
            "fewer_workers_fit",
            f"resources.workers is {wanted:,}, and only {cluster.workers:,} such workers fit on the cluster:"
            f" it has {has}. The study would run on fewer and take longer.",
            workers=wanted,
            fit=cluster.workers,
        )
