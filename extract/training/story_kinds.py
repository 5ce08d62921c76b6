"""Kinds of stories about things that are had, bought, made and packed."""

from extract.training.story_draft import (
    CONTAINERS,
    FRACTIONS,
    FRUIT_OF_WORK,
    LARGEST,
    MULTIPLES,
    PLACES,
    SHOP,
    THINGS,
    TIMES,
    Draft,
    Person,
    capital,
    plural,
    some,
)


def _keep_part(d: Draft, k: int, who: str, things: str, friend: str, his: str) -> None:
    """A half, third .. is kept or goes."""
    if k == 2 or d.rng.random() < 0.5:
        d.say(
            f"{who} keeps only {FRACTIONS[k]} of the {things}.",
            f"{who} finds that only {FRACTIONS[k]} of the {things} are still good and throws the rest away.",
        )
        d.value = d.step(d.value, "/", k)
    else:
        d.say(
            f"{who} gives {FRACTIONS[k]} of the {things} to {friend}.",
            f"{who} sells {FRACTIONS[k]} of {his} {things}.",
        )
        given = d.step(d.value, "/", k)
        d.value = d.step(d.value, "-", given)


def _share_out(d: Draft, k: int, who: str, things: str) -> str:
    """All of it goes in equal parts to places or friends; the question about one part."""
    d.value = d.step(d.value, "/", k)
    place = d.rng.choice(CONTAINERS)
    if d.rng.random() < 0.5:
        d.say(f"{who} puts the {things} into {k} {plural(place)}, the same number in each.")
        return d.one(f"How many {things} are in each {place}?", f"How many {things} does each {place} hold?")
    d.say(f"{who} shares the {things} equally among {d.write(k)} friends.")
    return d.one(f"How many {things} does each friend get?", f"How many {things} will each friend have?")


def collection(d: Draft, n: int) -> str:
    """Someone has things; they become more and fewer."""
    p, other = d.people(2)
    thing = d.rng.choice(THINGS)
    things = plural(thing)
    he, him, his = p.they, p.them, p.their
    d.value = d.number(3, LARGEST // 2)
    v = d.value
    d.say(
        f"{p.name} has {v} {things}.", f"{p.name} had {v} {things}.", f"There are {v} {things} in {p.name}'s room.",
        f"{p.name} starts with {v} {things}.", f"{p.name} collected {v} {things} {d.rng.choice(PLACES)}.",
        f"{p.name} bought {v} {things}.",
    )  # fmt: skip
    for index in range(n):
        last = index == n - 1
        fractions = [k for k in FRACTIONS if d.value % k == 0 and d.value >= 2 * k]
        kinds = "aaass" + ("s" if d.value > 20 else "") + ("m" if d.value <= 250 else "") + ("f" if fractions else "")
        sharing = [k for k in range(2, 13) if d.value % k == 0 and d.value // k > 1]
        kind = d.rng.choice(kinds + ("d" if last and n > 1 and sharing else ""))
        when = d.one("", "", "Then ", f"{capital(d.rng.choice(TIMES))} ")
        who, friend = (he if when else d.one(he.capitalize(), p.name)), other.name
        if kind == "a":
            k = d.number(2, LARGEST - d.value if d.value < LARGEST - 2 else 2)
            w = d.write(k)
            d.say(
                f"{when}{who} buys {w} more.", f"{when}{who} finds {w} more {things} {d.rng.choice(PLACES)}.",
                f"{when}{friend} gives {him} {w} more {things}.", f"{when}{who} gets {w} {things} from {friend}.",
                f"{when}{who} picks up {w} more {things}.", f"{when}{who} receives another {w} {things}.",
            )  # fmt: skip
            d.value = d.step(d.value, "+", k)
        elif kind == "s":
            k = d.number(1, d.value - 1)
            w = d.write(k)
            d.say(
                f"{when}{who} gives {w} of them to {friend}.", f"{when}{who} loses {w} {some(k, thing)}.",
                f"{when}{who} sells {w} {some(k, thing)}.", f"{when}{who} uses {w} of the {things}.",
                f"{when}{friend} takes {w} of {his} {things}.", f"{when}{who} throws away {w} {some(k, thing)}.",
            )  # fmt: skip
            d.value = d.step(d.value, "-", k)
        elif kind == "m":
            k = d.rng.choice(list(MULTIPLES))
            times, becomes = MULTIPLES[k]
            d.say(
                f"{when}the number of {things} {he} has {becomes}." if when else f"The number of {things} {he} has {becomes}.",
                f"{when}{who} gets enough {things} to have {times} as many.",
            )  # fmt: skip
            d.value = d.step(d.value, "*", k)
        elif kind == "f":
            _keep_part(d, d.rng.choice(fractions), f"{when}{who}", things, friend, his)
        else:
            return _share_out(d, d.rng.choice(sharing), f"{when}{who}", things)
    return d.one(
        f"How many {things} does {p.name} have now?", f"How many {things} does {p.name} have left?",
        f"How many {things} does {he} have in the end?", f"How many {things} are there now?",
    )  # fmt: skip


def comparison(d: Draft, n: int) -> str:
    """People who have more, fewer, so many times as many as each other."""
    people = d.people(n + 1)
    things = plural(d.rng.choice(THINGS))
    verb, past = d.rng.choice([("has", "have"), ("collected", "collect"), ("made", "make"), ("sold", "sell")])
    do = "does" if verb == "has" else "did"
    values = [d.number(3, 300)]
    d.say(f"{people[0].name} {verb} {values[0]} {things}.")
    total = n > 1 and d.rng.random() < 0.5
    chain = n - 1 if total else n
    for index in range(chain):
        v, a, b = values[-1], people[index + 1].name, people[index].name
        fractions = [k for k in (2, 3, 4) if v % k == 0 and v > k]
        kind = d.rng.choice("mmlt" + ("f" if fractions else "")) if v > 3 else "m"
        if kind == "t" and v > 250:
            kind = "l"
        if kind == "m":
            k = d.number(2, 200)
            d.say(f"{a} {verb} {d.write(k)} more {things} than {b}.", f"{a} {verb} {k} more than {b}.")
            values.append(d.step(v, "+", k))
        elif kind == "l":
            k = d.number(2, v - 1)
            d.say(f"{a} {verb} {d.write(k)} fewer {things} than {b}.", f"{b} {verb} {k} more {things} than {a}.")
            values.append(d.step(v, "-", k))
        elif kind == "t":
            k = d.rng.choice(list(MULTIPLES))
            d.say(f"{a} {verb} {MULTIPLES[k][0]} as many {things} as {b}.", f"{a} {verb} {k} times as many as {b}.")
            values.append(d.step(v, "*", k))
        else:
            k = d.rng.choice(fractions)
            d.say(
                f"{a} {verb} {FRACTIONS[k]} as many {things} as {b}."
                if k == 2
                else f"{a} {verb} {FRACTIONS[k]} of what {b} {verb}."
            )
            values.append(d.step(v, "/", k))
    if not total:
        return d.one(f"How many {things} {do} {people[chain].name} {past}?")
    if len(values) == 2 and max(values) != min(values) and d.rng.random() < 0.3:
        high, low = sorted((0, 1), key=lambda i: -values[i])
        d.value = d.step(values[high], "-", values[low])
        return f"How many more {things} {do} {people[high].name} {past} than {people[low].name}?"
    d.value = values[0]
    for v in values[1:]:
        d.value = d.step(d.value, "+", v)
    names = "they" if len(values) > 2 or d.rng.random() < 0.5 else f"{people[0].name} and {people[1].name}"
    return d.one(f"How many {things} {'do' if do == 'does' else do} {names} {past} altogether?",
                 f"How many {things} {'do' if do == 'does' else do} {names} {past} in total?")  # fmt: skip


def shopping(d: Draft, n: int) -> str:
    """Things at a price; totals, change, what is left."""
    p = d.people(1)[0]
    one, two = d.rng.sample(SHOP, 2)
    count, price = d.number(2, 12), d.number(2, 60)
    who, he = d.one(p.name, p.name), p.they
    d.say(
        f"{who} buys {d.write(count)} {plural(one)} that cost ${price} each.",
        f"{who} bought {count} {plural(one)} for ${price} each.", f"A {one} costs ${price}. {who} buys {d.write(count)} of them.",
        f"{plural(one).capitalize()} cost ${price} each, and {who} buys {count}.",
    )  # fmt: skip
    total = d.step(count, "*", price)
    if n >= 2 and d.rng.random() < 0.6:
        if n >= 3 and d.rng.random() < 0.7:
            other_count, other_price = d.number(2, 9), d.number(2, 40)
            d.say(f"{he.capitalize()} also buys {d.write(other_count)} {plural(two)} for ${other_price} each.",
                  f"{he.capitalize()} also gets {other_count} {plural(two)} at ${other_price} each.")  # fmt: skip
            other = d.step(other_count, "*", other_price)
        else:
            other = d.number(2, 90)
            d.say(f"{he.capitalize()} also buys a {two} for ${other}.", f"{he.capitalize()} also pays ${other} for a {two}.",
                  f"Shipping costs another ${other}.")  # fmt: skip
        total = d.step(total, "+", other)
    elif n >= 2 and total > 6 and d.rng.random() < 0.5:
        off = d.number(1, total // 2)
        d.say(f"{he.capitalize()} has a coupon for ${off} off.", f"The shop takes ${off} off the total.")
        total = d.step(total, "-", off)
    if n > len(d.steps):
        if d.rng.random() < 0.6:
            money = total + d.number(1, 80)
            bill = min((b for b in (10, 20, 50, 100, 200, 500) if b > total), default=money)
            paid = bill if d.rng.random() < 0.5 else money
            d.value = d.step(paid, "-", total)
            d.say(f"{he.capitalize()} pays with ${paid}.", f"{he.capitalize()} gives the cashier ${paid}.")
            return d.one(
                f"How much change does {he} get?",
                "How many dollars of change are there?",
                f"How much money does {he} get back?",
            )
        money = total + d.number(1, 300)
        d.value = d.step(money, "-", total)
        d.sentences.insert(0, d.one(f"{p.name} has ${money}.", f"{p.name} saved ${money}."))
        return d.one(f"How much money does {p.name} have left?", "How many dollars are left?")
    d.value = total
    return d.one(
        f"How much does {he} spend in all?", "What is the total cost, in dollars?", f"How many dollars does {he} pay?"
    )


def rates(d: Draft, n: int) -> str:
    """So many in an hour or a day, for so long."""
    p = d.people(1)[0]
    he = p.they
    unit, longer = d.rng.choice(
        [("hour", "day"), ("day", "week"), ("day", "month"), ("week", "year"), ("minute", "hour")]
    )
    money = d.rng.random() < 0.4
    made = d.rng.choice(FRUIT_OF_WORK)
    each, first = d.number(2, 40), d.number(2, 12)
    sign, noun = ("$", "") if money else ("", " " + plural(made))
    verb, verbs, past = (
        ("earn", "earns", "earned")
        if money
        else d.rng.choice(
            [("make", "makes", "made"), ("finish", "finishes", "finished"), ("paint", "paints", "painted")]
        )
    )
    d.say(
        f"{p.name} {verbs} {sign}{each}{noun} every {unit}.", f"{p.name} {verbs} {sign}{each}{noun} per {unit}.",
        f"Each {unit} {p.name} {verbs} {sign}{each}{noun}.", f"{p.name} can {verb} {sign}{each}{noun} in a {unit}.",
    )  # fmt: skip
    if n >= 3 and first * each <= 200 and d.rng.random() < 0.5:
        times = d.number(2, 7)
        d.say(
            f"{he.capitalize()} works {d.write(first)} {plural(unit)} a {longer}.",
            f"{he.capitalize()} does this for {first} {plural(unit)} every {longer}.",
        )
        total = d.step(each, "*", first)
        d.say(
            f"{he.capitalize()} keeps this up for {d.write(times)} {plural(longer)}.",
            f"{he.capitalize()} works like this for {times} {plural(longer)}.",
        )
        total = d.step(total, "*", times)
    else:
        d.say(f"{he.capitalize()} works for {d.write(first)} {plural(unit)}.", f"{he.capitalize()} keeps going for {first} {plural(unit)}.",
              f"{he.capitalize()} does this for {first} {plural(unit)}.")  # fmt: skip
        total = d.step(each, "*", first)
    while len(d.steps) < n:
        k = d.number(1, max(2, total - 1))
        if d.rng.random() < 0.5 or k >= total:
            d.say(
                f"{he.capitalize()} {'gets a bonus of' if money else 'already had'} {sign}{k}{noun}.",
                f"A friend gives {p.them} {sign}{k}{noun} more.",
            )
            total = d.step(total, "+", k)
        else:
            d.say(
                f"{he.capitalize()} {'spends' if money else 'gives away'} {sign}{k}{noun}.",
                f"{he.capitalize()} {'pays' if money else 'loses'} {sign}{k}{noun}{' for food' if money else ''}.",
            )
            total = d.step(total, "-", k)
    d.value = total
    if n > 1 and not d.steps[-1].count("*"):
        return f"How {'much money' if money else 'many' + noun} does {he} have {d.one('now', 'left', 'in the end')}?"
    return d.one(
        f"How {'much' if money else 'many' + noun} does {he} {verb} in all?",
        f"How {'many dollars' if money else 'many' + noun} has {he} {past}?",
    )


def _packing(d: Draft, p: Person, things: str, place: str, count: int, each: int) -> str:
    """So many things go into places of the same size; how many places, or how many in each."""
    places, he = plural(place), p.they
    total = count * each
    d.say(
        f"{p.name} has {total} {things}.",
        f"There are {total} {things}.",
        f"{p.name} needs to pack {total} {things}.",
    )
    if d.rng.random() < 0.5:
        d.say(
            f"Each {place} holds {each} {things}.",
            f"{he.capitalize()} puts {each} {things} in each {place}.",
            f"A {place} has room for {each} of them.",
        )
        d.value = d.step(total, "/", each)
        return d.one(
            f"How many {places} does {he} need?",
            f"How many {places} are needed?",
            f"How many {places} will be filled?",
        )
    d.say(
        f"{he.capitalize()} divides them equally among {d.write(count)} {places}.",
        f"They are in {count} {places} of the same size.",
    )
    d.value = d.step(total, "/", count)
    return f"How many {things} are in each {place}?"


def groups(d: Draft, n: int) -> str:
    """Rows, boxes and packets of the same size; what is in them, how many are needed."""
    p = d.people(1)[0]
    thing, place = d.rng.choice(THINGS), d.rng.choice(CONTAINERS)
    things, places = plural(thing), plural(place)
    he = p.they
    count, each = d.number(2, 25), d.number(2, 40)
    if n == 1 and d.rng.random() < 0.5:
        return _packing(d, p, things, place, count, each)
    d.say(
        f"{p.name} has {d.write(count)} {places} of {things} with {each} {things} in each {place}.",
        f"There are {count} {places}. Each {place} holds {each} {things}.", f"{p.name} fills {count} {places} with {each} {things} each.",
        f"Each of {p.name}'s {count} {places} has {each} {things} in it.",
    )  # fmt: skip
    total = d.step(count, "*", each)
    while len(d.steps) < n:
        last = len(d.steps) == n - 1
        sharing = [k for k in range(2, 13) if total % k == 0 and total // k > 1]
        if last and sharing and d.rng.random() < 0.4:
            k = d.rng.choice(sharing)
            d.say(
                f"{he.capitalize()} shares all of them equally among {d.write(k)} people.",
                f"All of them are divided equally among {k} children.",
            )
            d.value = d.step(total, "/", k)
            return d.one(f"How many {things} does each get?", f"How many {things} does each one get?")
        if d.rng.random() < 0.5:
            k = d.number(1, total - 1)
            d.say(
                f"{d.write(k).capitalize()} of the {things} {'is' if k == 1 else 'are'} broken and thrown away.",
                f"{he.capitalize()} gives away {k} {some(k, thing)}.",
                f"{he.capitalize()} takes out {k} {some(k, thing)}.",
            )
            total = d.step(total, "-", k)
        else:
            k = d.number(1, 200)
            d.say(
                f"There {'is' if k == 1 else 'are'} also {k} loose {some(k, thing)}.",
                f"{he.capitalize()} gets {k} more {some(k, thing)}.",
                f"{he.capitalize()} also has {d.write(k)} {some(k, thing)} on the table.",
            )
            total = d.step(total, "+", k)
    d.value = total
    return d.one(
        f"How many {things} are there in all?",
        f"How many {things} does {p.name} have?",
        f"What is the total number of {things}?",
    )
