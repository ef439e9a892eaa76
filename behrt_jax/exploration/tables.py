"""Tables of embedding quality, as experiments.explore and experiments.neighbours print them."""

from behrt_jax.evaluation.tables import format_cell, format_signed
from behrt_jax.exploration.representations import BOTH, OWN

SHOWN = 4  # codes listed per cluster


def format_quality(result: dict) -> str:
    """Formats the result of experiments.explore as text."""
    patients = ", ".join(f"{number:,} {split}" for split, number in result["patients"].items())
    parts = [
        f"patients: {patients}; fitted on train, chosen on tuning, measured on held_out; 95% intervals over patients"
    ]
    parts += _measured(result)
    return "\n\n".join([*parts, _subtypes(result["subtypes"])])


def format_neighbours(result: dict) -> str:
    """Formats the result of experiments.neighbours as text."""
    number = result[OWN]["metrics"]["retrieval/precision"]["n"]
    header = f"held_out patients with a disease: {result['patients']:,}, {number:,} times in all "
    header += f"(runs: {len(result['workdir'])}); chosen on tuning; 95% intervals over patients"
    columns = _retrieval_columns(result)
    grids = ["\n".join(_grid(result[name], columns, name=name)) for name in (OWN, BOTH)]
    return "\n\n".join([f"{header}\nneighbours who share a disease", *grids])


def _retrieval_columns(result: dict) -> dict[str, str]:
    names = ("precision", "shared", "jaccard")
    return {f"retrieval/{name}": f"{name}@{result['neighbours']}" for name in names}


def _measured(result: dict) -> list[str]:
    groups, parts = result["groups"], []
    members = ", ".join(f"{number} {name}" for name, number in groups["members"].items())
    others = {
        family: f"{each['davies_bouldin']:10.2f}{each['calinski_harabasz']:10.1f}"
        for family, each in groups["others"].items()
    }
    lines = [f"patients of one disease or none ({members})"]
    lines += _grid(groups, {"groups/silhouette": "silhouette"}, others, "   Davies-B. Calinski-H.")
    parts.append("\n".join(lines))
    for name, what in (("retrieval", "disease"), ("retrieval_later", "later first diagnosis")):
        if name in result:
            grid = _grid(result[name], _retrieval_columns(result[name]))
            parts.append("\n".join([f"neighbours who share a {what}", *grid]))
    if result.get("probe"):
        parts.append("\n".join(["linear probes", *_grid(result["probe"], {"probe/auroc": "AUROC"})]))
    return parts


def _grid(
    result: dict, columns: dict[str, str], others: dict[str, str] | None = None, header: str = "", name: str = OWN
) -> list[str]:
    families = {name: result["metrics"], **result["baselines"]}
    width = max(26, *map(len, families))
    lines = [" " * width + "".join(label.rjust(24) for label in columns.values()) + header]
    for family, entries in families.items():
        cells = "".join(format_cell(entries[name]).rjust(24) for name in columns)
        lines.append(f"{family:{width}}{cells}{others.get(family, '') if others else ''}")
    first = next(iter(columns))
    for family, entries in result["versus"].items():
        lines.append(f"  difference to {family}: {format_signed(entries[first])}")
    return lines


def _subtypes(found: dict) -> str:
    stability, hdbscan = found["stability"], found["hdbscan"]
    kmeans = found["k_means"]
    lines = [
        f"k-means, {kmeans['clusters']} clusters: silhouette {kmeans['silhouette']:.3f}; adjusted Rand over resamples "
        f"{format_cell(stability)}; HDBSCAN: {hdbscan['clusters']} clusters, {hdbscan['in_none']:.0%} in none"
    ]
    for number, cluster in enumerate(found["clusters"]):
        codes = "; ".join(
            f"{each['description'] or each['code']} x{each['odds_ratio']:.1f}" for each in cluster["codes"][:SHOWN]
        )
        age = "" if cluster["median_age"] is None else f", median age {cluster['median_age']:.0f}"
        lines.append(
            f"  {number}: {sum(cluster['patients'].values()):,} patients{age}; odds: {codes or 'no code of its own'}"
        )
    if "survival" in found:
        deaths = ", ".join(f"{each['deaths']} of {each['patients']}" for each in found["survival"]["curves"])
        test = (
            f"log-rank p = {found['survival']['p']:.2g}"
            if "p" in found["survival"]
            else "no log-rank test: too few deaths or clusters"
        )
        lines.append(f"  deaths of held-out patients after the date, by cluster: {deaths}; {test}")
    return "\n".join(lines)
