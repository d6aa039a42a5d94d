"""The command `nasi`."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import inspect
import logging
import operator
import os
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import jax
import numpy as np
import safetensors.numpy
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
)
from rich.progress import Progress as Bar
from rich.table import Table

from nasi_jax import export, runs
from nasi_jax.config import Config, RankConfig, ScoreConfig, SearchConfig, SelectConfig
from nasi_jax.devices import cache, environment, footprint, hosts
from nasi_jax.devices.mesh import parse as parse_mesh
from nasi_jax.search.loop import TooLarge
from nasi_jax.storage import directory, files
from nasi_jax.training.recipes import RECIPES, TrainConfig
from nasi_jax.training.trainer import network_sizes, num_cells_of
from nasi_jax.types import OnProgress, Progress

_SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Compiling:
    """What the commands that compile have in common."""

    less_memory: ClassVar[str]
    """What to do where the device's memory is too small, in words."""

    no_cache: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compile everything anew, and keep nothing of it in the user's cache folder."""


@dataclass(frozen=True)
class Spread(Compiling):
    """What the commands have in common that several devices share."""

    mesh: Annotated[str | None, tyro.conf.arg(metavar="data=N,sample=N")] = None
    """How many devices share the examples of a batch (a search, a training), and how many the
    samples of a search or the architectures to score; if not given, all, as docs/scale.md says.
    Changes a result by rounding only, so a run may go on with another."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Run together with other processes, which are given the same command: where the first of them
    is to be reached. All see the output directory, and the first one writes it."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which one this is, from 0."""
    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run together with the other processes of this job, as JAX finds them out under SLURM and
    Open MPI, on GKE and on Cloud TPUs; in place of the three flags before."""

    def join(self) -> None:
        """Finds the other processes, if there are any.

        Raises:
          ValueError: if they cannot be found.
        """
        hosts.initialize(
            self.coordinator, self.num_processes, self.process_id, detect=self.distributed
        )


@dataclass(frozen=True)
class Resumable(Spread):
    """What the commands have in common that may find a run in their output."""

    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run that is there, of the same settings; those of a search and of a training
    need not be given again."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace the run that is there."""

    @property
    def options(self) -> dict[str, Any]:
        """What is to happen to it, and on which devices, as keyword arguments.

        Raises:
          ValueError: if both are set, or there is no such mesh.
        """
        if self.resume and self.overwrite:
            raise ValueError("--resume and --overwrite exclude each other")
        mesh = None if self.mesh is None else parse_mesh(self.mesh)
        return {"resume": self.resume, "overwrite": self.overwrite, "mesh": mesh}


@dataclass(frozen=True)
class Search(Resumable):
    """Select an architecture at initialization, without training anything.

    Needs no labels and few images. Prints the genotype and writes into the output directory
    result.json, history.csv, history.png, cells.svg, cells.png and a checkpoint to resume from.
    """

    less_memory = (
        "lower --batch-size or --samples-per-step, or raise --micro-batches with --norm frozen or "
        "none"
    )
    config: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(default_factory=SearchConfig)
    out: Path = Path("runs/search")
    """Output directory."""

    @classmethod
    def saved(cls, out: Path) -> Search:
        """The command with the settings of the search in its output."""
        return cls(config=runs.search.saved(out), out=out)

    def run(self) -> None:
        """Runs the search and reports it."""
        with _progress(_program("the search step", self.config.resolved())) as report:
            result = runs.search.search(self.config, self.out, **self.options, on_progress=report)
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
        if self.config.until_sure or not noise:
            _print_verdicts(result)
        if result["place"] > 1:
            print(f"the most probable within the limits, number {result['place']} of all")
        _print_network(result)
        print(f"wrote {self.out}/result.json, cells.svg, history.png")


def _print_network(result: Mapping[str, Any]) -> None:
    """Prints the size that the limits are of, where there are limits."""
    if network := result.get("network"):
        print(
            f"its network for {network['for']} has {network['params'] / 1e6:.2f} M parameters and "
            f"{network['multiply_adds'] / 1e6:.0f} M multiply-adds"
        )


def _print_verdicts(result: Mapping[str, Any]) -> None:
    choices = result["choices"]
    unsure = [choice for choice in choices if not choice["sure"]]
    print(
        f"{len(choices) - len(unsure)} of {len(choices)} choices are sure after "
        f"{result['steps']} steps, for {result['sure_of']}"
    )
    for choice in unsure:
        more = choice["steps_to_sure"]
        print(
            f"  {choice['name']}: {choice['winner']} or {choice['runner_up']}, "
            + ("not at this rate" if more is None else f"about {more} more steps")
        )


@dataclass(frozen=True)
class Score(Resumable):
    """Score architectures at initialization, all through one compiled supernet.

    Writes a csv file with a line for each architecture, and a json file beside it. Every score
    is better when higher.
    """

    less_memory = "lower --batch-size or --archs-per-call"
    config: Annotated[ScoreConfig, tyro.conf.arg(name="")] = field(default_factory=ScoreConfig)
    out: Path = Path("runs/scores.csv")
    """Output file, a .csv."""

    @classmethod
    def saved(cls, out: Path) -> Score:
        """The command with the settings of the scores in its output."""
        config = runs.score.saved(runs.score.run_directory(out), ScoreConfig)
        return cls(config=config, out=out)

    def run(self) -> None:
        """Scores and reports."""
        with _progress(_program("the scores", self.config)) as report:
            scores = runs.score.score(self.config, self.out, **self.options, on_progress=report)
        errors = scores.standard_errors
        for name, means in scores.means.items():
            if np.isnan(means).all():
                print(f"best {name}: undefined")
                continue
            best = int(np.nanargmax(means))
            error = "" if errors is None else f" ± {errors[name][best]:.2g}"
            print(f"best {name}: {means[best]:.6g}{error}  {scores.genotypes[best]}")
        _print_cost(self.config, runs.score.record_of(self.config, scores))
        print(f"wrote {self.out} and {self.out.with_suffix('.json').name}")


@dataclass(frozen=True)
class Compare(Resumable):
    """Compare proxies with the exact trace of the NTK over random architectures.

    Prints Pearson's, Spearman's and Kendall's correlation with 95% bootstrap intervals, and
    writes compare.csv, compare.json and compare.png into the output directory.
    """

    less_memory = "lower --batch-size or --archs-per-call"
    config: Annotated[ScoreConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: ScoreConfig(norm="frozen", batch_size=8)
    )
    out: Path = Path("runs/compare")
    """Output directory."""

    @classmethod
    def saved(cls, out: Path) -> Compare:
        """The command with the settings of the comparison in its output."""
        config = runs.score.saved(runs.compare.run_directory(out), ScoreConfig)
        return cls(config=config, out=out)

    def run(self) -> None:
        """Compares and reports."""
        with _progress(_program("the scores", self.config)) as report:
            result = runs.compare.compare(self.config, self.out, **self.options, on_progress=report)
        _print_correlations(result)
        _print_cost(self.config, result)
        if result["reference"] != runs.compare.REFERENCE:
            print("the reference is our own exact trace: pip install 'nasi-jax[ntk]' for another")
        print(f"wrote {self.out}/compare.csv, compare.json, compare.png")


@dataclass(frozen=True, kw_only=True)
class Rank(Resumable):
    """Rank architectures by proxies, against their accuracies in a table of a benchmark.

    Prints Pearson's, Spearman's and Kendall's correlation with the accuracy, the precision in the
    top 10%, the nDCG of the first 6.4% and the accuracy of the first (best), with 95% bootstrap
    intervals and the standard deviation over the seeds, and writes rank.csv, rank.json, rank.png,
    scores.csv and scores.json into the output directory.
    """

    less_memory = "lower --batch-size or --archs-per-call"
    config: Annotated[RankConfig, tyro.conf.arg(name="")]
    out: Path = Path("runs/rank")
    """Output directory."""

    @classmethod
    def saved(cls, out: Path) -> Rank:
        """The command with the settings of the ranking in its output."""
        config = runs.score.saved(runs.rank.run_directory(out), RankConfig)
        return cls(config=config, out=out)

    def run(self) -> None:
        """Ranks and reports."""
        with _progress(_program("the scores", self.config)) as report:
            result = runs.rank.rank(self.config, self.out, **self.options, on_progress=report)
        for column, found in result["overlaps"].items():
            print(
                f"{found['cells']} cells have {column} in two tables, whose difference is "
                f"{found['median']:.2f} in the median and {found['largest']:.2f} at most"
            )
        _print_correlations(result, _POPULATIONS[self.config.population])
        _print_cost(self.config, result)
        print(f"wrote {self.out}/rank.csv, rank.json, rank.png, scores.csv, scores.json")


@dataclass(frozen=True)
class Select(Resumable):
    """Select the architecture that proxies rank highest, of all that are looked at.

    Prints the genotype and writes into the output directory result.json, scores.csv (a line for
    each network), cells.svg, cells.png and history.png.
    """

    less_memory = "lower --batch-size or --archs-per-call"
    config: Annotated[SelectConfig, tyro.conf.arg(name="")] = field(default_factory=SelectConfig)
    out: Path = Path("runs/select")
    """Output directory."""

    @classmethod
    def saved(cls, out: Path) -> Select:
        """The command with the settings of the selection in its output."""
        return cls(config=runs.select.saved(out), out=out)

    def run(self) -> None:
        """Selects and reports."""
        with _progress(_program("the scores", self.config)) as report:
            result = runs.select.select(self.config, self.out, **self.options, on_progress=report)
        print(result["text"])
        seconds = result["seconds"]
        print(
            f"{result['space']}, {self.config.method} by {', '.join(self.config.proxies)}, "
            f"seed {result['seed']}: network {result['number']} of {result['num_scored']}, "
            f"scored {seconds['score']:.1f} s, compiled {seconds['compile']:.1f} s, "
            f"on {result['device']}"
        )
        _print_network(result)
        print(f"wrote {self.out}/result.json, scores.csv, cells.svg, history.png")


@dataclass(frozen=True)
class Train(Resumable):
    """Train the network of a genotype from scratch.

    Prints the accuracy on the test images, and writes into the output directory summary.json,
    metrics.csv, curves.png and a checkpoint, from which it resumes, and which export and predict
    take. Settings that are not given are those of the recipe.
    """

    less_memory = "lower --batch-size, raise --micro-batches, or set --remat"
    genotype: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="GENOTYPE")] = None
    """A genotype as text or JSON, or a file that holds one, such as a search's result.json. Need
    not be given with --resume."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)
    seeds: int = 1
    """Number of trainings, from seed, seed + 1 and so on, each in a directory of its own."""
    out: Path = Path("runs/train")
    """Output directory."""

    @classmethod
    def saved(cls, out: Path) -> Train:
        """The command with the settings of the training in its output."""
        _, config, seeds = runs.train.saved(out)
        return cls(config=config, seeds=seeds, out=out)

    def run(self) -> None:
        """Trains and reports."""
        options = self.options
        if self.genotype is not None:
            genotype = runs.search.read_genotype(self.genotype, self.config.space)
        elif self.resume:
            genotype, _, _ = runs.train.saved(self.out)
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
                result = runs.train.train(genotype, config, self.out, **options, on_progress=report)
            else:
                result = runs.train.train_seeds(
                    genotype, config, self.out, self.seeds, **options, on_progress=report
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


if TYPE_CHECKING:  # a Literal of what is not written out
    Form = str
else:
    Form = Literal[(*export.FORMS, *export.FRAMEWORKS)]


@dataclass(frozen=True)
class Export:
    """Write a genotype in another form, or as a module that needs nothing of this package.

    flax and torch write a Python file with the network at the size that it is trained at; with a
    checkpoint also its parameters, beside it, as a .safetensors file.
    """

    genotype: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="GENOTYPE")] = None
    """A genotype as text or JSON, or a file that holds one, such as a search's result.json. Need
    not be given with --checkpoint."""
    format: Form = "json"
    """Form of the output."""
    space: str | None = None
    """Space of the genotype, if it is none of ours: as for a search."""
    out: Path | None = None
    """File to write; text goes to the terminal if there is none."""
    checkpoint: Path | None = None
    """Directory of a training, whose genotype, sizes and parameters these are then."""
    num_classes: int | None = None
    """Outputs of the module, 10 if not given."""
    init_channels: int | None = None
    """Channels of its first cells, as its benchmark or DARTS trained it if not given."""
    num_cells: int | None = None
    """Its cells; in the NAS-Bench spaces, cells in each stage."""
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
        genotype = runs.search.read_genotype(self.genotype, self.space)
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
        network = runs.train.trained(checkpoint)
        images = network.images
        mean, std = (part / images.scale for part in (images.mean, images.std))
        inputs = f"Images are on [0, 1], less {_numbers(mean)}, divided by {_numbers(std)}."
        content = export.module_source(
            network.genotype,
            framework,
            num_classes=images.num_classes,
            inputs=inputs,
            stem=network.config.stem,
            **network_sizes(network.genotype, network.config),
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

    less_memory = "name fewer images at a time"
    checkpoint: tyro.conf.Positional[Path]
    """Directory of a training."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    top: int = 1
    """How many classes of each."""

    def run(self) -> None:
        """Classifies and prints."""
        network = runs.train.trained(self.checkpoint)
        for path, names, probabilities in runs.predict.predict(network, self.images, top=self.top):
            found = zip(names, probabilities, strict=True)
            columns = [f"{name}\t{probability:.4f}" for name, probability in found]
            print("\t".join([path, *columns]))


@dataclass(frozen=True)
class Show:
    """Print or draw a genotype."""

    genotype: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GENOTYPE")]
    """A genotype as text or JSON, or a file that holds one, such as a search's result.json."""
    format: Literal["text", "json", "svg", "png"] = "text"
    """Form of the output."""
    space: str | None = None
    """Space of the genotype, if it is none of ours: as for a search."""
    out: Path | None = None
    """File to write; text, json and svg go to the terminal if there is none."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace that file."""

    def run(self) -> None:
        """Writes the genotype in the form that was asked for."""
        content = runs.search.show(self.genotype, self.format, self.space)
        if self.out is not None:
            files.write(self.out, content, overwrite=self.overwrite)
        elif self.format == "png":
            raise ValueError("a png needs a file: name one with --out")
        else:
            sys.stdout.write(content.decode())


@dataclass(frozen=True)
class Report:
    """Write one HTML page of runs: cells, charts, configurations, versions, costs, side by side.

    The page needs no network. A point of a chart has its genotype and its cells under the pointer.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directories of searches, selections, rankings, comparisons and trainings."""
    out: Path = Path("report.html")
    """The file to write."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace that file."""

    def run(self) -> None:
        """Writes the page."""
        runs.report.report(self.runs, self.out, overwrite=self.overwrite)
        print(f"wrote {self.out}")


@dataclass(frozen=True, kw_only=True)
class Resume(Spread):
    """Go on with a run of any command that leaves one, with its own settings.

    Does what the command does that began the run, with --resume and every setting as it was.
    """

    path: tyro.conf.Positional[Path]
    """Output directory of the run, or the .csv file of scores."""

    def command(self) -> _Run:
        """The command that began the run."""
        verb = _RUNS[runs.resume.verb_of(self.path)]
        saved = verb.saved(self.path)
        return replace(saved, resume=True, no_cache=self.no_cache, mesh=self.mesh)


@dataclass(frozen=True, kw_only=True)
class _Planned(Compiling):
    """What plans of all commands have in common."""

    device: str | None = None
    """What to plan for: cpu, gpu or tpu where that is at hand, or h100 or v5e, which need not be
    (pip install 'nasi-jax[aot]' or 'nasi-jax[aot-tpu]'). The device at hand if not given."""
    device_memory: str | None = None
    """Its memory, such as 80GB or 16GiB: says what fits, and compiles a few programs more to find
    the largest batch and number of samples that do. What the device at hand tells if not given."""
    num_devices: int = 1
    """How many such devices share the run, each with samples, architectures or a part of a training
    batch of its own. What they send one another is not counted."""
    vary: tuple[str, ...] = ()
    """Other values of settings to plan too, one at a time, such as batch_size=128,256
    num_cells=8,20 num_devices=2,4,8."""
    num_classes: int | None = None
    """Classes of images that are not on this machine. Need not be given for digits, gaussian,
    cifar10, cifar100 and imagenet2012."""
    num_examples: int | None = None
    """How many of these images there are to train on."""
    out: Path | None = None
    """File for all figures, a .json."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace that file."""

    def job(self, images: Callable[[Any], runs.plan.ImageSet]) -> runs.plan.Job:
        """The run, of which `images` says what it sees."""
        raise NotImplementedError

    def run(self) -> None:
        """Plans and reports.

        Raises:
          ValueError: if the run does not fit, after all else is done.
        """
        memory = None if self.device_memory is None else footprint.bytes_of(self.device_memory)
        given = self.num_classes, self.num_examples
        if None in given and given != (None, None):
            raise ValueError("--num-classes and --num-examples go together")
        if any(number is not None and number < 1 for number in given):
            raise ValueError("--num-classes and --num-examples must be at least 1")
        vary = dict(map(_values_of, self.vary))
        if self.out is not None:
            files.check_absent(self.out, overwrite=self.overwrite)
        device = runs.plan.device_named(self.device)
        if device.target is not None:  # a device that is not there cannot load what is kept
            cache.turn_off()
        known = None if None in given else cast(tuple[int, int], given)
        job = self.job(lambda config: runs.plan.image_set(config, known))
        job = job.altered({"num_devices": self.num_devices})
        result = runs.plan.plan(job, device, memory=memory, vary=vary, on_compile=_say_planned)
        if self.out is not None:
            text = files.json_text(result)
            files.write(self.out, text.encode(), overwrite=self.overwrite)
        _print_plan(result)
        if self.out is not None:
            print(f"wrote {self.out}")
        if result["rows"][0]["fits"] is False:
            raise ValueError(f"the run does not fit: {self.less_memory}")


@dataclass(frozen=True, kw_only=True)
class PlanSearch(_Planned):
    """Forecast memory and time of a search, of any of its settings."""

    less_memory = Search.less_memory
    config: Annotated[SearchConfig, tyro.conf.arg(name="")] = field(default_factory=SearchConfig)

    def job(self, images: Callable[[Any], runs.plan.ImageSet]) -> runs.plan.Job:
        """The search."""
        config = self.config.resolved()
        return runs.plan.Job(config, images(config))


@dataclass(frozen=True, kw_only=True)
class PlanScore(_Planned):
    """Forecast memory and time of scores, of any of their settings."""

    less_memory = Score.less_memory
    config: Annotated[ScoreConfig, tyro.conf.arg(name="")] = field(default_factory=ScoreConfig)

    def job(self, images: Callable[[Any], runs.plan.ImageSet]) -> runs.plan.Job:
        """The scores."""
        return runs.plan.Job(self.config, images(self.config))


@dataclass(frozen=True, kw_only=True)
class PlanTrain(_Planned):
    """Forecast memory and time of a training, of any of its settings."""

    less_memory = Train.less_memory
    genotype: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GENOTYPE")]
    """As for a training."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)

    def job(self, images: Callable[[Any], runs.plan.ImageSet]) -> runs.plan.Job:
        """The training."""
        genotype = runs.search.read_genotype(self.genotype, self.config.space)
        return runs.plan.Job(self.config, images(self.config), genotype)


@dataclass(frozen=True)
class Plan:
    """Forecast memory and time of a run from its compiled program; nothing is computed.

    For the device at hand, or for one that need not be there. Ends with status 2 if the run does
    not fit into --device-memory.
    """

    of: Annotated[
        Annotated[PlanSearch, tyro.conf.subcommand("search")]
        | Annotated[PlanScore, tyro.conf.subcommand("score")]
        | Annotated[PlanTrain, tyro.conf.subcommand("train")],
        tyro.conf.arg(name=""),
    ]


def _values_of(text: str) -> tuple[str, list[int]]:
    name, _, values = text.partition("=")
    try:
        return name.replace("-", "_"), [int(value) for value in values.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--vary takes settings with whole numbers, such as batch_size=32,64, got {text!r}"
        ) from error


def _say_planned(changes: Mapping[str, int]) -> None:
    print(f"compiling {_settings(changes)}", file=sys.stderr)


def _settings(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in changes.items()) or "the run"


def _print_plan(result: Mapping[str, Any]) -> None:
    words, usable = footprint.in_words, result["usable_memory"]
    timed = result["rows"][0]["seconds"] is not None
    table = Table(title=f"nasi {result['command']} on {result['device_kind']}")
    parts = ("arguments", "temporaries", "program")
    columns = ("", *parts, "peak", "calls", *(["a call", "the run"] if timed else []))
    for column in (*columns, *(["fits"] if usable else [])):
        table.add_column(column, justify="right" if column else "left")
    for row in result["rows"]:
        program = row["program"]
        sizes = (program["arguments"], program["temporaries"], program["total"], row["peak_bytes"])
        cells = [_settings(row["changes"]), *map(words, sizes), f"{row['calls']:,}"]
        if timed:
            cells += [f"{row['seconds_of_call']:.2g} s", _duration(row["seconds"])]
        if usable:
            cells.append("yes" if row["fits"] else "no")
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    first = result["rows"][0]
    work = first["program"]["work"]
    print(f"{work['launches']:,} launches a call; {result['time']}")
    if usable:
        print(f"{words(usable)} of {words(result['device_memory'])} are there for a run")
    for name, (fits, fails) in result["largest"].items():
        most = "not even the least fits" if fits is None else f"{fits} fits"
        print(f"{name}: {most}" + ("" if fails is None else f", {fails} does not"))


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 60 else str(datetime.timedelta(seconds=round(seconds)))


_POPULATIONS = {"all": "of all architectures", "live": "architectures without dead operations"}


def _print_correlations(result: Mapping[str, Any], population: str = "architectures") -> None:
    correlations = result["correlations"]
    table = Table(
        "proxy",
        *next(iter(correlations.values())),
        title=f"correlation with {result['reference']} over {result['num_archs']} {population}",
    )
    for proxy, coefficients in correlations.items():
        table.add_row(proxy, *(_interval(name, found) for name, found in coefficients.items()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _interval(name: str, found: Mapping[str, float | None]) -> str:
    """The mean and its deviation, and below them the interval."""
    value, low, high = found["value"], found["low"], found["high"]
    if value is None:
        return "undefined"
    digits = 2 if name == "best" else 3  # that is in percent
    interval = "" if low is None else f"\n[{low:.{digits}f}, {high:.{digits}f}]"
    spread = "" if found["deviation"] is None else f" ± {found['deviation']:.{digits}f}"
    return f"{value:.{digits}f}{spread}{interval}"


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
    with hosts.together():
        _main(arguments)


def _main(arguments: list[str] | None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    if arguments is None:  # a process of our own
        _say_nothing_twice()
    if given == ["--version"]:
        print(_version())
        return
    command = None
    try:
        command = _command(given)
        if isinstance(command, Spread):
            command.join()
        if isinstance(command, Resume):
            command = command.command()
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: _warn(str(message))
            if isinstance(command, Compiling):
                found = environment.devices(_warn)
                if idle := environment.idle_accelerator(found[0].platform):
                    _say("note", idle)
                _set_up_cache(command.no_cache)
            elif isinstance(command, Export) and command.format in export.FRAMEWORKS:
                environment.devices(_warn)
            command.run()
        sys.stdout.flush()
        hosts.leave()
    except BrokenPipeError:
        # Whoever read stdout, such as `head`, has what they want.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except TooLarge as error:
        assert isinstance(command, Compiling)
        environment.fail(f"{error}: {command.less_memory}; nasi plan forecasts what fits", 2)
    except ValueError as error:
        environment.fail(str(error), 2)
    except (
        FloatingPointError,
        OSError,
        MemoryError,
        NotImplementedError,  # of JAX, as where a flag of its is on that it does not support yet
        jax.errors.JaxRuntimeError,
    ) as error:
        message = str(error) or type(error).__name__
        if isinstance(command, Compiling):
            message = _out_of_memory(message, command.less_memory) or message
        if hosts.are_several() and isinstance(error, jax.errors.JaxRuntimeError):
            message = f"this process failed, or another one of this run was lost: {message}"
        environment.fail(message, 1)
    except KeyboardInterrupt:
        once = given[:1] in (["export"], ["predict"], ["report"], ["show"])
        flag = "" if given[:1] == ["resume"] else " with --resume"
        rest = "" if once else f"; the same command{flag} goes on where it was"
        environment.fail(f"stopped{rest}", 130)


def _version() -> str:
    """What a report of a bug should name: versions and devices, in one line."""
    names = ", ".join(f"{name} {version}" for name, version in directory.versions().items())
    try:
        found = environment.devices(lambda _: None)
        kinds = Counter(f"{device.platform}: {device.device_kind}" for device in found)
        listed = ", ".join(f"{number} x {kind}" for kind, number in kinds.items())
    except ValueError as error:
        listed = f"none, {error}"
    return f"{names}; devices: {listed}"


_SIZE = re.compile(r"([\d.]*\d) ?(bytes|[KMGT]i?B?|B)\b")


def _out_of_memory(message: str, less_memory: str) -> str | None:
    """What XLA says of a device's memory that was too small, with what to do; None of all else."""
    if "RESOURCE_EXHAUSTED" not in message or "shared memory" in message.lower():
        return None
    size = _SIZE.search(message)
    asked = ""
    if size:
        number, unit = size.groups()
        # XLA counts in bytes, or writes what is in fact GiB with or without the i.
        in_words = f"{number} {unit}" if unit[0] in "KMGT" else f"{float(number) / 2**20:,.0f} MiB"
        asked = f", where {in_words} were asked for"
    return f"out of the device's memory{asked}: {less_memory}"


_Run = Search | Select | Score | Compare | Rank | Train
_RUNS: dict[str, type[_Run]] = {
    "search": Search,
    "select": Select,
    "score": Score,
    "compare": Compare,
    "rank": Rank,
    "train": Train,
}
_Command = _Run | _Planned | Resume | Report | Export | Predict | Show
_COMMANDS: dict[str, type[_Command | Plan]] = {
    **_RUNS,
    "resume": Resume,
    "report": Report,
    "export": Export,
    "predict": Predict,
    "show": Show,
    "plan": Plan,
}


def _command(arguments: list[str]) -> _Command:
    defaults: dict[str, Any] = {
        "search": _search_default(arguments),
        "train": _train_default(arguments),
        "plan": _plan_default(arguments),
    }
    kinds: list[Any] = [
        Annotated[
            kind,
            tyro.conf.subcommand(
                name,
                default=defaults.get(name, tyro.MISSING_NONPROP),
                description=_description(kind, arguments),
            ),
        ]
        for name, kind in _COMMANDS.items()
    ]
    command: Any = tyro.cli(
        functools.reduce(operator.or_, kinds),
        prog="nasi",
        description="Neural architecture search at initialization (NASI), in JAX. nasi --version "
        "prints the versions and devices for a report of a bug.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    found: _Command = command.of if isinstance(command, Plan) else command
    return found


def _description(kind: type, arguments: list[str]) -> str:
    """The whole of what a command says of itself; its first line where all of them are listed."""
    text = inspect.getdoc(kind) or ""
    return text if arguments[:1] in [[name] for name in _COMMANDS] else text.partition("\n")[0]


def _search_default(arguments: list[str]) -> Search:
    """What the flags of `nasi search` default to: the search that it resumes, or the variant."""
    given = _given(arguments, Search.out)
    if given.resume and (given.out / "config.json").exists() and arguments[:1] == ["search"]:
        return Search.saved(given.out)
    if arguments[:1] != ["search"]:
        return Search()
    config = SearchConfig(space=given.space, variant=given.variant)
    return Search(config=config.resolved())


def _train_default(arguments: list[str]) -> Train:
    """What the flags of `nasi train` default to: the training that it resumes, or the recipe."""
    given = _given(arguments, Train.out)
    if given.resume and (given.out / "config.json").exists() and arguments[:1] == ["train"]:
        return Train.saved(given.out)
    return Train(config=RECIPES.get(given.recipe, TrainConfig()))


def _plan_default(arguments: list[str]) -> Any:
    """What the flags of `nasi plan train` default to: the recipe."""
    if arguments[:2] != ["plan", "train"]:
        return tyro.MISSING
    config = _train_default(arguments[1:]).config
    return Plan(of=PlanTrain(genotype=tyro.MISSING, config=config))


def _given(arguments: list[str], out: Path) -> argparse.Namespace:
    """Those flags that the defaults of the others depend on."""
    flags = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    flags.add_argument("--resume", action="store_true")
    flags.add_argument("--out", type=Path, default=out)
    flags.add_argument("--space", default=SearchConfig.space)
    flags.add_argument("--variant", default=SearchConfig.variant)
    flags.add_argument("--recipe", default=TrainConfig.recipe)
    try:
        known, _ = flags.parse_known_args(arguments)
    except argparse.ArgumentError:
        return flags.parse_args([])
    return known


def _program(what: str, config: Config) -> str:
    """What is compiled, and for which sizes, in words."""
    space = vars(runs.search.space_of(config))
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


def _warn(message: str) -> None:
    _say("warning", message)


def _say(kind: str, message: str) -> None:
    print(f"nasi: {kind}: {' '.join(message.split())}", file=sys.stderr)


def _say_nothing_twice() -> None:
    """Keeps from stderr what orbax says of a failure besides raising it.

    It logs a traceback, and so does its event loop: neither logger has anything else to say to who
    gives a command. Threads that find the loop closed say so, in hundreds of lines; and at the very
    end Python warns of what was to run on it.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).disabled = True
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def _progress(program: str) -> Iterator[OnProgress]:
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
    bar = Bar(*columns, console=console)
    with contextlib.ExitStack() as stack:
        if console.is_terminal:  # elsewhere rich before 14.3 prints an empty line
            stack.enter_context(bar)
        events = stack.enter_context(cache.counted())
        task = bar.add_task("starting", total=None, left="", figures="")

        def report(progress: Progress) -> None:
            nonlocal printed_stage, printed, began
            if not hosts.is_writer():
                return
            stage, total, done, seconds, figures = progress
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
            bar.update(
                task, description=stage, total=total, completed=done, left=left, figures=figures
            )
            told = stage in ("compiling", "compiled")
            due = stage != printed_stage or now - printed > _SECONDS_BETWEEN_LINES
            if due and not told and not console.is_terminal:
                printed_stage, printed = stage, now
                parts = filter(None, (stage, f"{done}/{total}", left, figures))
                print("  ".join(parts), file=sys.stderr)

        yield report
