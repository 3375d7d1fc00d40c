"""Trains a small tokenizer of every kind that is read, and writes what its own library makes of the same 500 texts.

    python3 -m venv venv && venv/bin/pip install torch transformers tokenizers sentencepiece protobuf gguf safetensors numpy
    venv/bin/python tests/golden/tokenizer_files.py tests/golden/tokenizers

`texts.json` has the texts. Each folder holds a tokenizer's files (a Hugging Face directory without `tokenizer.json`, or
`tokenizer.gguf`, a header without tensors) and `expected.safetensors`: the `ids` of all texts, one after the other, and
their `lengths`. `expected.json` has what is put before a text (`beginning`) and the decoded texts that differ from the
text itself. Byte-level tokenizers split as the published `tokenizer.json` of their family does; ids are those of
`tokenizers`, of `transformers` where it reads the directory, and of `sentencepiece` for its own files.
"""

import io
import json
import random
import re
import sys
import unicodedata
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import transformers
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPACE = "\u2581"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def texts():
    """Everything that tokenizers disagree about."""
    draw = random.Random(5)
    words = "the of In to model token Straße naïve coöperate façade return self print value index".split()
    code = ["def f(x):\n    return x + 1\n", "if (a && b) { c[i]++; }", "\tfor i in range(10):\n\t\tprint(i)\n", "x=3;y=x**2//7"]
    code += ["SELECT * FROM t WHERE a<>'b';", "<div class=\"a\">&nbsp;</div>", "// TODO: fix\r\n#include <a.h>\r\n", "a->b::c!=d"]
    contractions = ["it's", "WE'LL", "I'D", "they'RE", "You've", "don'T", "O'Neil's", "'s", "’s it’s", "rock'n'roll'll"]
    emoji = ["👩‍👩‍👧", "👍🏽", "🏳️‍🌈", "e\u0301", "n\u0303o", "a\u0308\u0323", "🇩🇪", "❤️", "\u200b", "\ufeff"]
    scripts = ["你好，世界。", "日本語のテキスト", "한국어 문장", "العربية ١٢٣٤٥", "हिन्दी में", "ไทยแลนด์", "עברית", "Ελληνικά", "Привет МИР", "ქართული"]
    numbers = ["0", "7", "42", "123", "1234", "12345", "1234567890", "3.14159", "1,000,000", "٣٤٥٦", "½ ² Ⅷ", "0x1F", "1e-10", "２０２６"]
    spaces = ["", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "  a", "a  ", " \t x", "\n\n\n  b", "a\n", "a \n\nb"]
    marks = ["!?", "...", "--", "((()))", "«q»", "“x” ‘y’", "a/b/c", "@#$%^&*", "_a_b_", "`c`", "~~", "…", "—", "§ 5", "$5.00", "100%"]
    special = ["<|endoftext|>", "a<|im_start|>user\nhi<|im_end|>\n", " <|endoftext|> ", "<s>", "</s>x", "<unk>", "<|im_start", "<0x0A>"]
    special += ["<bos>hi<eos>", "<start_of_turn>user\nhi", "<table><tr>", f"{SPACE}a{SPACE}", "<|user|>\n hi<|end|>\n", "[INST] x [/INST]"]
    long = ["a" * 60, "ab" * 40, "supercalifragilisticexpialidocious" * 3, "!" * 33, " " * 17, "=" * 25, "x " * 20, "aaa aaaa aaaaa", "\n" * 9]
    parts = [code, contractions, emoji, scripts, numbers, spaces, marks, special, words]
    made = [text for part in [*parts, long] for text in part]
    while len(made) < 500:
        chosen = [draw.choice(draw.choice(parts)) for _ in range(draw.randint(2, 4))]
        made.append(draw.choice(["", " ", "  ", "\n"]).join(chosen))
    return made[:500]


TEXTS = texts()
CORPUS = TEXTS + [" ".join(random.Random(seed).choices(TEXTS[:150], k=5)) for seed in range(200)]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
LLAMA3 = rf"{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{WORDS}|\p{{N}}|{REST}"
TEKKEN = CASED % ("", "") + rf"|\p{{N}}|{SLASH}"
GPT4O = CASED % (ENDING, ENDING) + rf"|\p{{N}}{{1,3}}|{SLASH}"
CJK = "[一-龥ࠀ-一가-\ud7ff]+"
# The letters with two cases in DeepSeek's list, as ranges of code points.
CASED_LETTERS = """41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a 38c 38e-3a1
3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15
1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3
1fd6-1fdb 1fe0-1fec 1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 213c-213f
2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf
fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943"""
CASED_CLASS = "".join("-".join(chr(int(end, 16)) for end in span.split("-")) for span in CASED_LETTERS.split())
DEEPSEEK_CODER = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK]
DEEPSEEK_LLM = [r"[\r\n]", rf"\s?[{CASED_CLASS}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", CJK]
# llama.cpp's own, which no published tokenizer has.
DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]


def splitting(*patterns, digits=False, gpt2=False):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2))
    return pre_tokenizers.Sequence(steps)


# name of `tokenizer.ggml.pre`: its split, whether NFC comes first, whether merges are ignored, whether a text is begun
PRE = {
    "gpt-2": (splitting(gpt2=True), False, False, False),
    "olmo": (splitting(gpt2=True), True, False, False),
    "smollm": (splitting(digits=True, gpt2=True), False, False, False),
    "command-r": (splitting(digits=True, gpt2=True), True, False, False),
    "llama-bpe": (splitting(LLAMA3), False, True, True),
    "dbrx": (splitting(LLAMA3), False, False, False),
    "qwen2": (splitting(QWEN2), True, False, False),
    "tekken": (splitting(TEKKEN), False, True, True),
    "gpt-4o": (splitting(GPT4O), False, False, False),
    "deepseek-coder": (splitting(*DEEPSEEK_CODER, digits=True), False, False, False),
    "deepseek-llm": (splitting(*DEEPSEEK_LLM, digits=True), False, False, False),
    "default": (splitting(*DEFAULT), False, False, False),
}


def byte_level(split, composes, ignores_merges, size=480):
    """A trained byte-level BPE with special tokens in front."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC() if composes else None
    made.pre_tokenizer = split
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    whole = json.loads(made.to_str())
    whole["model"]["ignore_merges"] = ignores_merges
    return Tokenizer.from_str(json.dumps(whole))


def write_expected(folder, encode, decode, beginning):
    ids = [encode(text) for text in TEXTS]
    decoded = {}
    for index, (text, of_text) in enumerate(zip(TEXTS, ids)):
        if (found := decode(of_text)) != text:
            decoded[index] = found
    flat = np.array([id for of_text in ids for id in of_text], np.int32)
    lengths = np.array([len(of_text) for of_text in ids], np.int32)
    save_file({"ids": flat.astype(np.uint8) if flat.max() < 256 else flat.astype(np.uint16), "lengths": lengths.astype(np.uint16)}, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps({"beginning": beginning, "decoded": decoded}, indent=0) + "\n")
    print(folder.name, len(flat), len(decoded))


def fresh(root, name):
    folder = root / name
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    return folder


def dump(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=0) + "\n")


def header(path, architecture, model):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model(model)
    return writer


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level_gguf(root):
    for pre, (split, composes, ignores_merges, begins) in PRE.items():
        folder = fresh(root, f"gguf-{pre}")
        made = byte_level(split, composes, ignores_merges)
        model = json.loads(made.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        writer = header(folder / "tokenizer.gguf", "llama", "gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
        writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        close(writer)
        encode = lambda text: made.encode(text, add_special_tokens=False).ids
        write_expected(folder, encode, lambda ids: made.decode(ids, skip_special_tokens=False), [1] * begins)


def vocabulary_and_merges(folder, made, without=()):
    model = json.loads(made.to_str())["model"]
    vocabulary = {token: id for token, id in model["vocab"].items() if token not in without}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    return model["vocab"]


def by_transformers(folder, beginning):
    made = transformers.AutoTokenizer.from_pretrained(folder)
    encode = lambda text: made.encode(text, add_special_tokens=False)
    write_expected(folder, encode, lambda ids: made.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False), beginning)
    begun = made.encode("a")
    assert begun[: len(begun) - len(encode("a"))] == beginning, (folder, begun)


def directories(root):
    """What `transformers` writes for a token in its configuration."""
    token = lambda content, special=True: dict(
        content=content, lstrip=False, normalized=False, rstrip=False, single_word=False, special=special
    )
    gpt2 = byte_level(splitting(gpt2=True), False, False)
    folder = fresh(root, "gpt2")
    vocabulary_and_merges(folder, gpt2)
    dump(folder, config={"model_type": "gpt2"}, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    by_transformers(folder, [])
    # As the first releases have it: nothing but a model's type, and further tokens in files of their own.
    folder = fresh(root, "gpt2-old")
    vocabulary = vocabulary_and_merges(folder, gpt2, without=SPECIAL[1:])
    # Ids go on behind the vocabulary.
    moved = {**vocabulary, **{token: id for token, id in zip(SPECIAL[1:], range(len(vocabulary) - 2, len(vocabulary)))}}
    names = [token for token in sorted(vocabulary, key=vocabulary.get) if token not in SPECIAL[1:]]
    moved.update({token: id for id, token in enumerate(names)})
    (folder / "vocab.json").write_text(json.dumps({token: moved[token] for token in names}))
    dump(
        folder,
        config={"model_type": "gpt2"},
        special_tokens_map={"bos_token": "<|im_start|>", "eos_token": dict(token("<|endoftext|>"), normalized=True)},
        added_tokens={token: moved[token] for token in SPECIAL[1:]},
    )
    by_transformers(folder, [])
    folder = fresh(root, "gpt2-prefix")
    vocabulary_and_merges(folder, gpt2)
    switches = {"add_prefix_space": True, "add_bos_token": True, "bos_token": "<|im_start|>"}
    dump(folder, config={"model_type": "gpt2"}, tokenizer_config={"tokenizer_class": "GPT2TokenizerFast", **switches})
    by_transformers(folder, [1])
    folder = fresh(root, "gpt_neox")
    vocabulary_and_merges(folder, byte_level(splitting(gpt2=True), True, False))
    dump(folder, config={"model_type": "gpt_neox"}, tokenizer_config={"tokenizer_class": "GPTNeoXTokenizer"})
    by_transformers(folder, [])
    qwen2 = byte_level(splitting(QWEN2), True, False)
    folder = fresh(root, "qwen2")
    vocabulary = vocabulary_and_merges(folder, qwen2)
    added = {str(vocabulary[name]): token(name) for name in SPECIAL} | {str(len(vocabulary)): token("<think>", False)}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "eos_token": "<|im_end|>"}
    dump(folder, config={"model_type": "qwen3"}, tokenizer_config=config)
    by_transformers(folder, [])


def sentencepieces(**settings):
    writer = io.BytesIO()
    usual = dict(
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", split_digits=True, minloglevel=2,
        allow_whitespace_only_pieces=True, remove_extra_whitespaces=False, hard_vocab_limit=False, vocab_size=640,
        character_coverage=0.98, num_threads=1,
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=writer, **(usual | settings)
    )
    return writer.getvalue()


LLAMA = {}
GEMMA_PIECES = ["\n\n", "\n\n\n", SPACE * 2, SPACE * 3, SPACE * 4, "<table>", "<tr>"]
GEMMA = dict(
    add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3, bos_piece="<bos>", eos_piece="<eos>",
    control_symbols=["<start_of_turn>"], user_defined_symbols=GEMMA_PIECES,
)


def in_sections(processor, special, strips=()):
    """SentencePiece on each stretch between special tokens, as its users run it."""
    pattern = re.compile("(" + "|".join(re.escape(token) for token in special) + ")")

    def encode(text):
        ids, strip = [], False
        for section in pattern.split(text):
            if section in special:
                ids.append(processor.piece_to_id(section))
                strip = section in strips
            else:
                ids += processor.encode(section.lstrip() if strip else section)
                strip = False
        return ids

    return encode


def sections_decoder(processor, prefix, special):
    """A text's pieces in order; the space that was put first is taken away."""

    def decode(ids):
        text, run = "", b""
        for id in ids:
            piece = processor.id_to_piece(id)
            if processor.is_byte(id):
                run += bytes([int(piece[3:5], 16)])
                continue
            text += written(run) + piece.replace(SPACE, " ")
            run = b""
        text += written(run)
        return text[1:] if prefix and text.startswith(" ") else text

    # Bytes that are no text become a replacement character each.
    def written(run):
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    return decode


def sentencepiece_directories(root):
    for name, settings, model, bos, config in [
        ("llama", LLAMA, "llama", 1, {"tokenizer_class": "LlamaTokenizer", "legacy": True}),
        ("gemma", GEMMA, "gemma2", 2, {"tokenizer_class": "GemmaTokenizer"}),
        ("collapsing", dict(remove_extra_whitespaces=True, user_defined_symbols=["<table>", "ab"]), "phi3", 1, {}),
    ]:
        folder = fresh(root, name)
        file = sentencepieces(**settings)
        (folder / "tokenizer.model").write_bytes(file)
        dump(folder, config={"model_type": model}, tokenizer_config=config)
        processor = sentencepiece.SentencePieceProcessor(model_proto=file)
        every = range(processor.vocab_size())
        special = [processor.id_to_piece(id) for id in every if processor.is_control(id) or processor.is_unknown(id)]
        prefix = settings.get("add_dummy_prefix", True)
        write_expected(folder, in_sections(processor, special), sections_decoder(processor, prefix, special), [bos])
    # The later form: a space before the first word only.
    folder = fresh(root, "llama-later")
    (folder / "tokenizer.model").write_bytes(sentencepieces(**LLAMA))
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "bos_token": "<s>"}
    dump(folder, config={"model_type": "llama"}, tokenizer_config=config)
    by_transformers(folder, [1])


def sentencepiece_gguf(root):
    for name, settings, architecture, bos in [
        ("gguf-llama", LLAMA, "llama", 1),
        ("gguf-gemma", GEMMA, "gemma2", 2),
        ("gguf-phi3", dict(control_symbols=["<|user|>", "<|end|>"]), "phi3", 1),
    ]:
        folder = fresh(root, name)
        processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepieces(**settings))
        prefix = settings.get("add_dummy_prefix", True)
        tokens, scores, types, special = [], [], [], []
        for id in range(processor.vocab_size()):
            token, kind = processor.id_to_piece(id), 1
            if processor.is_unknown(id):
                kind = 2
            elif processor.is_control(id):
                kind = 3
            elif processor.is_byte(id):
                kind = 6
            elif token in settings.get("user_defined_symbols", []):
                # As converters write them.
                kind, token = 4, token.replace(SPACE, " ")
            if kind in (2, 3):
                special.append(token)
            tokens.append(token)
            scores.append(processor.get_score(id))
            types.append(kind)
        writer = header(folder / "tokenizer.gguf", architecture, "llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(types)
        writer.add_bos_token_id(bos)
        writer.add_eos_token_id(3 - bos)
        if not prefix:
            writer.add_add_space_prefix(False)
        close(writer)
        strips = {"<|user|>", "<|end|>", "</s>"} if architecture == "phi3" else ()
        encode = in_sections(processor, special, strips)
        write_expected(folder, encode, sections_decoder(processor, prefix, special), [bos])


def main():
    root = Path(sys.argv[1])
    (root / "texts.json").write_text(json.dumps(TEXTS, indent=0) + "\n")
    byte_level_gguf(root)
    directories(root)
    sentencepiece_directories(root)
    sentencepiece_gguf(root)


main()
