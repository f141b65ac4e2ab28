"""Measure a topic, or write the pages: ``python -m benchmarks TOPIC [options]``, ``python -m benchmarks report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks import report
from benchmarks.base import trial
from benchmarks.topics import TOPICS, find


def parser() -> argparse.ArgumentParser:
    """A subcommand a topic."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = made.add_subparsers(dest="topic", required=True, metavar="TOPIC")
    commands.add_parser("report", help="write RESULTS.md and results/*.md from the records")
    for name in TOPICS:
        topic = find(name)
        text = (topic.__doc__ or "").replace("%", "%%")
        how = {"description": text, "formatter_class": argparse.RawDescriptionHelpFormatter}
        own = commands.add_parser(name, help=text.splitlines()[0], **how)
        topic.options(own)
        trial.options(own)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    if chosen.topic == "report":
        report.write()
        return
    trial.begin(chosen.threads)
    find(chosen.topic).run(chosen)


if __name__ == "__main__":
    main()
