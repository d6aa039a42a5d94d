"""The command `nasi`."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import jax
import numpy as np
import safetensors.numpy
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
)
from rich.table import Table

from nasi_jax import (
    cache,
    experiment,
    export,
    files,
    population,
    predict,
    ranking,
    training_run,
)
from nasi_jax.config import Config, RankConfig, ScoreConfig, SearchConfig
from nasi_jax.correlation import COEFFICIENTS
from nasi_jax.recipe import RECIPES, TrainConfig
from nasi_jax.search import Run
from nasi_jax.train import num_cells_of

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Compiling:
    """What the commands that compile have in common."""

    no_cache: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compile everything anew, and keep nothing of it in the user's cache folder."""


@dataclass(frozen=True)
class Search(Compiling):
    """Select an architecture at initialization, without training anything.

    Needs no labels and few images. Prints the genotype and writes into the output directory
    result.json, history.csv, history.png, cells.svg, cells.png and a checkpoint to resume from.
    """

    config: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(default_factory=SearchConfig)
    out: Path = Path("runs/search")
    """Output directory."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the search in the output directory; its settings need not be given again."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the search in the output directory."""

    def run(self) -> None:
        """Runs the search and reports it."""
        existing = _existing(self.resume, self.overwrite)
        with _progress(_program("the search step", self.config.resolved())) as report:

            def on_progress(stage: str, steps: int, run: Run | None) -> None:
                if run is None:
                    report(stage, steps, 0, 0.0)
                    return
                seconds, info = run.step_seconds, run.info
                figures = f"x {info.trace[-1]:.4g}  nu {info.constraint[-1]:.4g}"
                report(stage, steps, len(seconds), float(np.mean(seconds)), figures)

            result = experiment.search(
                self.config,
                self.out,
                **existing,
                on_progress=on_progress,
            )
        print(result["text"])
        choices, seconds = result["choices"], result["seconds"]
        ratios = [choice["margin_in_standard_errors"] or 0.0 for choice in choices]
        noise = sum(ratio < 2 for ratio in ratios)
        print(
            f"{result['space']}, {result['config']['variant']}, {result['norm']} norm, "
            f"seed {result['seed']}: searched {seconds['search']:.1f} s, "
            f"compiled {seconds['compile']:.1f} s, on {result['device']}"
        )
        if noise:
            print(
                f"{noise} of {len(choices)} choices lie within 2 standard errors: more steps "
                "may turn them"
            )
        print(f"wrote {self.out}/result.json, cells.svg, history.png")


@dataclass(frozen=True)
class Score(Compiling):
    """Score architectures at initialization, all through one compiled supernet.

    Writes a csv file with a line for each architecture, and a json file beside it. Every score
    is better when higher.
    """

    config: Annotated[ScoreConfig, tyro.conf.arg(name="")] = field(default_factory=ScoreConfig)
    out: Path = Path("runs/scores.csv")
    """Output file, a .csv."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the scores in the output file, of the same settings."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the output file."""

    def run(self) -> None:
        """Scores and reports."""
        existing = _existing(self.resume, self.overwrite)
        with _progress(_program("the scores", self.config)) as report:
            scores = population.score(
                self.config,
                self.out,
                **existing,
                on_progress=report,
            )
        for name, values in scores.values.items():
            means = np.mean(values, axis=0)
            if np.isnan(means).all():
                print(f"best {name}: undefined")
                continue
            best = int(np.nanargmax(means))
            print(f"best {name}: {means[best]:.6g}  {scores.genotypes[best]}")
        _print_cost(self.config, population.record_of(self.config, scores))
        print(f"wrote {self.out} and {self.out.with_suffix('.json').name}")


@dataclass(frozen=True)
class Compare(Compiling):
    """Compare proxies with the exact trace of the NTK over random architectures.

    Prints Pearson's, Spearman's and Kendall's correlation with 95% bootstrap intervals, and
    writes compare.csv, compare.json and compare.png into the output directory.
    """

    config: Annotated[ScoreConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: ScoreConfig(norm="frozen", batch_size=8)
    )
    out: Path = Path("runs/compare")
    """Output directory."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the comparison in the output directory, of the same settings."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the comparison in the output directory."""

    def run(self) -> None:
        """Compares and reports."""
        existing = _existing(self.resume, self.overwrite)
        with _progress(_program("the scores", self.config)) as report:
            result = ranking.compare(
                self.config,
                self.out,
                **existing,
                on_progress=report,
            )
        _print_correlations(result)
        _print_cost(self.config, result)
        if result["reference"] != ranking.REFERENCE:
            print("the reference is our own exact trace: pip install 'nasi-jax[ntk]' for another")
        print(f"wrote {self.out}/compare.csv, compare.json, compare.png")


@dataclass(frozen=True, kw_only=True)
class Rank(Compiling):
    """Rank architectures by proxies, against their accuracies in a table of a benchmark.

    Prints Pearson's, Spearman's and Kendall's correlation with the accuracy and the precision in
    the top 10%, with 95% bootstrap intervals and the standard deviation over the seeds, and writes
    rank.csv, rank.json, rank.png, scores.csv and scores.json into the output directory.
    """

    config: Annotated[RankConfig, tyro.conf.arg(name="")]
    out: Path = Path("runs/rank")
    """Output directory."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the ranking in the output directory, of the same settings."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the ranking in the output directory."""

    def run(self) -> None:
        """Ranks and reports."""
        existing = _existing(self.resume, self.overwrite)
        with _progress(_program("the scores", self.config)) as report:
            result = ranking.rank(self.config, self.out, **existing, on_progress=report)
        _print_correlations(result)
        _print_cost(self.config, result)
        print(f"wrote {self.out}/rank.csv, rank.json, rank.png, scores.csv, scores.json")


@dataclass(frozen=True)
class Train(Compiling):
    """Train the network of a genotype from scratch.

    Prints the accuracy on the test images, and writes into the output directory summary.json,
    metrics.csv, curves.png and a checkpoint, from which it resumes, and which export and predict
    take. Settings that are not given are those of the recipe.
    """

    genotype: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="GENOTYPE")] = None
    """A genotype as text or JSON, or a file that holds one, such as a search's result.json. Need
    not be given with --resume."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    seeds: int = 1
    """Number of trainings, from seed, seed + 1 and so on, each in a directory of its own."""
    out: Path = Path("runs/train")
    """Output directory."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the training in the output directory; its settings need not be given again."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the training in the output directory."""

    def run(self) -> None:
        """Trains and reports."""
        existing = _existing(self.resume, self.overwrite)
        if self.genotype is not None:
            genotype = experiment.read_genotype(self.genotype)
        elif self.resume:
            genotype, _, _ = training_run.saved(self.out)
        else:
            raise ValueError("name a genotype to train, or a file that holds one")
        if self.seeds < 1:
            raise ValueError(f"seeds must be from 1 to 1000, got {self.seeds}")
        config = self.config
        cells = num_cells_of(genotype, config)
        sizes = f"init_channels {config.init_channels}, num_cells {cells}"
        program = f"a training step, recipe {config.recipe}, {sizes}, batch {config.batch_size}"
        with _progress(program) as report:
            if self.seeds == 1:
                result = training_run.train(
                    genotype, config, self.out, **existing, on_progress=report
                )
            else:
                result = training_run.train_seeds(
                    genotype, config, self.out, self.seeds, **existing, on_progress=report
                )
        print(genotype.to_text())
        if self.seeds == 1:
            _print_trained(result)
            print(f"wrote {self.out}/summary.json, metrics.csv, curves.png, checkpoint")
        else:
            for each in result["trainings"]:
                _print_trained(each)
            found = result["last_accuracy"]
            print(
                f"{self.seeds} seeds: test accuracy {found['mean']:.2f} % "
                f"± {found['standard_deviation']:.2f} (standard deviation)"
            )
            print(f"wrote {self.out}/summary.json")


def _print_trained(summary: Mapping[str, Any]) -> None:
    config = summary["config"]
    print(
        f"seed {summary['seed']}: test accuracy {summary['last_accuracy']:.2f} % after "
        f"{config['epochs']} epochs (best {summary['best_accuracy']:.2f} % after "
        f"{summary['best_epoch']}), {summary['parameters']:,} parameters, "
        f"{summary['multiply_adds'] / 1e6:.1f} M multiply-adds, {summary['seconds']:.0f} s on "
        f"{summary['device']}"
    )


@dataclass(frozen=True)
class Export:
    """Write a genotype in another form, or as a module that needs nothing of this package.

    flax and torch write a Python file with the network at the size that it is trained at; with a
    checkpoint also its parameters, beside it, as a .safetensors file.
    """

    genotype: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="GENOTYPE")] = None
    """A genotype as text or JSON, or a file that holds one, such as a search's result.json. Need
    not be given with --checkpoint."""
    format: Literal["darts", "nasbench201", "nasbench101", "json", "flax", "torch"] = "json"
    """Form of the output."""
    out: Path | None = None
    """File to write; text goes to the terminal if there is none."""
    checkpoint: Path | None = None
    """Directory of a training, whose genotype, sizes and parameters these are then."""
    num_classes: int | None = None
    """Outputs of the module, 10 if not given."""
    init_channels: int | None = None
    """Channels of its first cells, as its benchmark or DARTS trained it if not given."""
    num_cells: int | None = None
    """Its cells; in NAS-Bench-201, cells in each of the 3 stages."""
    stem: Literal["cifar", "imagenet"] | None = None
    """Its first layers, of darts; cifar if not given."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the file."""

    def run(self) -> None:
        """Writes the file, or two."""
        names = ("num_classes", "init_channels", "num_cells", "stem")
        sizes = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.checkpoint is not None:
            self._trained(self.checkpoint, sizes)
            return
        if self.genotype is None:
            raise ValueError("name a genotype, or a file that holds one, or a --checkpoint")
        genotype = experiment.read_genotype(self.genotype)
        if self.format in export.FRAMEWORKS:
            content = export.module_source(genotype, cast(Any, self.format), **sizes)
        elif sizes:
            raise ValueError(f"only flax and torch have {', '.join(sizes)}")
        else:
            content = export.text(genotype, self.format) + "\n"
        if self.out is None:
            sys.stdout.write(content)
        else:
            files.write(self.out, content.encode(), overwrite=self.overwrite)

    def _trained(self, checkpoint: Path, sizes: Mapping[str, Any]) -> None:
        if self.format not in export.FRAMEWORKS or self.out is None:
            raise ValueError("parameters are exported with --format flax or torch, and --out")
        if self.genotype is not None or sizes:
            raise ValueError("the genotype and its sizes are those of the checkpoint")
        framework = cast(Any, self.format)
        weights = self.out.with_suffix(".safetensors")
        if weights == self.out:
            raise ValueError(f"--out names the Python file, beside which goes {weights.name}")
        # Before either is written.
        for path in (self.out, weights):
            files.check_absent(path, overwrite=self.overwrite)
        network = training_run.trained(checkpoint)
        images = network.images
        mean, std = (part / images.scale for part in (images.mean, images.std))
        inputs = f"Images are on [0, 1], less {_numbers(mean)}, divided by {_numbers(std)}."
        content = export.module_source(
            network.genotype,
            framework,
            num_classes=images.num_classes,
            inputs=inputs,
            **training_run.sizes_of(network),
        )
        parameters = export.parameters(network.variables, framework)
        files.write(weights, safetensors.numpy.save(parameters), overwrite=self.overwrite)
        files.write(self.out, content.encode(), overwrite=self.overwrite)
        print(f"wrote {self.out} and {weights.name}")
        print(inputs)


def _numbers(values: np.ndarray) -> str:
    return f"({', '.join(f'{value:.4f}' for value in values)})"


@dataclass(frozen=True, kw_only=True)
class Predict(Compiling):
    """Classify image files with a trained network.

    Prints a line for each: the file, then the most probable classes with their probabilities,
    separated by tabs.
    """

    checkpoint: tyro.conf.Positional[Path]
    """Directory of a training."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    top: int = 1
    """How many classes of each."""

    def run(self) -> None:
        """Classifies and prints."""
        network = training_run.trained(self.checkpoint)
        for path, names, probabilities in predict.predict(network, self.images, top=self.top):
            found = zip(names, probabilities, strict=True)
            columns = [f"{name}\t{probability:.4f}" for name, probability in found]
            print("\t".join([path, *columns]))


@dataclass(frozen=True)
class Show:
    """Print or draw a genotype."""

    genotype: tyro.conf.Positional[str]
    """A genotype as text or JSON, or a file that holds one, such as a search's result.json."""
    format: Literal["text", "json", "svg", "png"] = "text"
    """Form of the output."""
    out: Path | None = None
    """File to write; text, json and svg go to the terminal if there is none."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace that file."""

    def run(self) -> None:
        """Writes the genotype in the form that was asked for."""
        content = experiment.show(self.genotype, self.format)
        if self.out is not None:
            files.write(self.out, content, overwrite=self.overwrite)
        elif self.format == "png":
            raise ValueError("a png needs a file: name one with --out")
        else:
            sys.stdout.write(content.decode())


def _existing(resume: bool, overwrite: bool) -> dict[str, bool]:
    """What is to happen to output that is there already, as keyword arguments."""
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    return {"resume": resume, "overwrite": overwrite}


def _print_correlations(result: Mapping[str, Any]) -> None:
    table = Table("proxy", *COEFFICIENTS, title=f"correlation with {result['reference']}")
    for name, coefficients in result["correlations"].items():
        table.add_row(name, *map(_interval, coefficients.values()))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _interval(found: Mapping[str, float | None]) -> str:
    value, low, high = found["value"], found["low"], found["high"]
    if value is None:
        return "undefined"
    interval = "" if low is None else f" [{low:.3f}, {high:.3f}]"
    spread = "" if found["deviation"] is None else f" ± {found['deviation']:.3f}"
    return f"{value:.3f}{spread}{interval}"


def _print_cost(config: ScoreConfig, result: Mapping[str, Any]) -> None:
    seconds, program = result["seconds"], result["num_compilations"]
    seeds = f"seed {config.seed}" if config.seeds == 1 else f"{config.seeds} seeds"
    print(
        f"{result['num_archs']} architectures of {config.space}, {config.norm} norm, {seeds}: "
        f"compiled {program} program in {seconds['compile']:.1f} s, "
        f"scored in {seconds['score']:.1f} s"
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; ends with status 2 for bad input and 1 for a run that failed."""
    given = sys.argv[1:] if arguments is None else arguments
    if arguments is None:  # a process of our own
        _say_nothing_twice()
    try:
        command = _command(given)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _say("warning", str(message))
            if isinstance(command, Compiling):
                _set_up_cache(command.no_cache)
            command.run()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read stdout, such as `head`, has what they want.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        _fail(str(error), 2)
    except (FloatingPointError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        _fail(str(error) or type(error).__name__, 1)
    except KeyboardInterrupt:
        once = given[:1] in (["export"], ["predict"], ["show"])
        rest = "" if once else "; the same command with --resume goes on where it was"
        _fail(f"stopped{rest}", 130)


_Command = Search | Score | Compare | Rank | Train | Export | Predict | Show


def _command(arguments: list[str]) -> _Command:
    search = Annotated[Search, tyro.conf.subcommand("search", default=_search_default(arguments))]
    score = Annotated[Score, tyro.conf.subcommand("score")]
    compare = Annotated[Compare, tyro.conf.subcommand("compare")]
    rank = Annotated[Rank, tyro.conf.subcommand("rank")]
    train = Annotated[Train, tyro.conf.subcommand("train", default=_train_default(arguments))]
    export_ = Annotated[Export, tyro.conf.subcommand("export")]
    predict_ = Annotated[Predict, tyro.conf.subcommand("predict")]
    show = Annotated[Show, tyro.conf.subcommand("show")]
    return tyro.cli(
        search | score | compare | rank | train | export_ | predict_ | show,
        prog="nasi",
        description="Neural architecture search at initialization (NASI), in JAX.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )


def _search_default(arguments: list[str]) -> Search:
    """What the flags of `nasi search` default to: when it resumes, the search that it resumes."""
    given = _given(arguments, Search.out)
    if given.resume and (given.out / "config.json").exists() and arguments[:1] == ["search"]:
        return Search(config=experiment.saved_config(given.out))
    return Search()


def _train_default(arguments: list[str]) -> Train:
    """What the flags of `nasi train` default to: the training that it resumes, or the recipe."""
    given = _given(arguments, Train.out)
    if given.resume and (given.out / "config.json").exists() and arguments[:1] == ["train"]:
        _, config, seeds = training_run.saved(given.out)
        return Train(config=config, seeds=seeds)
    return Train(config=RECIPES.get(given.recipe, TrainConfig()))


def _given(arguments: list[str], out: Path) -> argparse.Namespace:
    """Those flags that the defaults of the others depend on."""
    flags = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    flags.add_argument("--resume", action="store_true")
    flags.add_argument("--out", type=Path, default=out)
    flags.add_argument("--recipe", default=TrainConfig.recipe)
    try:
        known, _ = flags.parse_known_args(arguments)
    except argparse.ArgumentError:
        return flags.parse_args([])
    return known


def _program(what: str, config: Config) -> str:
    """What is compiled, and for which sizes, in words."""
    space = vars(experiment.space_of(config))
    sizes = {name: space[name] for name in ("init_channels", "num_cells")}
    sizes["batch_size"] = config.batch_size
    listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return f"{what} of {config.space}, {listed}"


def _set_up_cache(no_cache: bool) -> None:
    if no_cache:
        cache.turn_off()
    elif jax.config.values["jax_compilation_cache_dir"] is None:  # or it is the user's own
        try:
            cache.turn_on(cache.default_folder())
        except OSError as error:
            _say("warning", f"nothing that is compiled will be kept: {error}")


def _say(kind: str, message: str) -> None:
    print(f"nasi: {kind}: {' '.join(message.split())}", file=sys.stderr)


def _fail(message: str, status: int) -> None:
    _say("error", message)
    raise SystemExit(status)


def _say_nothing_twice() -> None:
    """Keeps from stderr what orbax says of a failure besides raising it.

    It logs a traceback, and so does its event loop; threads that find the loop closed say so, in
    hundreds of lines; and at the very end Python warns of what was to run on it.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def _progress(program: str) -> Iterator[Callable[..., None]]:
    """Shows long work on stderr: a bar on a terminal, a line now and then elsewhere.

    Args:
      program: what is compiled, in words.
    """
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[figures]}"),
    )
    printed_stage, printed, began = "", 0.0, 0.0
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    with bar as progress, cache.counted() as events:
        task = progress.add_task("starting", total=None, left="", figures="")

        def report(stage: str, total: int, done: int, seconds: float, figures: str = "") -> None:
            nonlocal printed_stage, printed, began
            now = time.monotonic()
            if stage == "compiling":
                began = now
                events.clear()
                print(f"compiling {program}", file=sys.stderr)
            elif stage == "compiled":
                source = ", from the cache" if events[cache.HIT] and not events[cache.MISS] else ""
                print(f"compiled in {now - began:.1f} s{source}", file=sys.stderr)
            rest = datetime.timedelta(seconds=round((total - done) * seconds))
            left = f"{rest} left" if done and seconds else ""
            progress.update(
                task, description=stage, total=total, completed=done, left=left, figures=figures
            )
            told = stage in ("compiling", "compiled")
            due = stage != printed_stage or now - printed > _SECONDS_BETWEEN_LINES
            if due and not told and not console.is_terminal:
                printed_stage, printed = stage, now
                parts = filter(None, (stage, f"{done}/{total}", left, figures))
                print("  ".join(parts), file=sys.stderr)

        yield report
