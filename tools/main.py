"""The command line: ``pruneopt COMMAND``.

A command lives in a file of its own and is imported when it is called, so that ``--help`` and
mistakes in the options answer at once. What happens to errors is decided here, and only here.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import NoReturn

import pruneopt
from pruneopt.errors import PruneoptError, UserError
from pruneopt.interrupts import ending_signals
from pruneopt.tools.commands import arguments

__all__ = ["main"]

INTERNAL, INTERRUPTED, PIPE_CLOSED = 1, 130, 141
"""Exit codes beside those of the errors: 128 and the number of the signal, as shells have it; the
last is that of a reader that went away."""

EXIT_CODES = """exit codes:
  0    done
  1    an error in pruneopt, or a network that failed its verification
  2    bad input: one sentence on stderr says what and where
  3    a budget that cannot be reached: the sentence names the smallest reachable value
  130  interrupted (Ctrl-C); what there is so far is delivered; 143 for SIGTERM, 129 for SIGHUP
"""

COMMANDS = {
    "compile": (
        "prune a network to a budget, prove it and write everything needed to deploy it",
        arguments.add_compile_options,
    ),
    "search": (
        "find a front of accuracy against costs, to deliver any point of it",
        arguments.add_search_options,
    ),
    "inspect": (
        "print a network's graph, its channel groups, and how far it can be pruned",
        arguments.add_inspect_options,
    ),
    "profile": (
        "show where the time goes on a target, or measure a latency table of layers",
        arguments.add_profile_options,
    ),
    "latency": (
        "measure sub-networks, so that times on a target can be predicted",
        arguments.add_latency_options,
    ),
    "targets": (
        "list the runtimes that this machine offers, and why it lacks the others",
        arguments.add_targets_options,
    ),
    "bench": (
        "measure the original and the pruned network of a bundle side by side",
        arguments.add_bench_options,
    ),
    "quantise": (
        "write a bundle's network in 8-bit integers or half precision, as ONNX",
        arguments.add_quantise_options,
    ),
    "passes": ("list every pass with its options", arguments.add_passes_options),
    "new": ("write a commented model file to start from", arguments.add_new_options),
}


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as a `UserError` instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` lists the options")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pruneopt",
        description="A pruning compiler for PyTorch: a network and a budget go in, a smaller, "
        "proved network comes out",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pruneopt {pruneopt.__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", parser_class=_Parser, required=True
    )
    for name, (summary, add_options) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_argument(
            "--debug", action="store_true", help="show Python tracebacks and warnings"
        )
        add_options(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    Args:
        argv: the words after the command's name; None takes those of the process.
    """
    words = [str(word) for word in (sys.argv[1:] if argv is None else argv)]
    debug = "--debug" in words
    if _rank() is not None and not debug:
        # Data parallel training remarks on its own settings below Python; read when torch is
        # imported.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # torchrun stops its processes itself.
    with nullcontext() if _rank() is not None else ending_signals(_acknowledge) as ending:
        code = _run(words, debug)
    if code != INTERRUPTED or ending is None or ending.number is None:
        return code
    return 128 + ending.number


def _acknowledge(number: int) -> None:
    """Say at once that a signal has come; the file number, as a signal may come amid a print."""
    text = f"pruneopt: {signal.Signals(number).name}: keeping what there is; again to stop at once"
    os.write(2, f"{text}\n".encode())


def _run(words: list[str], debug: bool) -> int:
    """Run one command, and turn what it raises into a sentence and an exit code."""
    try:
        _refuse_half_characters(words)
        options = _parser().parse_args(_with_values(words))
        # Kept for the run record: how to do the same again.
        options.words = words
        with nullcontext() if debug else _silenced():
            code: int = import_module(f"pruneopt.tools.commands.{options.command}").run(options)
        sys.stdout.flush()
        return code
    except SystemExit as leave:  # argparse, after --help and --version
        return leave.code if isinstance(leave.code, int) else 0
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt as stop:
        hint = f"; {stop}" if str(stop) else ""
        _report(f"interrupted: no bundle was written{hint}", debug)
        return INTERRUPTED
    except PruneoptError as error:
        _report(_sentence(error), debug)
        return error.exit_code
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return _internal(error, debug)
        _report(f"the name of a file is too long: {str(error.filename)[:60]}...", debug)
        return UserError.exit_code
    except Exception as error:
        return _internal(error, debug)


def _refuse_half_characters(words: Sequence[str]) -> None:
    """Raise `UserError` for a word that is not UTF-8: no record could hold it."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{word!a} is not UTF-8: rename the file") from None


def _internal(error: Exception, debug: bool) -> int:
    """Report an error of ours, and return its exit code."""
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    _report(
        f"an error inside pruneopt, please report it with the output of --debug ({what})", debug
    )
    return INTERNAL


def _with_values(words: Sequence[str]) -> list[str]:
    """Return the words with a budget below zero tied to its flag: argparse takes ``-5MFLOPs`` for
    an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--budget":
            joined[-1] = f"--budget={word}"
        else:
            joined.append(word)
    return joined


@contextmanager
def _silenced() -> Iterator[None]:
    """Silence warnings and log lines of libraries: torch logs tracebacks of what it then raises as
    an error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _sentence(error: PruneoptError) -> str:
    """Return the message on one line: a pointer into a pipeline (source line and carets) becomes
    its column."""
    first, *rest = str(error).splitlines() or [type(error).__name__]
    notes = [
        line.strip().removeprefix("note: ") for line in rest if line.strip().startswith("note: ")
    ]
    # Anything else that follows belongs to the message (an exporter's reason), unless it shows
    # source.
    others = [] if ": error: " in first else [line.strip() for line in rest if line.strip()]
    return "; ".join([first, *notes, *others])


def _report(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    who = f"process {_rank()}: " if _rank() else ""
    print(f"pruneopt: {who}{message}", file=sys.stderr)


def _rank() -> int | None:
    """Return the number of this process among those that torchrun started; None without
    torchrun."""
    return int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else None


if __name__ == "__main__":
    sys.exit(main())
