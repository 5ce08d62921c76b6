"""Section of what a decoder writes of each thought: SIM-CoT's own, or one that was trained afterwards."""

from analyze.beside import number
from analyze.effects.decoded import is_asked, place_pick, reported_steps, share_rows, text_rows
from analyze.page import Page, Section


def decoded(page: Page) -> None:
    """How often the decoder writes a problem's step of a thought, beside another problem's."""
    trained_on: list[str] = []
    for result in page.results("decode"):
        data = result.data
        page.percent_map(
            "decoded", result, data["result_share"].where(data["n_step"] > 0).transpose("step", "position")
        )
        page.add("decoded", result, share_rows(data))
        steps, asked = reported_steps(data), is_asked(data)
        texts = page.texts("asked" if asked else "one", steps)
        none = "none_asked" if asked else "none"
        page.say(result, "steps" if texts else none, steps="; ".join(texts))
        if asked:
            trained_on.append(f"{data.attrs['n_trained']} of {data.attrs['trained_on']}")
            page.find(result, *[
                number(f"step {row.step} at {row.position}", "result_share", pick=place_pick(data),
                       position=row.position, step=row.step - 1) for row in steps.itertuples()
            ])  # fmt: skip
        page.add("decoded_texts", result, text_rows(data, 3))
    page.set(trained_on="; ".join(trained_on))


SECTIONS = (Section(slug="decoded-thoughts", write=decoded, order=45, needs=("decode --train decoder",)),)
