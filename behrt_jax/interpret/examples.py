"""Example patients for the report, as JSON: a timeline, the predictions of a run, and their drivers."""

import json
from pathlib import Path

import jax
import numpy as np
from scipy.special import expit, softmax

from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.metadata import is_synthetic, name_tokens
from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.evaluation.loaded_run import Run
from behrt_jax.finetuning import predict
from behrt_jax.finetuning.finetuned import FinetunedModel
from behrt_jax.interpret import attribution, cases, methods
from behrt_jax.interpret.cases import AttributionCase
from behrt_jax.interpret.timeline import shown_tokens, timeline, told_drivers
from behrt_jax.models import inputs as models_inputs
from behrt_jax.models.inputs import model_arguments
from behrt_jax.training.workdir import ATTRIBUTIONS_FILE

EXPLAINED, SHOWN = 3, 8  # predicted codes with drivers, and predicted codes in all
VISITS = (5, 40)  # preferred range of the number of visits of an example


def choose(case: AttributionCase, number: int) -> AttributionCase:
    """Chooses rows by a hash of the subject; prefers histories of a readable length."""
    visits = case.columns["visit_ids"].max(axis=1) + 1
    unfit = (visits < VISITS[0]) | (visits > VISITS[1])
    return cases.take(case, np.lexsort((hash_integers(case.patients.subject_ids[case.owners]), unfit))[:number])


def next_visits(run: Run, number: int) -> list[dict]:
    """Returns example patients, with the codes predicted for their last visit from the earlier ones."""
    patients, is_target = run.patients, run.task.is_target
    index = run.index(patients)
    visits, targets = cases.last_targets(patients, index, is_target)
    case = cases.make_next_visit_case(run.task, run.params, patients, index, visits, targets)
    case = choose(case, number)
    following, starts = case.visits.max(axis=1) + 1, index.starts
    visit_codes = [patients.codes[starts[0][visit] : starts[1][visit]] for visit in following]
    next_codes = [{int(code) for code in codes if is_target[code]} for codes in visit_codes]
    return describe_codes(case, run, is_target, next_codes)


def masked_codes(run: Run, number: int) -> list[dict]:
    """Returns example patients, with the codes predicted at a mask."""
    is_code = np.arange(len(run.vocabulary)) >= NUM_SPECIAL
    index = run.index(run.patients)
    case = choose(cases.make_masked_code_case(run.task.model, run.params, run.patients, index, is_code), number)
    return describe_codes(case, run, is_code, [{int(code)} for code in case.columns["target"]])


def describe_codes(case: AttributionCase, run: Run, is_target: np.ndarray, came: list[set[int]]) -> list[dict]:
    """Returns the rows of a case with the most likely codes among `is_target`, (V,) bool, and the drivers of some."""
    logits = np.where(is_target, code_logits(case, run.task.model, run.params), -np.inf)
    probabilities = softmax(logits, axis=1) if case.kind == "mlm" else expit(logits)
    best = np.argsort(-logits, axis=1)[:, :SHOWN]
    wide = cases.take(case, np.repeat(np.arange(len(best)), EXPLAINED))
    wide = wide._replace(columns={**wide.columns, "target": best[:, :EXPLAINED].ravel().astype(np.int32)})
    drivers = methods.explain(wide, run.task.model, run.params)
    names, patients = name_tokens(run.vocabulary.tokens, run.source), []
    for row, codes in enumerate(best):
        predictions = [
            {**names[code], "probability": round(float(probabilities[row, code]), 5), "came": int(code) in came[row]}
            for code in codes
        ]
        for rank in range(EXPLAINED):
            predictions[rank]["drivers"] = told_drivers(drivers, row * EXPLAINED + rank, shown_tokens(case, row))
        truth = [names[code] for code in sorted(came[row])]
        patients.append({"number": row + 1, **timeline(case, row, names), "predictions": predictions, "came": truth})
    return patients


def code_logits(case: AttributionCase, model, params) -> np.ndarray:
    """Returns the (N, V) logits of all codes at the explained position of each row."""
    columns = models_inputs.device_columns(case.columns)
    places = np.asarray(case.places(columns))[:, None]  # pyright: ignore

    @jax.jit
    def read(params, columns):
        inputs, kwargs = model_arguments(columns)
        if case.kind == "mlm":
            return model.apply(params, *inputs, **kwargs, masked_positions=places)
        arguments = {**kwargs, **case.arguments, "visit_ends": places, "method": "predict_next_visits"}
        return model.apply(params, *inputs, **arguments)[0]

    return np.asarray(read(params, columns))[:, 0]


def outcomes(folder: Path, own: FinetunedModel, case: AttributionCase, number: int, data: str) -> list[dict]:
    """Returns example histories of a fine-tuned run, with the predicted risk and its drivers."""
    case = choose(case, number)
    drivers = methods.explain(case, own.model, own.params)
    read = jax.jit(lambda params, columns: attribution.outcome_logits(own.model, params, columns))
    logits = np.asarray(read(own.params, models_inputs.device_columns(case.columns)))
    predictions = predict.predict(own.recipe.outcome, logits, predict.read_fitted(folder))
    names, patients = name_tokens(own.tokens, data), []
    for row in range(len(logits)):
        prediction = {"name": own.facts.names[0], "drivers": told_drivers(drivers, row, shown_tokens(case, row))}
        if isinstance(predictions, predict.SurvivalPredictions):
            days = own.recipe.evaluation.horizons
            risks = predictions.risks(np.asarray(days))[row].sum(axis=0)
            prediction["risk_by_day"] = {
                f"{day:g}": round(float(risk), 5) for day, risk in zip(days, risks, strict=True)
            }
        else:
            prediction["probability"] = round(float(np.ravel(predictions.probabilities[row])[0]), 5)
        patients.append({"number": row + 1, **timeline(case, row, names), "predictions": [prediction]})
    return patients


def write(folder: Path, asked: str, data: str | Path, patients: list[dict]) -> Path:
    """Writes the example patients of a run to its workdir."""
    about = {"asked": asked, "split": "held_out", "synthetic": is_synthetic(data), "methods": methods.METHODS}
    file = folder / ATTRIBUTIONS_FILE
    file.write_text(json.dumps({**about, "patients": patients}, indent=1))
    return file
