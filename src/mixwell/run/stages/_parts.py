"""What every kind of stage shares: the stage as a value, the job that runs it, and the row that describes a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixwell.core import machine
from mixwell.core.config import from_dict, to_dict
from mixwell.report.records import read_stage

if TYPE_CHECKING:
    from mixwell.core.checkpoint import Checkpoint
    from mixwell.parallel.launch import Crew


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a run, fully resolved: what is done, to what, from which seed."""

    id: str
    kind: str  # row of the table of kinds
    method: str  # what the report calls it: `train`, `convert.upcycle`
    config: Any  # frozen dataclass
    inputs: Mapping[str, str] = field(default_factory=dict)  # role -> id of the stage that fills it
    seed: int = 0
    side: str = ""  # what reports call the branch that ends here, over its seeds; decides nothing else

    def plain_config(self) -> dict[str, Any]:
        """The config as plain data."""
        return to_dict(self.config)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A stage about to run: where it writes, where its inputs lie, whom it tells how far it is."""

    stage: Stage
    folder: Path  # fresh; becomes the stage's folder when the job ends well
    work: Path  # outlives a kill: what a stage needs to go on is kept here
    inputs: Mapping[str, Path]  # role -> finished folder
    progress: Callable[[float, str], None]  # share done (0 to 1), a few words
    crew: Crew | None = None  # the processes that train together, where there are several

    def result(self, role: str) -> dict[str, Any]:
        """What the stage behind `role` wrote as its result."""
        return dict(read_stage(self.inputs[role]).result)

    def record(self, **more: Any) -> dict[str, Any]:
        """The line that this stage adds to its checkpoint's lineage."""
        stage = self.stage
        return {"id": stage.id, "stage": stage.kind, "method": stage.method, "config": stage.plain_config(),
                "seed": stage.seed, "inputs": list(stage.inputs.values()), "versions": machine.versions(), **more}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A row of the table of kinds."""

    run: Callable[[Job], dict[str, Any]]  # returns the `result` of stage.json
    parse: Callable[[Mapping[str, Any], str], Any] | None = None  # (options, place in the recipe) -> config
    fingerprint: Callable[[Stage], str] = lambda stage: ""  # digest of what it reads from outside the run
    roles: tuple[str, ...] = ()  # inputs it needs: model, data, tokenizer, tokens
    rooms: tuple[str, ...] = ()  # folders of mixwell whose source decides its result, beside core
    family: str = ""  # room of its methods, whose `Config` then takes the place of `parse`
    bare: str = ""  # the option that a bare word below the verb means
    # (stage, its input's shape, vocabulary) -> a checkpoint shaped like the model that it makes, with any weights
    shape: Callable[[Stage, Checkpoint | None, int], Checkpoint] | None = None
    keeps_shape: bool = False  # the model that it makes is shaped like its input
    many: bool = False  # it reads several models (roles model, model 2, ...) and perhaps a base
    any_method: bool = False  # which methods it needs stands in a file that it reads, so the source of all counts
    evaluated: bool = False  # its model is evaluated, and the evaluation kept in its stage.json
    floats: bool = True  # its bits depend on torch and on the number of threads
    draws: bool = True  # False: the seed decides nothing, and stays out of its key
    reads_beside: bool = False  # it takes a model with an adapter beside it, which no other kind may leave out
    named_in_recipe: bool = True  # False: made from a top-level key of the recipe

    @property
    def makes_model(self) -> bool:
        """Whether a model comes out of it."""
        return self.keeps_shape or self.shape is not None


def parser(cls: type) -> Callable[[Mapping[str, Any], str], Any]:
    """A `parse` that fills the config `cls`."""
    return lambda options, where: from_dict(cls, options, where)


def model_folder(stage_folder: Path) -> Path:
    """The Hugging Face folder of a finished model stage; a loaded model stays where it was."""
    folder = read_stage(stage_folder).model_folder
    assert folder is not None
    return folder


def read_model(job: Job, role: str = "model") -> Checkpoint:
    """The checkpoint behind `role`, with the run's tokenizer, whose templates the recipe may have changed."""
    from mixwell.lm import folder as folders

    found = folders.read(model_folder(job.inputs[role]))
    return with_tokenizer(found, job.inputs["tokenizer"]) if "tokenizer" in job.inputs else found


def with_tokenizer(checkpoint: Checkpoint, tokenizer_folder: Path) -> Checkpoint:
    """A copy that carries the tokenizer's files along, and says where generation ends if nothing says so yet."""
    from dataclasses import replace

    from mixwell.lm import generation
    from mixwell.lm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(tokenizer_folder)
    files = {**checkpoint.files, **tokenizer.save_files()}
    if generation.FILE not in files and checkpoint.arch.get("eos_token_id") is None:
        settings = generation.for_tokenizer(tokenizer)
        files[generation.FILE] = settings.written({})
    return replace(checkpoint, files=files)
