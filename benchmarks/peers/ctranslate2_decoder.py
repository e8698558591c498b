"""CTranslate2 on the exported weights: two workers of one thread share a large batch, one line has one."""

import sys

import answering
import ctranslate2
import tokenizers

precision = sys.argv[2]
model = answering.folder() / f"ctranslate2-{precision}"
source, target = (
    tokenizers.Tokenizer.from_file(str(model / f"{side}_tokenizer.json")) for side in ("source", "target")
)
many, single = (
    ctranslate2.Translator(str(model), device="cpu", compute_type=precision, inter_threads=workers, intra_threads=1)
    for workers in (2, 1)
)


def answer(texts: list[str], beam_size: int, at_once: int) -> tuple[list[str], int]:
    tokens = [encoding.tokens for encoding in source.encode_batch(texts)]
    results = (single if at_once == 1 else many).translate_batch(
        tokens,
        max_batch_size=32 if at_once == 64 else 64,  # so that both workers have some
        beam_size=beam_size,
        length_penalty=1.0,
        max_decoding_length=2 * max(map(len, tokens)) + 19,
        return_end_token=True,
        min_decoding_length=0,
        max_input_length=0,
    )
    best = [result.hypotheses[0] for result in results]
    ids = [[target.token_to_id(token) for token in hypothesis] for hypothesis in best]
    return target.decode_batch(ids), sum(map(len, best))


answering.serve(f"CTranslate2 {ctranslate2.__version__}, {precision}", ctranslate2.__version__, answer)
