"""`hf-vlr`: one grammar for all commands, one policy for all errors."""

import os
import sys
import traceback

import click

from hf_vlr import __version__
from hf_vlr.cli.lazy import LazyGroup
from hf_vlr.cli.output import is_main_process, process_name
from hf_vlr.errors import Stopped, UserError

COMMANDS = {
    "quickstart": ("hf_vlr.cli.quickstart", "The whole story on generated data: train, compare, predict."),
    "train": ("hf_vlr.cli.train", "Train what a recipe describes."),
    "eval": ("hf_vlr.cli.evaluate", "Measure any classifier, or arrays of its scores, by shot groups."),
    "compare": ("hf_vlr.cli.compare", "Runs side by side: what differs, and what is noise."),
    "posthoc": ("hf_vlr.cli.posthoc", "Adjust predictions after training: priors, temperature, ensembles."),
    "interpolate": ("hf_vlr.cli.interpolate", "Mix the weights of two models, as before and after fine-tuning."),
    "protocol": ("hf_vlr.cli.protocol", "The papers' protocols: zero-shot, probes, retrieval, concepts, detection …"),
    "convert": ("hf_vlr.cli.convert", "Turn another project's checkpoint into a model of this one."),
    "curves": ("hf_vlr.cli.curves", "Draw the losses of runs over their steps."),
    "suite": ("hf_vlr.cli.suite", "Compare several runs over folds and seeds."),
    "predict": ("hf_vlr.cli.predict", "Name what images show, and the sentences that say so."),
    "demo": ("hf_vlr.cli.demo", "Show what a model sees, in a browser; teach it classes by describing them."),
    "export": ("hf_vlr.cli.export", "Write a model as ONNX for serving, in int8 too."),
    "push": ("hf_vlr.cli.push", "Publish a trained model on the Hub, with a card written from its run."),
    "data": ("hf_vlr.cli.data", "Build a dataset, or look at one."),
    "recipes": ("hf_vlr.cli.recipes", "List the packaged recipes, or every key of a recipe."),
    "launch": ("hf_vlr.cli.launch", "List or write files that start a training on many devices or machines."),
    "bench": ("hf_vlr.cli.bench", "Speed and memory beside open_clip, transformers, timm and the originals."),
    "env": ("hf_vlr.cli.env", "Versions and devices, for a bug report."),
}


@click.group(
    cls=LazyGroup,
    commands_from=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="hf-vlr")
def cli() -> None:
    """Long-tailed visual recognition with language (UniCL, VL-LTR).

    Every setting is KEY=VALUE, on every command. --data X is short for data.source=X, and vision=X, text=X
    for model.vision=X, model.text=X.

    \b
    hf-vlr quickstart                                        see it work, without data or network
    hf-vlr recipes                                           what can be trained
    hf-vlr train RECIPE --data imagefolder:DIR optim.lr=3e-4
    hf-vlr eval runs/RECIPE --data imagefolder:DIR
    hf-vlr predict runs/RECIPE photo.jpg
    accelerate launch -m hf_vlr train RECIPE                 the same on many devices
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 the user can mend it, 130 interrupted, 1 anything else.

    A run that a signal stopped has saved, and exits as shells have it: 143 for SIGTERM, 138 for SIGUSR1.
    What the user can mend is one line after `error:` on stderr; HF_VLR_DEBUG=1 adds the traceback.
    """
    debug = os.environ.get("HF_VLR_DEBUG", "") not in {"", "0"}
    try:
        code = cli.main(arguments, prog_name="hf-vlr", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.ClickException as error:
        # A wrong option is wrong in every process, so one of them says so.
        if is_main_process():
            _complain(error.format_message())
        code = 2
    except Stopped as stopped:
        # All processes stop together.
        if is_main_process():
            click.echo(str(stopped), err=True)
        code = stopped.code
    except UserError as error:
        if debug:
            traceback.print_exc()
        _complain(str(error))
        code = 2
    except (click.Abort, KeyboardInterrupt):
        if is_main_process():
            click.echo("interrupted", err=True)
        code = 130
    sys.exit(code or 0)


def _complain(message: str) -> None:
    click.echo(f"error{process_name()}: {' '.join(message.split())}", err=True)
