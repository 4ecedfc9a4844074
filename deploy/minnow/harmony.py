"""The part of OpenAI's harmony format that Minnow's world needs: prompts as a server renders them, and answers taken apart.

A rendered text is a list of parts: a marker such as "<|start|>", or a string that is tokenised by itself, as the servers do.
"""
import json
import re

IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
CHANNELS = ("# Valid channels: analysis, commentary, final. Channel must be included for every message.")
CALLS = "\nCalls to these tools must go to the commentary channel: 'functions'."
MARKERS = ("startoftext", "endoftext", "reserved_200000", "reserved_200001", "return", "constrain", "reserved_200004",
           "channel", "start", "end", "message", "reserved_200009", "reserved_200010", "reserved_200011", "call",
           "reserved_200013", "reserved_200014", "reserved_200015", "reserved_200016", "reserved_200017", "endofprompt")
MARKERS = tuple(f"<|{name}|>" for name in MARKERS)
START, END, MESSAGE, CHANNEL, CONSTRAIN = "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"
RETURN, CALL = "<|return|>", "<|call|>"


class Learned(str):
    """Text of an earlier answer that training learns from too."""


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def system_text(date, effort, has_tools):
    return (f"{IDENTITY}\nKnowledge cutoff: 2024-06\nCurrent date: {date}\n\nReasoning: {effort}\n\n{CHANNELS}"
            + (CALLS if has_tools else ""))


def type_text(schema):
    """A flat object schema as harmony's TypeScript: what tool parameters of this world look like."""
    text = "{\n"
    for name, prop in schema["properties"].items():
        if "description" in prop:
            text += f"// {prop['description']}\n"
        optional = "" if name in schema.get("required", ()) else "?"
        text += f"{name}{optional}: {'number' if prop['type'] == 'integer' else prop['type']},\n"
    return text + "}"


def developer_text(instructions, tools, response_format):
    sections = []
    if instructions:
        sections += ["# Instructions", instructions]
    if tools:
        lines = ["## functions\n", "namespace functions {\n"]
        for tool in tools:
            lines += [f"// {tool['description']}", f"type {tool['name']} = (_: {type_text(tool['parameters'])}) => any;\n"]
        sections += ["# Tools", "\n".join(lines + ["} // namespace functions"])]
    if response_format:
        sections += ["# Response Formats", f"## {response_format['name']}", compact(response_format["schema"])]
    return "\n\n".join(sections)


def message(role, content, to="", channel="", constrain=""):
    parts = [START, role + to]
    if channel:
        parts += [CHANNEL, channel]
    if constrain:
        parts += [" ", CONSTRAIN, constrain]
    return parts + [MESSAGE, content, END]


class Conversation:
    """What a request holds. turns: ("user", text) | ("final", text) | ("call", name, arguments, analysis or None) |
    ("result", name, text)."""

    def __init__(self, date, effort, instructions=None, tools=(), response_format=None):
        self.date, self.effort, self.instructions = date, effort, instructions
        self.tools, self.response_format = list(tools), response_format
        self.turns = []

    def render(self):
        """The prompt's parts, with the generation prompt at the end."""
        parts = message("system", system_text(self.date, self.effort, bool(self.tools)))
        developer = developer_text(self.instructions, self.tools, self.response_format)
        if developer:
            parts += message("developer", developer)
        for turn in self.turns:
            if turn[0] == "user":
                parts += message("user", turn[1])
            elif turn[0] == "final":
                parts += message("assistant", turn[1], channel="final")
            elif turn[0] == "call":
                if turn[3]:
                    parts += message("assistant", turn[3], channel="analysis")
                parts += message("assistant", turn[2], f" to=functions.{turn[1]}", "commentary", "json")[:-1] + [CALL]
            else:
                parts += message(f"functions.{turn[1]}", turn[2], " to=assistant", "commentary")
        return parts + [START, "assistant"]

    def request(self, model):
        """The same as the body of POST /v1/chat/completions."""
        body = {"model": model, "reasoning_effort": self.effort, "temperature": 0, "messages": []}
        if self.instructions:
            body["messages"].append({"role": "developer", "content": self.instructions})
        for number, turn in enumerate(self.turns):
            if turn[0] == "user":
                entry = {"role": "user", "content": turn[1]}
            elif turn[0] == "final":
                entry = {"role": "assistant", "content": turn[1]}
            elif turn[0] == "call":
                entry = {"role": "assistant", "content": None, "tool_calls": [
                    {"id": f"call_{number}", "type": "function", "function": {"name": turn[1], "arguments": turn[2]}}]}
                if turn[3]:
                    entry["reasoning"] = turn[3]
            else:
                entry = {"role": "tool", "tool_call_id": f"call_{number - 1}", "content": turn[2]}
            body["messages"].append(entry)
        if self.tools:
            body["tools"] = [{"type": "function", "function": tool} for tool in self.tools]
        if self.response_format:
            body["response_format"] = {"type": "json_schema", "json_schema": {**self.response_format, "strict": True}}
        return body


def completion(analysis, final=None, call=None, is_json=False):
    """What the model writes after <|start|>assistant: optional analysis, then a final text or a call (name, arguments)."""
    parts = [CHANNEL, "analysis", MESSAGE, analysis, END, START, "assistant"] if analysis else []
    if call:
        return parts + [CHANNEL, f"commentary to=functions.{call[0]} ", CONSTRAIN, "json", MESSAGE, call[1], CALL]
    header = ["final ", CONSTRAIN, "json"] if is_json else ["final"]
    return parts + [CHANNEL] + header + [MESSAGE, final, RETURN]


def take_apart(text):
    """A completion's text with markers -> {"analysis", "final", "call": (name, arguments)}; what is malformed stays out."""
    found = {"analysis": None, "final": None, "call": None}
    for piece in re.split(r"<\|start\|>assistant", text):
        whole = re.fullmatch(r"(?s)(.*?)<\|channel\|>(\w+)( to=functions\.([\w-]+))?(?: ?<\|constrain\|>json)?"
                             r"( to=functions\.([\w-]+))?<\|message\|>(.*)<\|(end|return|call)\|>", piece)
        if not whole or whole[1]:
            continue
        channel, name, content, stop = whole[2], whole[4] or whole[6], whole[7], whole[8]
        if channel == "commentary" and name and stop == "call":
            found["call"] = (name, content)
        elif channel == "final" and stop == "return":
            found["final"] = content
        elif channel == "analysis" and stop == "end":
            found["analysis"] = content
    return found
