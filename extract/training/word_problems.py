"""Word problems of public data sets in one form, split into what is trained on and what is held out.

    python -m extract.training.word_problems SOURCE OUT

SOURCE holds `gsm8k/{train,test}.jsonl`, `word_problems/svamp/SVAMP.json`, `word_problems/mawps/mawps_fold0_*.csv`
(with MultiArith's problems among them) and `word_problems/gsm_hard/gsmhardv2.jsonl`, as their authors publish them.
OUT gets JSON Lines with `question` and `answer` (steps as `<<48/2=24>>`, then `#### 24`). SVAMP is split 700 to 300
with a seed of its own. No problem of a held-out file is in a file to train on, told by its letters and digits.
"""

import csv
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from extract.run.data import number_text
from extract.training.data import normalised
from schemas.whole_files import write_json_lines

Problem = tuple[str, str]
HELD_OUT_SVAMP = 300


def prefix_steps(tokens: Iterator[str], numbers: list[float]) -> tuple[float, list[str]]:
    """Steps of an equation in prefix notation with numbers `number0`, `number1` ... or written out."""
    token = next(tokens)
    if token not in "+-*/":
        return (numbers[int(token.removeprefix("number"))] if token.startswith("number") else float(token)), []
    left, before = prefix_steps(tokens, numbers)
    right, after = prefix_steps(tokens, numbers)
    value = {"+": left + right, "-": left - right, "*": left * right, "/": left / right if right else float("nan")}[
        token
    ]
    value = round(value, 6)
    written = f"<<{number_text(left)}{token}{number_text(right)}={number_text(value)}>>"
    return value, [*before, *after, written]


def infix_to_prefix(text: str) -> str:
    """`( ( 12.0 - 15.0 ) + 14.0 )` as `+ - 12.0 15.0 14.0`."""
    tokens = text.split()

    def read() -> list[str]:
        token = tokens.pop(0)
        if token != "(":
            return [token]
        left, operator, right = read(), tokens.pop(0), read()
        tokens.pop(0)
        return [operator, *left, *right]

    return " ".join(read())


def problem(question: str, equation: str, numbers: list[float], answer: float) -> Problem | None:
    """A problem with its steps; none where they do not lead to the answer."""
    value, steps = prefix_steps(iter(equation.split()), numbers)
    if abs(value - answer) > 1e-4:
        return None
    return question, f"{' '.join(steps)}\n#### {number_text(round(answer, 6))}"


def tidy(text: str) -> str:
    """Without the spaces that a tokenizer left before marks."""
    return re.sub(r"\s+([.,?!'%;:])", r"\1", re.sub(r"\s+", " ", text)).replace("$ ", "$").strip()


def read_mawps(folder: Path) -> list[Problem]:
    """The problems of the MAWPS files."""
    examples = []
    for file in sorted(folder.glob("mawps_fold0_*.csv")):
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                numbers = [float(number) for number in row["Numbers"].split()]
                question = re.sub(r"number(\d+)", lambda m, n=numbers: number_text(n[int(m[1])]), row["Question"])
                examples.append(problem(tidy(question), row["Equation"], numbers, float(row["Answer"])))
    return [example for example in examples if example]


def read_svamp(file: Path) -> list[Problem]:
    """SVAMP's problems, in its order."""
    examples = []
    for row in json.loads(file.read_text(encoding="utf-8")):
        body = row["Body"].strip()
        question = tidy(f"{body}{'' if body[-1] in '.?!,' else '.'} {row['Question']}")
        made = problem(question, infix_to_prefix(row["Equation"]), [], float(row["Answer"]))
        examples.append(made or (question, f"#### {number_text(float(row['Answer']))}"))
    return examples


def read_lines(file: Path, question: str, answer: str) -> list[Problem]:
    """JSON Lines with these two fields."""
    rows: list[Any] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    texts = [
        row[answer] if isinstance(row[answer], str) else f"#### {number_text(round(row[answer], 6))}" for row in rows
    ]
    return [(tidy(row[question]), text) for row, text in zip(rows, texts, strict=True)]


def main(source: Path, out: Path) -> None:
    """Read everything in one folder and write it into another."""
    words = source / "word_problems"
    svamp = read_svamp(words / "svamp/SVAMP.json")
    random.Random("SVAMP").shuffle(svamp)
    held_out = {
        "gsm8k-test": read_lines(source / "gsm8k/test.jsonl", "question", "answer"),
        "svamp-test": svamp[:HELD_OUT_SVAMP],
        "gsm-hard": read_lines(words / "gsm_hard/gsmhardv2.jsonl", "input", "target"),
    }
    held_out["gsm8k-watch"] = held_out["gsm8k-test"][:300]
    train = {
        "gsm8k-train": read_lines(source / "gsm8k/train.jsonl", "question", "answer"),
        "svamp-train": svamp[HELD_OUT_SVAMP:],
        "mawps-train": read_mawps(words / "mawps"),
    }
    seen = {normalised(question) for problems in held_out.values() for question, _ in problems}
    out.mkdir(parents=True, exist_ok=True)
    for name, problems in (held_out | train).items():
        if name in train:
            before, kept = len(problems), []
            for example in problems:
                if normalised(example[0]) not in seen:
                    seen.add(normalised(example[0]))
                    kept.append(example)
            problems = kept
            sys.stdout.write(f"{name}: {before - len(problems)} of {before} left out, held out or there already\n")
        records = ({"question": question, "answer": answer} for question, answer in problems)
        write_json_lines(out / f"{name}.jsonl", records)
        sys.stdout.write(f"{out / name}.jsonl: {len(problems)} problems\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
