"""python -m training: build a model stage by stage, measure it, print what was measured, publish it."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

from training import migrate, publish
from training.build import split, stages
from training.measure import ablate, classical, costs, curves, evaluate, shapes, tables

EXAMPLES = """examples:
  python -m training all --preset tiny --out out/tiny            every stage on drawn photos, in two minutes
  python -m training all --data PHOTOS --out out/single          the shipped model's tree
  python -m training experts --data PHOTOS --out OUT --set experts.minutes=90,20,5 --shard 1/3
  python -m training all --data PHOTOS --out OUT --init single   go on from the shipped model
  python -m training shapes --data PHOTOS --out OUT --set experts.minutes=1,1,1
  python -m training ablate --mode mixed --data PHOTOS --out OUT --init single --set experts.minutes=2,0.5
  python -m training evaluate --checkpoint single --data VALIDATION --limit 8
  python -m training costs --checkpoint single
  python -m training tables
"""
MODULES: dict[str, ModuleType] = {  # verbs beside the stages: each module has its options and does the work
    "shapes": shapes,
    "ablate": ablate,
    "evaluate": evaluate,
    "classical": classical,
    "costs": costs,
    "tables": tables,
    "curves": curves,
    "split": split,
    "migrate": migrate,
    "publish": publish,
}


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line, with `run` as the function that does what it asks for."""
    look = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m training", None, __doc__, EXAMPLES, formatter_class=look)
    verbs = parser.add_subparsers(dest="verb", required=True)
    commands = {"all": (stages, "All stages, in order.")}
    commands |= {verb: (stages, stage.__doc__ or "") for verb, stage in stages.VERBS.items()}
    commands |= {verb: (module, module.__doc__ or "") for verb, module in MODULES.items()}
    for verb, (module, text) in commands.items():
        command = verbs.add_parser(
            verb, help=text.partition("\n")[0], description=text, epilog=EXAMPLES, formatter_class=look
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Do what the command line asks for; 0, or 2 with one line on stderr for bad input, or 130 on Ctrl-C."""
    arguments = parse(words)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"training: {' '.join(str(error).split()):.500}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
