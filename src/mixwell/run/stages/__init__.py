"""The kinds of stages, as a table: a recipe names one by its verb, the engine runs its row."""

from mixwell.run.stages import convert, evaluate, models, text, train
from mixwell.run.stages._parts import Job, Kind, Prediction, Stage, model_folder, parser
from mixwell.run.stages.evaluate import EvaluateConfig

__all__ = ["KINDS", "EvaluateConfig", "Job", "Kind", "Prediction", "Stage", "model_folder"]

_MODEL = ("experts", "sequence", "precision", "lm")  # rooms whose code a model's numbers come from

_ALL = ("model", "tokens", "tokenizer")

KINDS: dict[str, Kind] = {
    "data": Kind(parse=parser(text.DataConfig), run=text.run_data, predict=text.predict_data, floats=False, draws=False,
                 fingerprint=text.data_fingerprint, rooms=("lm", "run/datasets.py"), named_in_recipe=False),
    "tokenizer": Kind(parse=parser(text.TokenizerConfig), run=text.run_tokenizer, predict=text.predict_tokenizer,
                      fingerprint=text.tokenizer_fingerprint, rooms=("lm",), floats=False, draws=False,
                      named_in_recipe=False),
    "tokens": Kind(parse=parser(text.TokensConfig), run=text.run_tokens, predict=text.predict_tokens, floats=False,
                   rooms=("lm",), draws=False, named_in_recipe=False),
    "build": Kind(parse=models.parse_build, run=models.run_build, predict=models.predict_model, rooms=_MODEL,
                  roles=("tokenizer",), makes_model=True),
    "load": Kind(parse=parser(models.LoadConfig), run=models.run_load, predict=models.predict_model, rooms=_MODEL,
                 roles=("tokenizer",), fingerprint=models.load_fingerprint, bare="path", makes_model=True,
                 evaluated=True, any_method=True, draws=False),
    "train": Kind(parse=train.parse_train, run=train.run_train, predict=train.predict_train, rooms=_MODEL,
                  roles=_ALL, makes_model=True, evaluated=True),
    "convert": Kind(run=convert.run_convert, predict=convert.predict_convert, rooms=("convert", *_MODEL),
                    roles=_ALL, family="convert", bare="method", makes_model=True, evaluated=True),
    "compress": Kind(run=convert.run_convert, predict=convert.predict_convert, rooms=("convert", *_MODEL),
                     roles=_ALL, family="precision", bare="method", makes_model=True, evaluated=True),
    "evaluate": Kind(parse=parser(EvaluateConfig), run=evaluate.run_evaluate, predict=evaluate.predict_evaluate,
                     rooms=_MODEL, roles=("model", "tokens")),
    "sample": Kind(parse=parser(evaluate.SampleConfig), run=evaluate.run_sample, predict=evaluate.predict_sample,
                   rooms=_MODEL, roles=_ALL),
}
