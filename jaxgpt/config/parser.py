"""The arguments of a verb: its flags, a config's settings, short help, and one line where something is mistyped.

A verb declares a `Parser` before it imports JAX, and reads its command line by `jaxgpt.errors.answer_early`: --help and
a mistake are answered at once. Settings, `--config FILE --section.field=value ...`, are left to `command_line`.
"""

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from jaxgpt.config.command_line import field_paths, parse_args, unknown_field
from jaxgpt.config.help import WIDTH, describe, describe_all, entry, section_lines, terminal_width
from jaxgpt.config.settings import Config
from jaxgpt.errors import InputError

FLAG = re.compile(r"(--[A-Za-z][\w.-]*)(=.*)?", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line that suggest what was meant, and help that fits a screen.

    Args:
      prog: how the verb is called, such as jaxgpt sample.
      doc: the verb's docstring. --help prints its first paragraph, --help all prints all of it.
      usage: what follows `prog` in the usage.
      example: a command that works, after `prog`.
      takes_config: whether --config FILE and --section.field=value are arguments. `read` leaves them, unread, in
        `settings`, and the file's name in `config`.
    """

    def __init__(self, prog: str, doc: str | None, usage: str, example: str, *, takes_config: bool = False):
        super().__init__(prog=prog, usage=f"{prog} {usage}", add_help=False, allow_abbrev=False)
        self.doc, self.example, self.takes_config = (doc or "").strip(), example, takes_config
        self._rare: list[argparse.Action] = []
        if takes_config:
            self.add_argument("--config", metavar="FILE", help="the run; --section.field=value overrides a setting")

    def add_rare(self, flag: str, **about: Any) -> None:
        """As `add_argument`, for a flag that only --help all explains."""
        self._rare.append(self.add_argument(flag, **about))

    def read(self, args: Sequence[str]) -> argparse.Namespace:
        """The arguments; flags may be spelled with - or _.

        Raises:
          InputError: one is unknown, given twice, or not of its type.
          SystemExit: after --help.
        """
        own, settings = self._split(args)
        topic = self._help_topic(own)
        if topic is not None:
            print(self.help_on(topic, settings), end="")
            raise SystemExit(0)
        self._check_flags(own)
        given = self.parse_args(own)
        given.settings = settings
        return given

    def read_run(self, args: Sequence[str]) -> tuple[Config, argparse.Namespace]:
        """The config with its overrides, and the verb's own arguments. Raises as `read` and `parse_args` do."""
        given = self.read(args)
        return parse_args(given.settings), given

    def flags(self) -> list[str]:
        """All flags, such as --resume."""
        return ["--help", "--traceback", *(name for action in self._actions for name in action.option_strings)]

    def _split(self, args: Sequence[str]) -> tuple[list[str], list[str]]:
        """Own arguments, with - in the names of flags, and the config's; --config FILE is in both."""
        own: list[str] = []
        settings: list[str] = []
        left = list(args)
        while left:
            arg = left.pop(0)
            match = FLAG.fullmatch(arg)
            name = match[1][2:] if match else ""
            if self.takes_config and name and self._is_setting(name):
                taken = [arg, left.pop(0)] if "=" not in arg and left and not left[0].startswith("--") else [arg]
                settings += taken
                own += taken if name == "config" else []
            elif match and (dashed := f"--{name.replace('_', '-')}") in self.flags():
                own.append(dashed + (match[2] or ""))
            elif arg == "--":
                own += [arg, *left]
                break
            else:
                own.append(arg)
        return own, settings

    def _is_setting(self, name: str) -> bool:
        return "." in name or name == "config" or name in {path.partition(".")[0] for path in field_paths()}

    def _help_topic(self, own: list[str]) -> str | None:
        """What --help is asked about; empty: the verb; None: it is not asked."""
        for at, arg in enumerate(own):
            if arg == "--":
                return None
            if arg in ("-h", "--help"):
                after = own[at + 1 : at + 2]
                return after[0] if after and not after[0].startswith("-") else ""
            if arg.startswith("--help="):
                return arg.partition("=")[2]
        return None

    def _check_flags(self, own: list[str]) -> None:
        """Before argparse, which would first complain of what is missing because a flag is mistyped."""
        seen: set[str] = set()
        for arg in own[: own.index("--")] if "--" in own else own:
            match = FLAG.fullmatch(arg)
            if match is None:
                if re.fullmatch(r"-[A-Za-z]\S*", arg) and arg not in ("-h", *self._option_string_actions):
                    raise self._unknown(arg)
                continue
            action = self._option_string_actions.get(match[1])
            if action is None:
                raise self._unknown(match[1])
            if match[1] in seen and action.nargs != 0 and not isinstance(action, argparse._AppendAction):
                raise InputError(f"{match[1]} is given twice; keep one")
            seen.add(match[1])

    def _unknown(self, flag: str) -> InputError:
        """The error for a flag that is none: with the nearest flag, or the setting that has this name."""
        name, verb = flag.lstrip("-").replace("_", "-"), self.prog.split()[-1]
        names = {known[2:]: known for known in self.flags()}
        leaves = {path.rpartition(".")[2].replace("_", "-") for path in field_paths()} if self.takes_config else set()
        near = difflib.get_close_matches(name, [*names, *leaves], n=1, cutoff=0.7)
        if near and near[0] in leaves and near[0] not in names:
            return unknown_field(flag.lstrip("-"))
        begun = [known for known in names if known.startswith(name)]
        if near or len(begun) == 1:
            return InputError(f"{flag} is no flag of {verb}; did you mean {names[(near or begun)[0]]}?")
        return InputError(f"{flag} is no flag of {verb}; {self.prog} --help lists them")

    # What argparse complains of

    def error(self, message: str) -> NoReturn:
        if missing := re.fullmatch(r"argument (\S+): expected .*", message):
            action = self._option_string_actions[missing[1]]
            raise InputError(f"{missing[1]} needs a value, such as {missing[1]} {self._value_of(action)}")
        if unexpected := re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL):
            message = f"unexpected argument {unexpected[1]}"
            if self.takes_config and re.fullmatch(r"[^= ]+\.py", unexpected[1]):
                raise InputError(f"{message}; did you mean --config {unexpected[1]}?")
            if self.takes_config:
                raise InputError(f"{message}; settings are written --section.field=value")
        raise InputError(f"{message}; {self.prog} --help lists the arguments")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise InputError(f"{name_of(action)}={value} is not one of {', '.join(map(str, action.choices))}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if isinstance(error.__context__, InputError):
                raise error.__context__ from None
            kind = "an int; write a whole number" if action.type is int else "a number; write one such as 0.5"
            raise InputError(f"{name_of(action)}={arg_string} is not {kind}") from None

    # Help

    def help_on(self, topic: str, settings: list[str]) -> str:
        """The text of `--help TOPIC`: "" in short, "all", or a section or field of the config.

        Raises:
          InputError: there is no such topic, or the settings are refused.
        """
        if not topic:
            return self.format_help()
        if topic != "all" and not self.takes_config:
            raise InputError(f"--help {topic}: {self.prog} has no sections; --help all shows everything")
        width = terminal_width()
        if topic == "all":
            flags = [*self._flag_lines(width), *entry("--traceback", "show where in the program an error arose", width)]
            parts = [f"usage: {self.usage}", self.doc, "\n".join(flags)]
            if self.takes_config:
                parts.append(describe_all(self._shown_config(settings), width))
            return "\n\n".join(parts) + "\n"
        return describe(topic.removeprefix("--").rstrip("."), self._shown_config(settings), width) + "\n"

    def format_help(self) -> str:
        """Of at most 24 lines and 80 columns."""
        first = " ".join(self.doc.split("\n\n")[0].split())
        lines = [*entry("", first, WIDTH, indent=0), "", f"usage: {self.usage}", *self._flag_lines(WIDTH, rare=False)]
        if self.takes_config:
            how = "--help SECTION: one; --help all: all"
            lines += [f"settings, as --section.field=value ({how}):", *section_lines(WIDTH)]
        lines += [f"example: {self.prog} {self.example}", *([] if self.takes_config else ["--help all: everything"])]
        return "\n".join(lines) + "\n"

    def _flag_lines(self, width: int, *, rare: bool = True) -> list[str]:
        actions = [action for action in self._actions if rare or action not in self._rare]
        names = [", ".join(action.option_strings) or str(action.metavar or action.dest) for action in actions]
        shown = [
            f"{name} {self._value_of(action)}".rstrip() if action.option_strings else name
            for name, action in zip(names, actions, strict=True)
        ]
        column = min(26, max(map(len, shown), default=0) + 4)
        texts = [action.help or "" for action in actions]
        return [line for name, text in zip(shown, texts, strict=True) for line in entry(name, text, width, column)]

    def _value_of(self, action: argparse.Action) -> str:
        """What stands for the value of a flag; empty where it has none."""
        if action.nargs == 0:
            return ""
        if isinstance(action.metavar, tuple):
            return " ".join(action.metavar)
        name = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
        return f"{name} ..." if action.nargs == "+" else name

    def _shown_config(self, settings: list[str]) -> Config:
        """The config whose values help shows: that of --config, with overrides; else what every config begins with."""
        names = [arg[2:].partition("=")[0] for arg in settings]
        return parse_args(settings) if "config" in names else parse_args(settings, Config())


def name_of(action: argparse.Action) -> str:
    """A flag's first name, or what stands for a positional argument."""
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
