"""The examination as tables for a person."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch.doctor.facts import Clock, Collective, Examination, Link
from launch.doctor.judge import Problem
from launch.doctor.votes import votes

LARGEST_MATRIX = 8
"""Hosts whose links are shown one by one; of more, only the extremes."""


def show(console: Console, examination: Examination, problems: Sequence[Problem]) -> None:
    """Facts, measurements, problems, and a last line that says which it is."""
    hosts = [host.host for host in examination.hosts]
    _facts(console, examination)
    for transport in dict.fromkeys(link.transport for link in examination.links):
        _links(console, [link for link in examination.links if link.transport == transport], hosts)
    if examination.collectives:
        _collectives(console, examination.collectives)
    if examination.clocks:
        _clocks(console, examination.clocks)
    if problems:
        _problems(console, problems)
    serious = sum(problem.severity == "problem" for problem in problems)
    everywhere = "1 host" if len(hosts) == 1 else f"{len(hosts)} hosts"
    if serious:
        console.print(f"[bold red]{serious} problem{'s' if serious > 1 else ''} on {everywhere}[/]")
    else:
        console.print(f"[bold green]nothing wrong found on {everywhere}[/]")


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def _print(console: Console, title: str, table: Table) -> None:
    """The title on a line of its own: a table's own title is wrapped to its width."""
    console.print(f"[bold]{escape(title)}[/]")
    console.print(table)


def _facts(console: Console, examination: Examination) -> None:
    """A row a fact: what most hosts say, and who says otherwise. One column serves two hosts as well as two hundred."""
    count = len(examination.hosts)
    names = ", ".join(host.host for host in examination.hosts[:4]) + (f", ... ({count})" if count > 4 else "")
    table = _table("", "most", "odd ones out")
    table.show_header = count > 1
    for vote in votes(examination.hosts):
        odd = "\n".join(f"{host}: {value}" for host, value in vote.odd.items())
        style = "bold red" if vote.fact.severity == "problem" else "yellow"
        table.add_row(
            vote.fact.name, escape(vote.majority or "no majority"), f"[{style}]{escape(odd)}[/]" if odd else ""
        )
    _print(console, f"Hosts: {names}", table)


def _links(console: Console, links: Sequence[Link], hosts: Sequence[str]) -> None:
    transport = links[0].transport
    if len(hosts) > LARGEST_MATRIX:
        _extremes(console, links)
        return
    table = _table("", *map(escape, hosts))
    found = {frozenset(link.hosts): f"{link.gigabytes_per_s:.2f}  {link.latency_us:.0f} us" for link in links}
    for row in hosts:
        table.add_row(escape(row), *(found.get(frozenset((row, column)), "") for column in hosts))
    _print(console, f"Links over {transport}: GB/s one way, latency", table)


def _extremes(console: Console, links: Sequence[Link]) -> None:
    middle = statistics.median(link.gigabytes_per_s for link in links)
    table = _table("hosts", "GB/s", "latency")
    for link in sorted(links, key=lambda link: link.gigabytes_per_s)[:LARGEST_MATRIX]:
        table.add_row(escape(" - ".join(link.hosts)), f"{link.gigabytes_per_s:.2f}", f"{link.latency_us:.0f} us")
    title = f"{len(links)} links over {links[0].transport}: median {middle:.2f} GB/s one way; the slowest"
    _print(console, title, table)


def _collectives(console: Console, collectives: Sequence[Collective]) -> None:
    first = collectives[0]
    title = f"Collectives over {first.backend}: {first.ranks} ranks, {first.megabytes:.0f} MB"
    table = _table("", "ms", "bus GB/s")
    for collective in collectives:
        table.add_row(collective.name, f"{collective.milliseconds:.1f}", f"{collective.bus_gigabytes_per_s:.2f}")
    _print(console, title, table)


def _clocks(console: Console, clocks: Sequence[Clock]) -> None:
    table = _table("", "ms", "known to")
    for clock in sorted(clocks, key=lambda clock: -abs(clock.offset_s))[:LARGEST_MATRIX]:
        table.add_row(escape(clock.host), f"{clock.offset_s * 1e3:+.2f}", f"{clock.uncertainty_s * 1e3:.2f} ms")
    _print(console, "Clocks against the first host's, the furthest first", table)


def _problems(console: Console, problems: Sequence[Problem]) -> None:
    table = _table("host", "what", "what to do")
    for problem in problems:
        style = "bold red" if problem.severity == "problem" else "yellow"
        table.add_row(f"[{style}]{escape(problem.host)}[/]", escape(problem.what), escape(problem.remedy))
    _print(console, "What is wrong", table)
