"""`python -m vitcourse`: run · classify · verify · bench."""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

import torch

# Each command's module has add_arguments(parser) and run(arguments) -> exit status. Only the chosen one is imported.
COMMANDS = {
    "run": ("demo", "the tour: what runs where, digits or a picture classified, every layer held against Hugging Face"),
    "classify": ("classify", "labels, with probabilities, for pictures"),
    "verify": ("verify", "compare every layer's output with Hugging Face's"),
    "bench": ("bench", "measure a ViT's forward pass beside its peers, or show what was recorded"),
}


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser of all commands; only the one called `chosen` has its arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m vitcourse", description="A Vision Transformer on Triton kernels.", epilog="COMMAND --help tells more."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            module = importlib.import_module(f".{module_name}", __package__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return its exit status. What the user can mend is told in one line, `error: ...`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(next((word for word in argv if not word.startswith("-")), None))
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    with contextlib.suppress(AttributeError, ValueError):  # a name or a label that the terminal cannot show stops nothing
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone; Python must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    except (MemoryError, torch.OutOfMemoryError):
        print("error: out of memory; try a smaller model, or with classify a smaller --batch-size", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
