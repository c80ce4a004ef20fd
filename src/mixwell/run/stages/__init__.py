"""The kinds of stages, as a table: a recipe names one by its verb, the engine runs its row."""

from mixwell.run.stages import adapt, convert, evaluate, federate, merge, mix, models, text, tokens, train
from mixwell.run.stages._parts import Job, Kind, Stage, model_folder, parser
from mixwell.run.stages.evaluate import EvaluateConfig

__all__ = ["KINDS", "EvaluateConfig", "Job", "Kind", "Stage", "model_folder"]

_MODEL = ("experts", "sequence", "precision", "lm")  # rooms whose code a model's numbers come from

_ALL = ("model", "tokens", "tokenizer")

KINDS: dict[str, Kind] = {
    "data": Kind(parse=parser(text.DataConfig), run=text.run_data, floats=False, draws=False,
                 fingerprint=text.data_fingerprint, rooms=("lm", "run/datasets.py"), named_in_recipe=False),
    "tokenizer": Kind(parse=parser(tokens.TokenizerConfig), run=tokens.run_tokenizer,
                      fingerprint=tokens.tokenizer_fingerprint, rooms=("lm",), floats=False, draws=False,
                      named_in_recipe=False),
    "tokens": Kind(parse=parser(tokens.TokensConfig), run=tokens.run_tokens, floats=False,
                   rooms=("lm",), draws=False, named_in_recipe=False),
    "build": Kind(parse=models.parse_build, run=models.run_build, shape=models.build_shape, rooms=_MODEL,
                  roles=("tokenizer",)),
    "load": Kind(parse=models.parse_load, run=models.run_load, shape=models.load_shape, rooms=_MODEL,
                 roles=("tokenizer",), fingerprint=models.load_fingerprint, bare="path",
                 evaluated=True, any_method=True, draws=False),
    "train": Kind(parse=train.parse_train, run=train.run_train, keeps_shape=True, rooms=_MODEL,
                  roles=_ALL, evaluated=True),
    "adapt": Kind(parse=adapt.parse_adapt, run=adapt.run_adapt, keeps_shape=True, rooms=("adapters", *_MODEL),
                  roles=_ALL, bare="method", evaluated=True),
    "federate": Kind(parse=federate.parse_federate, run=federate.run_federate, keeps_shape=True,
                     rooms=("parallel", *_MODEL), roles=_ALL, bare="method", evaluated=True),
    "convert": Kind(run=convert.run_convert, shape=convert.convert_shape, rooms=("convert", *_MODEL),
                    roles=_ALL, family="convert", bare="method", evaluated=True,
                    fingerprint=convert.convert_fingerprint),
    "compress": Kind(run=convert.run_convert, shape=convert.convert_shape, rooms=("convert", *_MODEL),
                     roles=_ALL, family="precision", bare="method", evaluated=True),
    "merge": Kind(parse=merge.parse_merge, run=merge.run_merge, keeps_shape=True, rooms=("merge", *_MODEL),
                  roles=_ALL, many=True, bare="method", evaluated=True),
    "mix": Kind(parse=mix.parse_mix, run=mix.run_mix, rooms=("data", "scaling", *_MODEL), roles=_ALL),
    "evaluate": Kind(parse=parser(EvaluateConfig), run=evaluate.run_evaluate,
                     rooms=("adapters", *_MODEL), roles=("model", "tokens"), reads_beside=True),
    "sample": Kind(parse=parser(evaluate.SampleConfig), run=evaluate.run_sample,
                   rooms=("adapters", *_MODEL), roles=_ALL, reads_beside=True),
}
