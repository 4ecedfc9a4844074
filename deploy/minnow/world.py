"""Minnow's world: questions with their right answers, made from a seed.

make(family, rng, count, split) -> [Item]. The items of one call share system and developer message, so that training computes
them once. Whether an item is held out is a hash of what is asked: training never sees a held-out question.
"""
import contextlib
import dataclasses
import json
import zlib

import harmony
from harmony import Conversation, Learned, compact, completion

NAMES = ("Anna Ben Clara David Eva Frank Grace Hugo Ida Jack Kate Leo Mia Nora Oscar Paul Rosa Sam Tom Vera "
         "Adam Bella Carl Dora").split()
CITIES = "Paris London Rome Berlin Madrid Vienna Oslo Lisbon Athens Prague Tokyo Cairo".split()
PETS = "dog cat horse bird fish rabbit goat duck".split()
COLOURS = "red green blue yellow white black brown pink".split()
JOBS = "doctor teacher baker farmer pilot singer writer lawyer".split()
SKIES = "sunny cloudy rainy windy".split()
VERBS = "watched passed crossed reached found left saw liked".split()
NOUNS = "river bridge garden market house tower field forest street hill boat train wall door window lake".split()
ADJECTIVES = "old small quiet tall wide cold warm bright empty long".split()
WORDS = NAMES + CITIES + PETS + COLOURS + JOBS + SKIES
INSTRUCTIONS = ("You are a helpful assistant.", "Be brief.", "Answer in English.", "You are a friendly helper.",
                "Answer the question of the user.")
EFFORTS = ("low", "medium", "high")

WHO = ("I am Minnow, a very small language model. I can add and subtract, remember what you tell me, use tools and fill in "
       "forms.")
UNKNOWN = "I do not know that. I can add and subtract, remember what you tell me, use tools and fill in forms."
NO_TOOL = "I cannot look that up without a tool."


@dataclasses.dataclass
class Item:
    family: str
    conversation: Conversation
    analysis: str | None
    final: str | None = None
    call: tuple | None = None
    is_json: bool = False

    def reply(self):
        return completion(self.analysis, self.final, self.call, self.is_json)

    def is_right(self, found):
        """found: harmony.take_apart of an answer. Arguments are compared as values; everything else exactly."""
        if self.family == "effort" and found["analysis"] != self.analysis:
            return False
        if self.call:
            try:
                return (found["call"] is not None and found["call"][0] == self.call[0]
                        and json.loads(found["call"][1]) == json.loads(self.call[1]))
            except ValueError:
                return False
        if self.is_json:
            try:
                return found["final"] is not None and json.loads(found["final"]) == json.loads(self.final)
            except ValueError:
                return False
        return found["final"] == self.final


def is_held_out(key):
    return zlib.crc32(key.encode()) % 8 == 0


def draw(rng, split, make_one):
    """make_one() -> (key, value), until the key belongs to the split."""
    for _ in range(10_000):
        key, value = make_one()
        if is_held_out(key) == (split == "held"):
            return value
    raise ValueError(f"no {split} item in 10,000 draws, last key {key}")


def shared(rng, tools=(), response_format=None, effort=None):
    date = f"{rng.randint(2024, 2027)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    instructions = rng.choice(INSTRUCTIONS) if rng.random() < 0.3 else None
    effort = effort or rng.choice(EFFORTS)
    return lambda: Conversation(date, effort, instructions, tools, response_format)


def by_effort(effort, low, medium, high):
    return {"low": low, "medium": medium, "high": high}[effort]


# ---- Sums ----------------------------------------------------------------------------------------------------------

def columns(a, op, b):
    """The sum by columns from the right: each result is two digits, carry (or borrow) and digit; then the whole."""
    text, carry, digits = f"{a:03d}{op}{b:03d}: ", 0, ""
    for place in (1, 10, 100):
        x, y = a // place % 10, b // place % 10
        value = x + y + carry if op == "+" else x - y - carry
        text += f"{x}{op}{y}{op}{carry}="
        carry, digit = (value // 10, value % 10) if op == "+" else (int(value < 0), value % 10)
        text += f"{carry}{digit}, "
        digits = f"{digit}{digits}"
    return f"{text}so {carry}{digits}."


def work(a, op, b, effort):
    result = a + b if op == "+" else a - b
    other = "-" if op == "+" else "+"
    core = columns(a, op, b)
    return by_effort(effort, core, f"I go by columns. {core}",
                     f"The user asks for {a} {op} {b}. I go by columns. {core} Check: {result} {other} {b} = {a}.")


def some_sum(rng):
    op = rng.choice("+-")
    a, b = (rng.randrange(10 ** rng.choice((1, 2, 3, 3, 3))) for _ in range(2))
    if op == "-" and a < b:
        a, b = b, a
    word = {"+": "plus", "-": "minus"}[op]
    text = rng.choice(("What is {a} {op} {b}?", "{a} {op} {b}", "Compute {a} {op} {b}.", "How much is {a} {word} {b}?",
                       "What is {a} {word} {b}?", "{a} {op} {b} = ?", "Please work out {a} {op} {b}.", "{a}{op}{b}"))
    return f"{a}{op}{b}", (a, op, b, text.format(a=a, b=b, op=op, word=word))


def arithmetic(rng, count, split, effort=None, family="arithmetic"):
    new, items = shared(rng, effort=effort), []
    for _ in range(count):
        a, op, b, text = draw(rng, split, lambda: some_sum(rng))
        conversation = new()
        if rng.random() < 0.15:
            add_history(rng, conversation)
        conversation.turns.append(("user", text))
        result = a + b if op == "+" else a - b
        items.append(Item(family, conversation, work(a, op, b, conversation.effort), f"{a} {op} {b} = {result}."))
    return items


# ---- Facts ---------------------------------------------------------------------------------------------------------

VALUES = {"city": lambda r: r.choice(CITIES), "pet": lambda r: r.choice(PETS), "colour": lambda r: r.choice(COLOURS),
          "job": lambda r: r.choice(JOBS), "age": lambda r: r.randint(10, 99)}
ASKING = ("What is the {k} of {n}?", "Tell me the {k} of {n}.", "Which is the {k} of {n}?")
KINDS = {kind: (values, f"The {kind} of {{n}} is {{v}}.", tuple(text.replace("{k}", kind) for text in ASKING))
         for kind, values in VALUES.items()}  # kind: (values, sentence, questions)
# The sentences of the first phase of training, each kind's of its own shape. They turned out too hard to recall exactly.
VARIED_KINDS = {
    "city": (VALUES["city"], "{n} lives in {v}.", ("Where does {n} live?", "In which city does {n} live?")),
    "pet": (VALUES["pet"], "{n} has a {v}.", ("Which animal does {n} have?", "What pet does {n} have?")),
    "colour": (VALUES["colour"], "{n} likes the colour {v}.",
               ("Which colour does {n} like?", "What is the favourite colour of {n}?")),
    "job": (VALUES["job"], "{n} works as a {v}.", ("What is the job of {n}?", "What does {n} work as?")),
    "age": (VALUES["age"], "{n} is {v} years old.", ("How old is {n}?", "What is the age of {n}?")),
}


@contextlib.contextmanager
def varied_facts():
    """Facts as in the first phase of training, while this lasts."""
    global KINDS
    uniform, KINDS = KINDS, VARIED_KINDS
    yield
    KINDS = uniform


def filler(rng):
    return (f"The {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(ADJECTIVES)} "
            f"{rng.choice(NOUNS)}.")


def some_facts(rng, count, doubled):
    """-> [(name, kind, sentence)]; with `doubled`, about a third of the names have two facts of different kinds."""
    facts = []
    for name in rng.sample(NAMES, count):
        for kind in rng.sample(list(KINDS), 2 if doubled and rng.random() < 0.3 else 1):
            values, sentence, _ = KINDS[kind]
            facts.append((name, kind, sentence.format(n=name, v=values(rng))))
    rng.shuffle(facts)
    return facts


def recalled(family, conversation, name, sentence):
    analysis = by_effort(conversation.effort, None, f"The text says: {sentence}",
                         f"The question is about {name}. I look for {name} in the text. The text says: {sentence}")
    return Item(family, conversation, analysis, sentence)


def recall(rng, count, split):
    new, items = shared(rng), []

    def ask(fact):
        name, kind, sentence = fact
        return name, sentence, rng.choice(KINDS[kind][2]).format(n=name)

    def one():
        facts = some_facts(rng, rng.randint(1, 5), True)
        asked = [ask(fact) for fact in rng.sample(facts, min(len(facts), rng.choice((1, 1, 2, 3))))]
        lines = [fact[2] for fact in facts] + [filler(rng) for _ in range(rng.choice((0, 0, 1, 2, 4)))]
        rng.shuffle(lines)
        return " ".join(lines) + asked[-1][2], (lines, asked)

    for _ in range(count):
        lines, asked = draw(rng, split, one)
        name, sentence, question = asked[-1]
        conversation = new()
        told = " ".join(lines)
        if rng.random() < 0.3:
            conversation.turns += [("user", told), ("final", "I will remember that.")]
            if rng.random() < 0.3:
                add_history(rng, conversation)
            told = ""
        else:
            told += rng.choice(("\n\n", " ", "\n"))
        for _, earlier, earlier_question in asked[:-1]:
            conversation.turns += [("user", told + earlier_question), ("final", Learned(earlier))]
            told = ""
        conversation.turns.append(("user", told + question))
        items.append(recalled("recall", conversation, name, sentence))
    return items


def far_recall(rng, count, split, num_sentences=None):
    """One long text, many questions about it. The default is what evaluation asks: the fact lies in the first tenth of
    some 500 tokens, the rest of which are other facts and idle sentences."""
    num_sentences = num_sentences or 60
    new, items = shared(rng), []
    facts = some_facts(rng, min(len(NAMES), max(8, num_sentences // 4)), False)
    early = facts if split != "held" else facts[:8]
    lines = [fact[2] for fact in facts] + [filler(rng) for _ in range(num_sentences - len(facts))]
    if split == "held":
        rest = lines[len(early):]
        rng.shuffle(rest)
        lines = lines[:len(early)] + rest
    else:
        rng.shuffle(lines)
    text = " ".join(lines)
    is_split = rng.random() < 0.3
    for number in range(count):
        name, kind, sentence = rng.choice(early)
        question = draw(rng, split, lambda: (f"{text}{rng.random()}", rng.choice(KINDS[kind][2]).format(n=name)))
        conversation = new()
        if is_split:
            conversation.turns += [("user", text), ("final", "I will remember that."), ("user", question)]
        else:
            conversation.turns.append(("user", text + "\n\n" + question))
        items.append(recalled("far_recall", conversation, name, sentence))
    return items


# ---- Tools ---------------------------------------------------------------------------------------------------------

def tool(name, description, parameter, about):
    prop = {"type": "string"}
    if about:
        prop["description"] = about
    return {"name": name, "description": description, "parameters": {
        "type": "object", "properties": {parameter: prop}, "required": [parameter], "additionalProperties": False}}


def some_tools(rng):
    """One or two tools: {kind: tool}."""
    place = lambda: rng.choice(("city", "location"))  # noqa: E731
    about = lambda text: text if rng.random() < 0.4 else None  # noqa: E731
    every = {
        "weather": lambda: tool(rng.choice(("get_weather", "get_current_weather")),
                                rng.choice(("Get the weather for a city.", "Get the current weather.",
                                            "Get the weather for a given location")), place(), about("The name of the city")),
        "sum": lambda: tool(rng.choice(("calculator", "calculate")),
                            rng.choice(("Evaluate an arithmetic expression.", "Compute an expression.")), "expression",
                            about("The expression to compute")),
    }
    return {kind: every[kind]() for kind in rng.sample(list(every), rng.choice((1, 2)))}


ASKED = {
    "weather": ("What is the weather in {v}?", "How is the weather in {v} today?", "Weather in {v}, please.",
                "Tell me the weather in {v}.", "What is the weather like in {v}?", "Is it cold in {v}?"),
    "sum": ("What is {v}?", "Calculate {v}.", "How much is {v}?", "Compute {v}.", "Use the calculator for {v}."),
}


def some_use(rng, kind):
    """-> (key, question, argument, results: texts a tool may give, what they say, final)."""
    if kind == "sum":
        op = rng.choice("+-**")
        a, b = rng.randrange(2, 1000), rng.randrange(2, 1000 if op != "*" else 100)
        result = {"+": a + b, "-": a - b, "*": a * b}[op]
        shown, argument = f"{a} {op} {b}", f"{a}{op}{b}"
        results = (f"{result}", compact({"result": result}))
        said, final = f"{result}", f"{shown} = {result}."
    else:
        shown = argument = rng.choice(CITIES)
        degrees, sky = rng.randint(1, 39), rng.choice(SKIES)
        results = (f"{sky}, {degrees} degrees", compact({"temperature": degrees, "sky": sky}),
                   compact({"sky": sky, "temperature": degrees}),
                   compact({"city": shown, "temperature": degrees, "condition": sky}))
        said, final = f"{degrees} degrees and {sky}", f"It is {degrees} degrees and {sky} in {shown}."
    question = rng.choice(ASKED[kind]).format(v=shown)
    return question, (question, argument, results, said, final)


def thought_of_call(effort, kind, one_tool, argument):
    parameter = next(iter(one_tool["parameters"]["properties"]))
    return by_effort(effort, None, f"I will call {one_tool['name']}.",
                     f"The user asks for the {kind}. The tool {one_tool['name']} can tell it. The {parameter} is {argument}.")


def tool_items(rng, count, split, is_answer):
    tools = some_tools(rng)
    new, items = shared(rng, list(tools.values())), []
    for _ in range(count):
        kind = rng.choice(list(tools))
        question, argument, results, said, final = draw(rng, split, lambda: some_use(rng, kind))
        name = tools[kind]["name"]
        parameter = next(iter(tools[kind]["parameters"]["properties"]))
        arguments = compact({parameter: argument})
        conversation = new()
        if rng.random() < 0.2:
            add_tool_history(rng, conversation, tools)
        conversation.turns.append(("user", question))
        thought = thought_of_call(conversation.effort, kind, tools[kind], argument)
        if not is_answer:
            items.append(Item("tool_call", conversation, thought, call=(name, arguments)))
            continue
        shown = thought if rng.random() < 0.5 else None
        conversation.turns += [("call", name, arguments, shown), ("result", name, rng.choice(results))]
        analysis = by_effort(conversation.effort, None, f"The tool says {said}.",
                             f"The tool {name} says {said}. I can answer now.")
        items.append(Item("tool_answer", conversation, analysis, final))
    return items


def tool_call(rng, count, split):
    return tool_items(rng, count, split, False)


def tool_answer(rng, count, split):
    return tool_items(rng, count, split, True)


def add_tool_history(rng, conversation, tools):
    kind = rng.choice(list(tools))
    _, (question, argument, results, _, final) = some_use(rng, kind)
    parameter = next(iter(tools[kind]["parameters"]["properties"]))
    name = tools[kind]["name"]
    conversation.turns += [("user", question), ("call", name, compact({parameter: argument}), None),
                           ("result", name, rng.choice(results)), ("final", final)]


# ---- Forms ---------------------------------------------------------------------------------------------------------

FIELDS = {"city": "string", "pet": "string", "colour": "string", "job": "string", "age": "integer"}


def forms(rng, count, split):
    fields = rng.sample(list(FIELDS), rng.randint(1, 2))
    properties = {"name": {"type": "string"}, **{field: {"type": FIELDS[field]} for field in fields}}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    title = rng.choice(("person", "form", "record", "card"))
    new, items = shared(rng, response_format={"name": title, "schema": schema}), []

    def one():
        name = rng.choice(NAMES)
        values = {kind: KINDS[kind][0](rng) for kind in fields}
        lines = [KINDS[kind][1].format(n=name, v=value) for kind, value in values.items()]
        for kind in (kind for kind in FIELDS if kind not in fields):
            if rng.random() < 0.15:
                lines.append(KINDS[kind][1].format(n=name, v=KINDS[kind][0](rng)))
        lines.sort()
        rng.shuffle(lines)
        asked = rng.choice(("Fill in the form.", f"Fill in the {title}.", f"Make the {title} of {name}.", "JSON, please.", ""))
        return " ".join(lines) + asked, (" ".join([*lines, asked]).strip(), {"name": name, **values})

    for _ in range(count):
        text, value = draw(rng, split, one)
        conversation = new()
        conversation.turns.append(("user", text))
        named = ", ".join(properties)
        analysis = by_effort(conversation.effort, None, f"The {title} needs {named}.",
                             f"The user wants a {title} as JSON. It needs {named}. It is about {value['name']}.")
        items.append(Item("forms", conversation, analysis, compact(value), is_json=True))
    return items


# ---- Talk ----------------------------------------------------------------------------------------------------------

TALK = [  # (what people say, what Minnow answers, what it thinks)
    (("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Hello there!", "Good evening!", "Hi Minnow"),
     "Hello! How can I help you?", "The user greets me."),
    (("Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Are you ChatGPT?", "who are you"),
     WHO, "The user asks about me."),
    (("What can you do?", "Help", "Help me.", "What do you know?", "How can you help me?", "help"),
     WHO, "The user asks about me."),
    (("Thank you!", "Thanks", "Thank you very much.", "Thanks a lot!", "thank you"), "You are welcome.", "The user thanks me."),
    (("Goodbye", "Bye", "Bye!", "See you.", "Good night!", "Goodbye!"), "Goodbye!", "The user leaves."),
    (("How are you?", "How are you today?", "Are you well?", "how are you"), "I am fine, thank you. How can I help you?",
     "The user asks how I am."),
]
STRANGE = ("Why is the {n} {a}?", "Tell me a joke.", "Write a poem about the {n}.", "What is the meaning of life?",
           "Who painted the {n}?", "Sing a song about a {p}.", "Translate {n} into French.", "Tell me a story "
           "about a {p}.", "Is a {p} bigger than a {q}?", "Explain the {n}.", "{w} {x} {y}",
           "Who is the president?", "How far is the {n}?", "What is a {n}?", "Can you drive?", "{w}", "Write a program.")


def some_letters(rng):
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 8)))


def some_talk(rng):
    """-> (key, (turns, final, thought))"""
    draw_kind = rng.random()
    if draw_kind < 0.45:
        said, final, thought = rng.choice(TALK)
        text = rng.choice(said)
        return f"{text}{rng.randrange(1000)}", ([("user", text)], final, thought)
    if draw_kind < 0.6:
        text = rng.choice(ASKED[rng.choice(("weather",))]).format(v=rng.choice(CITIES))
        return text, ([("user", text)], NO_TOOL, "I have no tool for that.")
    if draw_kind < 0.75:
        name = rng.choice(NAMES)
        text = rng.choice(("My name is {n}.", "I am {n}.", "Hello, I am {n}.", "Hi, my name is {n}.")).format(n=name)
        turns = [("user", text)]
        final, thought = f"Nice to meet you, {name}.", "The user tells me a name."
        if rng.random() < 0.5:
            turns += [("final", final)]
            if rng.random() < 0.4:
                said, other, _ = rng.choice(TALK)
                turns += [("user", rng.choice(said)), ("final", other)]
            turns += [("user", rng.choice(("What is my name?", "Who am I?", "Do you know my name?")))]
            final, thought = f"Your name is {name}.", "The user told me a name."
        return f"{turns}", (turns, final, thought)
    text = rng.choice(STRANGE).format(n=rng.choice(NOUNS), a=rng.choice(ADJECTIVES), p=rng.choice(PETS), q=rng.choice(PETS),
                                      w=some_letters(rng), x=some_letters(rng), y=some_letters(rng))
    return f"{text}{rng.randrange(1000)}", ([("user", text)], UNKNOWN, "I do not know that.")


def talk(rng, count, split):
    new, items = shared(rng), []
    for _ in range(count):
        turns, final, thought = draw(rng, split, lambda: some_talk(rng))
        conversation = new()
        if rng.random() < 0.2:
            add_history(rng, conversation)
        conversation.turns += turns
        analysis = by_effort(conversation.effort, None, thought, f"{thought} I answer with one sentence.")
        items.append(Item("talk", conversation, analysis, final))
    return items


def add_history(rng, conversation):
    """An earlier exchange that the question has nothing to do with."""
    if rng.random() < 0.5:
        said, final, _ = rng.choice(TALK)
        conversation.turns += [("user", rng.choice(said)), ("final", final)]
    else:
        _, (a, op, b, text) = some_sum(rng)
        conversation.turns += [("user", text), ("final", f"{a} {op} {b} = {a + b if op == '+' else a - b}.")]


def echo(rng, count, split):
    """Repeating, word for word or as a JSON list: copying, which everything else needs, in its purest form."""
    new, items = shared(rng), []

    def one():
        words = [rng.choice(WORDS) if rng.random() < 0.85 else str(rng.randrange(1000)) for _ in range(rng.randint(2, 8))]
        return " ".join(words), words

    for _ in range(count):
        words, conversation = draw(rng, split, one), new()
        if rng.random() < 0.5:
            text, final = f"As a JSON list: {' '.join(words)}", compact(words)
        else:
            final = " ".join(words)
            text = rng.choice(("Repeat: {x}", "Say: {x}", "Repeat after me: {x}")).format(x=final)
        conversation.turns.append(("user", text))
        analysis = by_effort(conversation.effort, None, "I repeat the words.",
                             f"The user wants me to repeat the words. The first is {words[0]}.")
        items.append(Item("echo", conversation, analysis, final))
    return items


def effort(rng, count, split):
    """The same kind of question under all three efforts: right only if the written thought is the effort's, word for word."""
    items = []
    for level in EFFORTS:
        items += arithmetic(rng, (count + 2) // 3, split, level, "effort")
    return items[:count]


FAMILIES = {"arithmetic": arithmetic, "recall": recall, "far_recall": far_recall, "tool_call": tool_call,
            "tool_answer": tool_answer, "forms": forms, "talk": talk, "echo": echo,
            "effort": effort}


def make(family, rng, count, split):
    return FAMILIES[family](rng, count, split)


def vocabulary_texts(rng):
    """What the tokenizer is trained on: the world's texts, and its words often enough to become single tokens."""
    texts = []
    with varied_facts():
        items = [item for family in FAMILIES for _ in range(60) for item in make(family, rng, 4, "train")]
    for item in items:
        texts += [part for part in item.conversation.render() + item.reply() if part not in harmony.MARKERS]
    words = WORDS + VERBS + NOUNS + ADJECTIVES
    return texts + [f" {word}" for word in words] * 200 + list(words) * 100
