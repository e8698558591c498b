"""Suggestions for misspelled subcommands, options and settings: "did you mean ...?"."""

import argparse
import difflib
from collections.abc import Mapping, Sequence

_CLOSE = 0.6  # of difflib's ratio
_WITH_SETTINGS = ("train", "prepare")


def refuse_unknown_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Exit with status 2, and a suggestion, if a word names no subcommand or option; argparse would say less."""
    choices, path = _subparsers(parser), list[str]()
    for word in words:
        if choices and not word.startswith("-"):
            if word not in choices:
                hint = _nearest(word, {name: " ".join([*path, name]) for name in choices}, path)
                parser.error(f"there is no command '{' '.join([*path, word])}': {hint}")
            parser, path = choices[word], [*path, word]
            choices = _subparsers(parser)
        elif word in ("--", "-h", "--help", "--version"):
            return
        elif word.startswith("--") and word.partition("=")[0] not in parser._option_string_actions:
            parser.error(f"there is no option '{word.partition('=')[0]}': {_hint(parser, word, path)}")


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def _hint(parser: argparse.ArgumentParser, word: str, path: Sequence[str]) -> str:
    from transduce.config.reference import SYNONYMS, all_settings, sections

    name = word.partition("=")[0].removeprefix("--")
    if path == ["fit"] and name.partition(".")[0] in sections():
        return (
            "fit chooses the settings. To set one: transduce init PAIRS > my.toml, then transduce train my.toml " + word
        )
    options = [option for option in parser._option_string_actions if option.startswith("--")]
    known = {option.removeprefix("--").replace("-", "_"): option for option in options}
    if path and path[0] in _WITH_SETTINGS:
        settings = {each.key: f"--{each.name}" for each in all_settings()}
        known |= settings | {synonym: settings[key] for synonym, key in SYNONYMS.items()}
    return _nearest(name.replace("-", "_"), known, path)


def _nearest(word: str, known: Mapping[str, str], path: Sequence[str]) -> str:
    """Whether the nearest of the known words was meant, as `known` shows it; else where all are listed."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=_CLOSE)
    return f"did you mean {known[close[0]]}?" if close else f"see {' '.join(['transduce', *path])} --help"
