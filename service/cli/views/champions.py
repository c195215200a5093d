"""Champions for people."""

from __future__ import annotations

from service.champions.schemas import ChampionHistory, ChampionView, ContestView, ReignView
from service.cli.views.output import console, indented, say, table
from service.wording.values import moment, number, setting


def show_champion(champion: ChampionView) -> None:
    """Writes a champion's page to stdout."""
    lineage, contest = champion.lineage, champion.last_contest
    rows = [
        ("Since", moment(champion.since)),
        ("Because", champion.why),
        *([("By", champion.promoted_by)] if champion.promoted_by else []),
        *([("Last sweep", f"{contest.study}: {contest.decision}; {contest.why}")] if contest else []),
        *([("Eval data", _data(contest))] if contest else []),
        ("Base", _base(champion)),
        ("Seed", str(lineage.get("seed", "-"))),
        ("Recipe", _settings(lineage.get("recipe"))),
        ("Data", _settings(lineage.get("fingerprints"))),
        ("Versions", _settings(lineage.get("versions")) if lineage.get("versions") else "not known"),
        ("Adapter", champion.adapter),
        ("Rollbacks", _rollbacks(champion)),
    ]
    say(f"Champion of {champion.schedule}: trial {champion.trial} of {champion.study}")
    out = console()
    for label, value in rows:
        say(*indented(str(value), out, 2, first=f"  {label:<10}  "))
    say(f"Download it with: nightsweep champion {champion.schedule} --download DIR")


def show_history(history: ChampionHistory) -> None:
    """Writes a table of what sweeps decided to stdout, and one of those who reigned."""
    table(
        ("sweep", "at", "decision", "champion", "challenger", "data", "why"),
        [
            (
                contest.study,
                moment(contest.at),
                contest.decision,
                number(contest.champion_value),
                _challenger(contest),
                "-" if contest.data_changed is None else "changed" if contest.data_changed else "same",
                contest.why,
            )
            for contest in history.contests
        ],
        empty="No sweep has decided anything yet.",
    )
    if history.reigns:
        say("")
        table(
            ("champion", "since", "until", "because"),
            [(_who(r), moment(r.since), moment(r.until), r.why) for r in history.reigns],
            empty="",
        )


def _who(reign: ReignView) -> str:
    return f"trial {reign.trial} of {reign.study}"


def _challenger(contest: ContestView) -> str:
    if contest.challenger_trial is None:
        return "-"
    return f"{number(contest.challenger_value)} (trial {contest.challenger_trial})"


def _data(contest: ContestView) -> str:
    changed = {None: "not compared with an earlier sweep's", True: "changed", False: "as before"}
    return f"{(contest.data or 'not read')[:12]}, {changed[contest.data_changed]}"


def _base(champion: ChampionView) -> str:
    model = champion.lineage.get("model") or {}
    quantization = (champion.lineage.get("recipe") or {}).get("quantization")
    return f"{model.get('id', '-')} ({quantization or '-'})"


def _rollbacks(champion: ChampionView) -> str:
    return ", then ".join(_who(reign) for reign in champion.rollbacks) or "none: it is the first"


def _settings(values: dict[str, object] | None) -> str:
    known = {key: value for key, value in (values or {}).items() if value is not None}
    return ", ".join(f"{key}={setting(value)}" for key, value in known.items()) or "-"
